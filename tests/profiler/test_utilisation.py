import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.profiler.boosted import Growth
from blockwright.profiler.operator_features import features, peaks_of
from blockwright.profiler.operators import Attend, Elementwise, Matmul, Operator
from blockwright.profiler.utilisation import OperatorTimes, Timed, fit_times

BANDWIDTH, RATE, LAUNCH_S = 1e12, 1e14, 2e-6


def _figure(value: float) -> Figure:
    return Figure(value=value, low=value, high=value, origin="measured", source="a made-up device")


CEILINGS = Ceilings(
    read_bytes_per_s=_figure(BANDWIDTH),
    flop_per_s={"bf16": _figure(RATE)},
    launch_s=_figure(LAUNCH_S),
    num_units=16,
)


def _matmul(rows: int, inputs: int, outputs: int) -> Matmul:
    return Matmul(
        rows=rows,
        inputs=inputs,
        outputs=outputs,
        weights="bf16",
        weight_bytes=2 * inputs * outputs,
        bytes_per_value=2,
    )


def _attend(batch: int, context: int, num_kv_heads: int = 8) -> Attend:
    return Attend(
        batch=batch,
        new_tokens=1,
        context=context,
        num_heads=32,
        num_kv_heads=num_kv_heads,
        head_dim=128,
        bytes_per_value=2,
        kv_bytes_per_value=2,
    )


def _true_s(operator: Operator) -> float:
    """What the made-up device takes: 80 % of its bandwidth, 70 % of its rate."""
    return LAUNCH_S + max(operator.num_bytes / (0.8 * BANDWIDTH), operator.flop / (0.7 * RATE))


ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
WIDTHS = (256, 512, 1024, 2048, 4096)
QUICK = Growth(num_forests=1, num_trees=60)
MATMULS = [_matmul(rows, n, k) for rows, n, k in product(ROWS, WIDTHS, WIDTHS)]


def _timed(operators: list[Matmul] | list[Attend], *, noise: float = 0.0) -> list[Timed]:
    rng = np.random.default_rng(3)
    factors = np.exp(noise * rng.standard_normal(len(operators)))
    return [Timed(operator=each, time_s=_true_s(each) * f) for each, f in zip(operators, factors, strict=True)]


@pytest.fixture(scope="module")
def model() -> OperatorTimes:
    return fit_times(CEILINGS, _timed(MATMULS[::2]), growth=QUICK)


def test_what_was_measured_is_returned_as_it_was(model: OperatorTimes) -> None:
    found = model.costs(MATMULS[::2])
    expected = [_true_s(each) for each in MATMULS[::2]]
    assert found.values.tolist() == found.lows.tolist() == found.highs.tolist() == expected
    assert set(found.origins) == {"measured"}


def test_of_several_measurements_the_median_counts_and_the_ends_are_the_interval() -> None:
    operator = _matmul(4, 512, 512)
    rows = [Timed(operator=operator, time_s=time_s) for time_s in (9e-6, 5e-6, 6e-6)]
    found = fit_times(CEILINGS, rows).costs([operator])
    assert (found.values[0], found.lows[0], found.highs[0]) == (6e-6, 5e-6, 9e-6)


def test_the_measured_interval_of_what_was_timed_is_kept() -> None:
    operator = _matmul(4, 512, 512)
    once = Timed(operator=operator, time_s=6e-6, low_s=5.5e-6, high_s=7e-6)
    found = fit_times(CEILINGS, [once]).costs([operator])
    assert (found.values[0], found.lows[0], found.highs[0]) == (6e-6, 5.5e-6, 7e-6)
    found = fit_times(CEILINGS, [once, replace(once, time_s=8e-6, low_s=5e-6, high_s=9e-6)]).costs([operator])
    assert (found.values[0], found.lows[0], found.highs[0]) == (7e-6, 5e-6, 9e-6)


def test_the_rate_of_another_format_is_no_bound_but_memory_is() -> None:
    known = _matmul(1024, 1024, 1024)
    unknown = replace(known, weights="int4-g128", weight_bytes=known.weight_bytes // 4)
    faster_s = known.flop / (3 * RATE)
    with pytest.raises(InputError, match="of what the ceilings allow"):
        fit_times(CEILINGS, [Timed(operator=known, time_s=faster_s)])
    assert fit_times(CEILINGS, [Timed(operator=unknown, time_s=faster_s)]).costs([unknown]).values[0] == faster_s
    with pytest.raises(InputError, match="of what the ceilings allow"):
        fit_times(CEILINGS, [Timed(operator=unknown, time_s=unknown.num_bytes / (1.5 * BANDWIDTH))])
    one, other = (features([each], peaks_of(CEILINGS, each)) for each in (known, unknown))
    assert one[0, 1] == other[0, 1]  # the scale of products stays


def test_a_known_device_is_recovered(model: OperatorTimes) -> None:
    found = model.costs(MATMULS[1::2])
    errors = np.abs(found.values / [_true_s(each) for each in MATMULS[1::2]] - 1)
    assert errors.mean() < 0.02
    assert "measured" not in found.origins


def test_beyond_the_measured_range_the_law_goes_on_and_says_so(model: OperatorTimes) -> None:
    further = [_matmul(16384, 4096, 4096), _matmul(1024, 4096, 32768), _matmul(1, 16384, 16384)]
    found = model.costs(further)
    assert set(found.origins) == {"modelled"}
    assert np.abs(found.values / [_true_s(each) for each in further] - 1).max() < 0.25
    inside = model.costs(MATMULS[1::2])
    assert np.all(found.lows <= found.values) and np.all(found.values <= found.highs)
    assert np.min(found.highs / found.lows) > np.median(inside.highs / inside.lows)


def test_intervals_cover_nine_in_ten() -> None:
    """Noise of 5 %: 90 % of the logarithms of unseen rows lie within about ± 1.65 · 5 %."""
    rows = _timed(MATMULS, noise=0.05)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(rows))
    found = fit_times(CEILINGS, [rows[i] for i in order[:180]], growth=QUICK)
    asked = [rows[i] for i in order[180:]]
    costs = found.costs([row.operator for row in asked])
    times = np.array([row.time_s for row in asked])
    covered = np.mean((costs.lows <= times) & (times <= costs.highs))
    assert 0.83 < covered < 0.98
    assert np.median(np.log(costs.highs / costs.lows)) < 0.4


