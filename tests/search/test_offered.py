"""Each layer is offered its candidates in the formats that were asked for and that the space allows there."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from blockwright.errors import InputError
from blockwright.search.offered import formats_for, in_formats, lent_words, offered
from blockwright.search.scores import ScoreTable, read_scores, write_scores
from blockwright.search.space import LayerSpace, SpaceSettings
from blockwright.spec import FP16, FP32, Candidate, Format, NoOp, parse_format, stored_as

INT8, INT4 = parse_format("int8"), parse_format("int4")
BOUND: tuple[tuple[Format, ...], ...] = ((FP32,), (), (INT4, INT8))
"""Of three layers."""

MakeTable = Callable[..., ScoreTable]


def _naive(candidates: list[Candidate], asked: tuple[Format, ...], allowed: tuple[tuple[Format, ...], ...]) -> set:
    return {
        replace(c, variant=stored_as(c.variant, weights))
        for c, weights in product(candidates, asked)
        if not allowed or not allowed[c.layer] or weights in allowed[c.layer]
    }


@pytest.mark.parametrize("allowed", [BOUND, ()])
def test_candidates_are_offered_in_the_formats_of_their_layers(
    allowed: tuple[tuple[Format, ...], ...], made_up_offered: list[Candidate]
) -> None:
    asked = (FP32, INT4)
    found = in_formats(made_up_offered, asked, allowed)
    assert len(found) == len(set(found))
    assert set(found) == _naive(made_up_offered, asked, allowed)
    stored = {c.layer: set() for c in found}
    for c in found:
        stored[c.layer] |= set() if isinstance(c.variant, NoOp) else {c.variant.weights}
    assert stored == ({0: {FP32}, 1: set(asked), 2: {INT4}} if allowed else {layer: set(asked) for layer in range(3)})


def test_a_layer_that_may_have_none_of_the_formats_is_named() -> None:
    assert formats_for(2, [FP32, INT8], BOUND) == (INT8,)
    with pytest.raises(InputError, match=r"formats: got fp32; expected .* in layer 2: int4-g32, int8-g32. .*--format"):
        formats_for(2, [FP32], BOUND)


def test_the_search_is_offered_no_more_than_the_table_allows(
    made_up_offered: list[Candidate], make_table: MakeTable
) -> None:
    table = replace(make_table(formats=[FP32, INT4, INT8]), formats=BOUND)  # scored in more than is allowed
    for asked in ((FP32, INT4), (INT4, FP32, INT8)):
        assert {c for c, _ in offered(table, "kl", asked)} == _naive(made_up_offered, asked, BOUND)
    with pytest.raises(InputError, match=r"got fp32; expected .* in layer 2"):
        list(offered(table, "kl", (FP32,)))


def test_a_format_that_no_layer_may_have_needs_no_scores(
    made_up_offered: list[Candidate], make_table: MakeTable
) -> None:
    table = replace(make_table(formats=[INT4]), formats=((INT4,),) * 3)
    assert {c for c, _ in offered(table, "kl", (FP32, INT4))} == _naive(made_up_offered, (INT4,), ())


def test_scores_of_fp32_that_serve_for_another_format_are_told(make_table: MakeTable) -> None:
    plain, both = make_table(), make_table(formats=[FP32, INT8])
    (told,) = lent_words(plain, "kl", (INT8,))
    assert told.startswith("Scores of fp32 serve for int8-g32") and "--format int8-g32 measures" in told
    assert lent_words(plain, "kl", (FP32,)) == []
    for asked in ((INT8,), (FP32,), (FP32, INT8)):
        assert lent_words(both, "kl", asked) == []


def test_scores_of_what_only_tensorrt_stores_are_told_with_the_backend(make_table: MakeTable) -> None:
    table = make_table(formats=[FP16, INT4])
    with pytest.raises(InputError, match=r"--format fp16 or --format int4-g32, with --backend tensorrt\. Or score"):
        list(offered(table, "kl", (FP32,)))


def test_a_table_keeps_what_each_layer_may_be_stored_in(make_table: MakeTable, tmp_path: Path) -> None:
    table = replace(make_table(formats=[FP32, INT4, INT8]), formats=BOUND)
    write_scores(table, tmp_path / "scores.parquet")
    assert read_scores(tmp_path / "scores.parquet") == table
    with pytest.raises(ValueError, match="formats for each of the 3 layers"):
        replace(table, formats=BOUND[:2])


def test_a_space_names_the_formats_of_all_layers_or_of_none() -> None:
    assert SpaceSettings().formats_by_layer(3) == ()
    space = SpaceSettings(overrides=(LayerSpace(layers=0, formats=("fp32",)), LayerSpace(layers=2, formats=("int4",))))
    assert space.formats_by_layer(3) == ((FP32,), (), (INT4,))
