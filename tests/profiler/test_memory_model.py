"""Memory beyond what is counted: a line through measured models, and what another load may borrow of it."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwright.cost import Cost, Load, exact
from blockwright.errors import InputError
from blockwright.hw_profiles.folder import read_profile, shipped_profiles
from blockwright.hw_profiles.profile import MemoryRow, Profile, parent_of
from blockwright.profiler.counted import exact_memory
from blockwright.profiler.memory_model import memory_costs
from blockwright.profiler.parts import PartCosts, Source
from blockwright.spec import Attention, Model

SHIPPED = read_profile(shipped_profiles()[0])
PARENT = parent_of(SHIPPED)
LOAD = Load(batch=1, prompt_tokens=64, new_tokens=64)
SIZES = (8_000_000, 4_000_000, 2_000_000)
FREE = PartCosts(fixed=exact(1e6), of_mixer=lambda _: exact(0.0), of_ffn=lambda _: exact(0.0))
"""Counts a megabyte, whatever the model."""


def _rows(load: Load, workspaces: Sequence[float], weights_format: str = "fp32") -> tuple[MemoryRow, ...]:
    """A row for each of the first sizes, with so much beyond it."""
    return tuple(
        MemoryRow(
            backend="onnxruntime",
            format=weights_format,
            batch=load.batch,
            prompt_tokens=load.prompt_tokens,
            new_tokens=load.new_tokens,
            peak_bytes=round(size + workspace),
            exact_bytes=size,
            origin="measured",
        )
        for size, workspace in zip(SIZES, workspaces, strict=False)
    )


def _source(*rows: MemoryRow, formats: tuple[str, ...] = ("fp32",), may_extrapolate: bool = False) -> Source:
    profile: Profile = replace(SHIPPED, memory=rows)
    return Source(profile=profile, backend="onnxruntime", formats=formats, may_extrapolate=may_extrapolate)


def _model() -> Model:
    return replace(PARENT, layers=PARENT.layers[:1])


def test_memory_beyond_the_count_is_a_line_through_the_measured_models() -> None:
    counted = exact_memory(PARENT, LOAD)
    straight = [0.25 * size + 70_000 for size in SIZES]
    cost = memory_costs(_source(*_rows(LOAD, straight)), counted, LOAD).of_model(PARENT)
    assert cost.value == pytest.approx(1.25 * counted.of_model(PARENT).value + 70_000, rel=1e-6)
    assert cost.high - cost.value < 10, "the models lie on a line"
    assert cost.origin == "interpolated"

    bent = [*straight[:2], straight[2] + 5_000]
    cost = memory_costs(_source(*_rows(LOAD, bent)), counted, LOAD).of_model(PARENT)
    assert cost.high - cost.value >= 5_000, "the interval must cover a model that the line misses"


def test_what_is_counted_within_an_interval_stays_within_it() -> None:
    """As windows are, whose caches hang on each other."""
    unsure = Cost(value=1e6, low=9e5, high=1.5e6, origin="measured")
    counted = PartCosts(fixed=unsure, of_mixer=lambda _: unsure, of_ffn=lambda _: exact(0.0))
    costs = memory_costs(_source(*_rows(LOAD, [0.25 * size for size in SIZES])), counted, LOAD)
    for cost in (costs.fixed, costs.of_mixer(Attention(num_kv_heads=1))):
        assert (cost.low, cost.value, cost.high) == pytest.approx((1.125e6, 1.25e6, 1.875e6))


def test_a_line_that_falls_counts_as_level() -> None:
    cost = memory_costs(_source(*_rows(LOAD, [80_000, 90_000, 100_000])), FREE, LOAD).of_model(PARENT)
    assert cost.value == pytest.approx(1e6 + 90_000)


def test_models_of_several_formats_make_one_line() -> None:
    fp32, int4 = _rows(LOAD, [200_000, 100_000]), _rows(LOAD, [300_000] * 3, "int4-g32")
    both = memory_costs(_source(*fp32, *int4, formats=("fp32", "int4-g32")), FREE, LOAD).of_model(PARENT)
    one = memory_costs(_source(*fp32, *int4), FREE, LOAD).of_model(PARENT)
    assert (one.value, one.high, one.origin) == (1_200_000, 1_300_000, "transferred")
    assert both.value == pytest.approx(1e6 + 240_000)  # the best line falls, so their mean
    assert both.high >= 1e6 + 200_000 + 300_000, "a model in both formats may need both workspaces"
    assert both.origin == "modelled"


@pytest.mark.parametrize("formats", [("int4-g32",), ("fp32", "int4-g32")])
def test_a_format_that_was_not_measured_is_refused(formats: tuple[str, ...]) -> None:
    for may_extrapolate in (False, True):
        source = _source(*_rows(LOAD, [100_000]), formats=formats, may_extrapolate=may_extrapolate)
        with pytest.raises(InputError) as caught:
            memory_costs(source, FREE, LOAD)
        assert caught.value.field == f"profile {SHIPPED.name}: memory"
        assert "int4-g32 on onnxruntime" in str(caught.value.got)
        assert caught.value.expected == "a measurement, and there are none"
        assert "Profile again" in caught.value.remedy and "--extrapolate" not in caught.value.remedy


def test_a_load_that_was_not_measured_is_refused_with_those_that_were() -> None:
    with pytest.raises(InputError) as caught:
        memory_costs(_source(*_rows(LOAD, [1.0])), FREE, replace(LOAD, new_tokens=63))
    assert caught.value.field == f"profile {SHIPPED.name}: memory"
    assert "batch 1, 64+63 tokens" in str(caught.value.got)
    assert caught.value.expected == "one of the loads measured: batch 1, 64+64 tokens"
    assert "--extrapolate" in caught.value.remedy


def test_a_measured_load_borrows_nothing() -> None:
    rows = (*_rows(LOAD, [100_000]), *_rows(replace(LOAD, batch=2), [150_000]))
    strict, loose = (memory_costs(_source(*rows, may_extrapolate=b), FREE, LOAD) for b in (False, True))
    assert strict.fixed == loose.fixed
    assert strict.fixed.value == 1_100_000


@pytest.mark.parametrize(
    ("load", "workspace", "below", "above"),
    [
        (Load(batch=2, prompt_tokens=64, new_tokens=64), 100_000, 0, 100_000),  # twice the tokens and the scores
        (Load(batch=1, prompt_tokens=128, new_tokens=64), 100_000, 0, 200_000),  # twice the tokens, 1.5 times the slots
        (Load(batch=1, prompt_tokens=32, new_tokens=96), 100_000, 50_000, 0),  # half of the tokens, as many slots
        (Load(batch=1, prompt_tokens=32, new_tokens=224), 100_000, 50_000, 0),  # half of the tokens, twice the slots
        (Load(batch=60, prompt_tokens=64, new_tokens=64), 900_000, 60_000, 0),  # nearer to the batch of 64
    ],
)
def test_another_load_borrows_the_workspace_of_the_nearest(
    load: Load, workspace: float, below: float, above: float
) -> None:
    rows = (*_rows(LOAD, [100_000]), *_rows(replace(LOAD, batch=64), [900_000]))
    cost = memory_costs(_source(*rows, may_extrapolate=True), FREE, load).fixed
    assert cost.value == 1e6 + workspace
    own = 0.02 * workspace
    assert cost.value - cost.low == pytest.approx(own + below, rel=0.07)
    assert cost.high - cost.value == pytest.approx(own + above, rel=1e-6)
    assert cost.origin == "modelled"


@given(st.integers(1, 64), st.integers(1, 4000), st.integers(1, 4000))
def test_a_workspace_that_grows_with_the_tokens_or_their_scores_is_within_the_interval(
    batch: int, prompt_tokens: int, new_tokens: int
) -> None:
    load = Load(batch=batch, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    cost = memory_costs(_source(*_rows(LOAD, [100_000]), may_extrapolate=True), FREE, load).fixed
    tokens = batch * min(prompt_tokens, 512) / 64
    slots = -(-(prompt_tokens + new_tokens) // 64) * 64 / 128
    for share in (0.0, 0.5, 1.0):
        true = 1e6 + 100_000 * tokens * (share + (1 - share) * slots)
        assert cost.low * (1 - 1e-9) <= true <= cost.high * (1 + 1e-9)
    assert cost.low >= 1e6 - 0.02 * 100_000 - 1e-6