def test_a_shape_that_was_not_timed_is_predicted_from_others() -> None:
    kept = [each for each in MATMULS if (each.inputs, each.outputs) != (1024, 1024)]
    asked = [each for each in MATMULS if (each.inputs, each.outputs) == (1024, 1024)]
    found = fit_times(CEILINGS, _timed(kept), growth=QUICK).costs(asked)
    assert np.abs(found.values / [_true_s(each) for each in asked] - 1).mean() < 0.03
    assert set(found.origins) == {"interpolated"}


def test_steps_of_waves_are_learnt() -> None:
    """A device that works in tiles of 128 × 128, 16 at once: one more row than a tile holds costs a tile more."""

    def stepped(operator: Matmul) -> float:
        waves = math.ceil(math.ceil(operator.rows / 128) * math.ceil(operator.outputs / 128) / 16)
        return LAUNCH_S + 2 * waves * 16 * 128 * 128 * operator.inputs / (0.7 * RATE)

    rows = [128, 129, 256, 257, 384, 385, 512, 513, 640, 641, 768, 769, 1024, 1025]
    every = [_matmul(each, k, n) for each, k, n in product(rows, (512, 1024, 2048), (512, 1024, 1536, 2048))]
    known = [Timed(operator=each, time_s=stepped(each)) for i, each in enumerate(every) if i % 3]
    asked = every[::3]
    found = fit_times(CEILINGS, known, growth=QUICK).costs(asked)
    assert np.abs(found.values / [stepped(each) for each in asked] - 1).mean() < 0.04


def test_kinds_are_learnt_apart_and_an_unknown_one_is_refused(model: OperatorTimes) -> None:
    attends = [_attend(batch, context) for batch in (1, 4, 16, 64) for context in (128, 512, 2048, 8192)]
    both = fit_times(CEILINGS, _timed(MATMULS[::2]) + _timed(attends[::2]), growth=QUICK)
    np.testing.assert_array_equal(both.costs(MATMULS).values, model.costs(MATMULS).values)
    found = both.costs(attends[1::2])
    assert np.abs(found.values / [_true_s(each) for each in attends[1::2]] - 1).mean() < 0.1
    with pytest.raises(InputError, match="elementwise"):
        both.costs([Elementwise(num_values=4096, bytes_per_value=2)])


@pytest.mark.parametrize("time_s", [0.0, -1e-6, math.nan, math.inf])
def test_what_is_no_time_is_refused_by_name(time_s: float) -> None:
    rows = [*_timed(MATMULS[:3]), Timed(operator=MATMULS[3], time_s=time_s)]
    with pytest.raises(InputError, match=r"measured\[3\], Matmul\(rows=1, inputs=256"):
        fit_times(CEILINGS, rows)


def test_milliseconds_taken_for_seconds_are_refused() -> None:
    operator = _matmul(1024, 4096, 4096)
    with pytest.raises(InputError, match="of what the ceilings allow"):
        fit_times(CEILINGS, [Timed(operator=operator, time_s=_true_s(operator) * 1e-3)])


def test_what_fits_into_a_cache_may_be_faster_than_memory() -> None:
    operator = _matmul(1, 1024, 1024)
    row = Timed(operator=operator, time_s=operator.num_bytes / (1.5 * BANDWIDTH))
    with pytest.raises(InputError):
        fit_times(CEILINGS, [row])
    fit_times(replace(CEILINGS, cache_bytes=2**22), [row])


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(InputError, match="nothing"):
        fit_times(CEILINGS, [])


def test_the_same_rows_give_the_same_times() -> None:
    first, second = (fit_times(CEILINGS, _timed(MATMULS[::5]), growth=QUICK).costs(MATMULS) for _ in range(2))
    assert first.values.tolist() == second.values.tolist()
    assert first.lows.tolist() == second.lows.tolist()


@settings(max_examples=20, deadline=None)
@given(scale=st.sampled_from([1e-3, 0.5, 8.0, 1e3]), picked=st.integers(0, len(MATMULS) - 1))
def test_units_do_not_matter(scale: float, picked: int) -> None:
    """A device that is slower by a factor in everything takes longer by it; features are ratios to the ceilings."""
    slower = replace(CEILINGS, read_bytes_per_s=_figure(BANDWIDTH / scale), flop_per_s={"bf16": _figure(RATE / scale)})
    one, other = (features([MATMULS[picked]], peaks_of(each, MATMULS[picked])) for each in (CEILINGS, slower))
    difference = other - one
    np.testing.assert_allclose(difference[0, :2], math.log2(scale), atol=1e-9)
    np.testing.assert_allclose(difference[0, 2:], 0, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 5000), inputs=st.integers(1, 9000), outputs=st.integers(1, 9000))
def test_every_cost_is_finite_and_in_its_interval(model: OperatorTimes, rows: int, inputs: int, outputs: int) -> None:
    found = model.costs([_matmul(rows, inputs, outputs)])
    assert 0 < found.lows[0] <= found.values[0] <= found.highs[0] < math.inf
