"""The comparison: every simpler way to choose has its line, with a reason where it finds nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from blockwright.llama import llama
from blockwright.search.baselines import block_influence, greedy
from blockwright.search.problem import Choice, Limit, Problem, is_within
from blockwright.search.rivals import NUM_WAYS, Attempt, attempts
from blockwright.search.scores import ScoreTable, read_scores, write_scores
from blockwright.spec import Attention, Block, Candidate, GatedFFN, NoOp

OWN = Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=64))
PARENT = llama((OWN,) * 3, hidden_size=16, num_heads=4, head_dim=4, vocab_size=96, max_positions=64)
INFLUENCE = (0.4, 0.1, 0.2)


def _problem(limit: float, has_no_ops: bool = True) -> Problem:
    """Mixers cost 2 and ffns 4; the narrow ffn costs 2."""
    groups = []
    for layer in range(3):
        offered = {
            "mixer": [(OWN.mixer, 0.0, 2.0), (NoOp(), 0.5 + layer, 0.0)],
            "ffn": [(OWN.ffn, 0.0, 4.0), (GatedFFN(width=32), 0.1, 2.0), (NoOp(), 0.3 + layer, 0.0)],
        }
        for part in ("mixer", "ffn"):
            rows = [row for row in offered[part] if has_no_ops or not isinstance(row[0], NoOp)]
            groups.append(
                tuple(
                    Choice(candidates=(Candidate(layer=layer, part=part, variant=variant),), score=s, costs=(cost,))
                    for variant, s, cost in rows
                )
            )
    return Problem(groups=tuple(groups), limits=(Limit(text="a", fixed=0.0, limit=limit),))


def _by_name(found: list[Attempt]) -> dict[str, Attempt]:
    return {attempt.name: attempt for attempt in found}


def test_every_way_has_its_line_and_a_choice_within_the_budgets() -> None:
    problem = _problem(13.0)
    found = list(attempts(problem, PARENT, INFLUENCE))
    assert len(_by_name(found)) == len(found) == NUM_WAYS
    for attempt in found:
        assert attempt.chosen is not None and attempt.reason == "" and is_within(problem, attempt.chosen)
    assert _by_name(found)["greedy"].chosen == greedy(problem)
    assert _by_name(found)["block influence (ShortGPT)"].chosen == block_influence(problem, PARENT, INFLUENCE)


@pytest.mark.parametrize(
    ("limit", "has_no_ops", "influence", "reasons"),
    [
        (13.0, True, None, {"block influence (ShortGPT)": "influence was not measured: score again"}),
        (13.0, False, INFLUENCE, {"block influence (ShortGPT)": "no layer to remove"}),
        (-1.0, True, INFLUENCE, {"greedy": "finds no choice", "homogeneous (Minitron)": "finds no choice"}),
    ],
)
def test_who_finds_nothing_says_why(
    limit: float, has_no_ops: bool, influence: tuple[float, ...] | None, reasons: dict[str, str]
) -> None:
    found = _by_name(list(attempts(_problem(limit, has_no_ops), PARENT, influence)))
    for name, words in reasons.items():
        assert found[name].chosen is None and words in found[name].reason


def test_influence_is_kept_with_the_scores_and_unknown_in_older_tables(tmp_path: Path) -> None:
    table = ScoreTable(parent=PARENT, scores=(), influence=INFLUENCE)
    write_scores(table, tmp_path / "scores.parquet")
    assert read_scores(tmp_path / "scores.parquet").influence == INFLUENCE
    write_scores(replace(table, influence=None), tmp_path / "scores.parquet")
    assert read_scores(tmp_path / "scores.parquet").influence is None
    with pytest.raises(ValueError, match="3 layers"):
        replace(table, influence=INFLUENCE[:2])


def test_without_layers_to_remove_one_width_for_all_is_still_offered() -> None:
    found = _by_name(list(attempts(_problem(13.0, has_no_ops=False), PARENT, INFLUENCE)))
    chosen = found["homogeneous (Minitron)"].chosen
    assert chosen is not None
    assert [c.candidates[0].variant for c in chosen] == [OWN.mixer, GatedFFN(width=32)] * 3
