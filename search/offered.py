"""What is offered to each layer: its candidates in the formats that were asked for and that the space allows there.

Formats that a space allows are a tuple for each layer, empty for a layer that may have any; no tuple at all where no
layer is bound (`SpaceSettings.formats_by_layer`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from blockwright.errors import InputError
from blockwright.search.scores import Score, ScoreTable, format_of
from blockwright.spec import Candidate, Format, stored_as


def formats_for(layer: int, asked: Sequence[Format], allowed: Sequence[Sequence[Format]]) -> tuple[Format, ...]:
    """The formats asked for that a layer may be stored in.

    Raises:
        InputError: there is none.
    """
    here = allowed[layer] if allowed else ()
    found = tuple(weights for weights in asked if not here or weights in here)
    if not found:
        raise InputError(
            "formats",
            got=", ".join(map(str, asked)),
            expected=f"one at least that the space allows in layer {layer}: {', '.join(map(str, here))}",
            remedy="Ask for one of these too (--format, or formats in the recipe), or allow more in the space.",
        )
    return found


def in_formats(
    candidates: Iterable[Candidate], asked: Sequence[Format], allowed: Sequence[Sequence[Format]] = ()
) -> tuple[Candidate, ...]:
    """Every candidate in every format that its layer may have; a no-op once.

    Raises:
        InputError: a layer may have none of the formats asked for.
    """
    found = (
        replace(candidate, variant=stored_as(candidate.variant, weights))
        for candidate in candidates
        for weights in formats_for(candidate.layer, asked, allowed)
    )
    return tuple(dict.fromkeys(found))


def offered(table: ScoreTable, metric: str, asked: Sequence[Format]) -> Iterator[tuple[Candidate, float]]:
    """Every candidate in every format that its layer may have, with its score.

    Scores of fp32 serve for another format where it is the only one asked for: all candidates are rounded alike then.

    Raises:
        InputError: a format was not scored, or a layer may have none of those asked for.
    """
    scores = table.of_metric(metric)
    of_layer = [formats_for(layer, asked, table.formats) for layer in range(len(table.parent.layers))]
    scored = {format_of(score.candidate) for score in scores} - {""}
    wanted = {str(weights): weights for formats in of_layer for weights in formats}
    if wanted.keys() <= scored:
        for score in scores:
            if format_of(score.candidate) in {"", *map(str, of_layer[score.candidate.layer])}:
                yield score.candidate, _value(score)
        return
    if len(wanted) > 1 or "fp32" not in scored:
        raise InputError(
            "scores",
            got=f"scores of {', '.join(sorted(scored))}",
            expected=f"scores of {', '.join(sorted(wanted))}, to choose a format for each layer",
            remedy="Search with what was scored: "
            + " or ".join(f"--format {weights}" for weights in sorted(scored))
            + ", with --backend tensorrt" * bool({"fp16", "bf16"} & scored)
            + ". Or score again: blockwright score … "
            + " ".join(f"--format {weights}" for weights in sorted(wanted.keys() | scored)),
        )
    [weights] = wanted.values()
    for score in scores:
        if format_of(score.candidate) in {"fp32", ""}:
            yield replace(score.candidate, variant=stored_as(score.candidate.variant, weights)), _value(score)


def lent_words(table: ScoreTable, metric: str, asked: Sequence[Format]) -> list[str]:
    """A sentence where scores of fp32 serve for another format; none where a format has scores of its own."""
    own = {format_of(score.candidate) for score in table.of_metric(metric)} - {""}
    stored = {format_of(candidate) for candidate, _ in offered(table, metric, asked)} - {""}
    if stored <= own:
        return []
    return [
        f"Scores of fp32 serve for {', '.join(sorted(stored - own))}: what rounding to it loses is in no score. "
        "blockwright score … " + " ".join(f"--format {weights}" for weights in sorted(stored - own)) + " measures it."
    ]


def _value(score: Score) -> float:
    """A divergence below zero is rounding; other metrics may well be below."""
    value = score.estimate.value
    return 0.0 if score.metric == "kl" and value < 0 else value  # not `max`, which makes a 0 of what is no number
