import importlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.profiler.belief import PRIOR, Source, believe, explain
from blockwright.profiler.datasheet import EFFICIENCIES, Efficiency, modelled_times, roofline_s
from blockwright.profiler.operators import Matmul, Operator
from blockwright.profiler.transfer import Timing, copied_times, design_points, transfer


def figure(value: float) -> Figure:
    return Figure(value=value, low=value, high=value, origin="modelled", source="a made-up datasheet")


OLD = Ceilings(read_bytes_per_s=figure(2e12), flop_per_s={"bf16": figure(300e12)}, launch_s=figure(3e-6), num_units=108)
NEW = Ceilings(read_bytes_per_s=figure(5e12), flop_per_s={"bf16": figure(900e12)}, launch_s=figure(3e-6), num_units=132)
PLAIN = EFFICIENCIES["matmul"]
OPERATORS: list[Operator] = [
    Matmul(rows=rows, inputs=k, outputs=n, weights="bf16", weight_bytes=2 * n * k, bytes_per_value=2)
    for rows in (1, 8, 64, 256, 1024, 4096)
    for n in (1024, 3072, 8192)
    for k in (1024, 4096, 12288)
]
SHIFTED = replace(PLAIN, launches=1.4 * PLAIN.launches, bandwidth=0.85 * PLAIN.bandwidth, rate=0.8 * PLAIN.rate)


def made_s(ceilings: Ceilings, efficiency: Efficiency, seed: int, scatter: float = 0.03) -> np.ndarray:
    """Times by a known law; what libraries choose badly is the same on every device, the rest its own."""
    common, own = (np.random.default_rng(s).normal(0, scatter, len(OPERATORS)) for s in (7, seed))
    return modelled_times(OPERATORS, ceilings, {"matmul": efficiency}).time_s * np.exp(common + own)


@cache
def old() -> Source:
    shares = dict(zip(OPERATORS, roofline_s(OPERATORS, OLD) / made_s(OLD, PLAIN, 1), strict=True))
    return Source(ceilings=OLD, utilisation=lambda operators: np.array([shares[o] for o in operators]))


def timings(points, times_s) -> list[Timing]:
    at = {operator: i for i, operator in enumerate(OPERATORS)}
    return [Timing(operator=point, time_s=float(times_s[at[point]])) for point in points]


def error(predicted_s, truth_s) -> float:
    return float(np.abs(predicted_s / truth_s - 1).mean())


def test_a_shifted_device_is_found_from_twelve_points():
    truth_s = made_s(NEW, SHIFTED, 2)
    points = design_points(OPERATORS, 12, old(), NEW)
    found = transfer(old(), NEW, timings(points, truth_s), OPERATORS)
    assert found.origin == "transferred"
    assert error(found.time_s, truth_s) < 0.06
    assert error(copied_times(old(), NEW, OPERATORS), truth_s) > 0.12


@pytest.mark.parametrize("num_points", [1, 2, 3, 5, 10])
@pytest.mark.parametrize(
    "truth", [PLAIN, SHIFTED, replace(PLAIN, rate=0.6 * PLAIN.rate), replace(PLAIN, launches=3 * PLAIN.launches)]
)
def test_few_points_are_never_worse_than_none(num_points, truth):
    truth_s = made_s(NEW, truth, 3)
    points = design_points(OPERATORS, num_points, old(), NEW)
    found = transfer(old(), NEW, timings(points, truth_s), OPERATORS)
    assert error(found.time_s, truth_s) <= 1.02 * error(copied_times(old(), NEW, OPERATORS), truth_s)


def test_few_random_points_are_not_worse_either():
    truth_s = made_s(NEW, PLAIN, 4)
    none = error(copied_times(old(), NEW, OPERATORS), truth_s)
    for seed in range(5):
        points = [OPERATORS[i] for i in np.random.default_rng(seed).choice(len(OPERATORS), 5, replace=False)]
        assert error(transfer(old(), NEW, timings(points, truth_s), OPERATORS).time_s, truth_s) <= 1.02 * none


def test_where_the_copy_is_right_it_is_kept():
    truth_s = copied_times(old(), NEW, OPERATORS)
    points = design_points(OPERATORS, 10, old(), NEW)
    assert error(transfer(old(), NEW, timings(points, truth_s), OPERATORS).time_s, truth_s) < 0.001


def test_intervals_hold_what_they_promise_and_narrow_with_points():
    inside, widths = [], []
    for seed, num_points in ((5, 3), (6, 12), (8, 12), (9, 12)):
        truth_s = made_s(NEW, SHIFTED, seed)
        points = design_points(OPERATORS, num_points, old(), NEW)
        found = transfer(old(), NEW, timings(points, truth_s), OPERATORS)
        inside.append(((found.low_s <= truth_s) & (truth_s <= found.high_s)).mean())
        widths.append(np.median(found.high_s / found.low_s))
    assert np.mean(inside) >= 0.87
    assert max(widths[1:]) < widths[0] < 3


def test_points_are_the_same_whatever_order_operators_come_in():
    first = design_points(OPERATORS, 8, old(), NEW)
    assert first == design_points(OPERATORS[::-1], 8, old(), NEW)
    assert first[:5] == design_points(OPERATORS, 5, old(), NEW)
    assert len(set(first)) == 8


def test_designed_points_tell_more_than_the_first_ones_of_the_list():
    truth_s = made_s(NEW, SHIFTED, 2)
    designed = transfer(old(), NEW, timings(design_points(OPERATORS, 6, old(), NEW), truth_s), OPERATORS)
    first = transfer(old(), NEW, timings(OPERATORS[:6], truth_s), OPERATORS)
    assert error(designed.time_s, truth_s) < error(first.time_s, truth_s)


@pytest.mark.parametrize("num_points", [0, len(OPERATORS) + 1])
def test_a_number_of_points_that_cannot_be_is_named(num_points):
    with pytest.raises(InputError, match=f"points to measure: got {num_points}"):
        design_points(OPERATORS, num_points, old(), NEW)


@pytest.mark.parametrize("time_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_named(time_s):
    with pytest.raises(InputError, match=r"measured: got .* s of Matmul"):
        transfer(old(), NEW, [Timing(operator=OPERATORS[0], time_s=time_s)], OPERATORS)


def test_no_measurement_is_named():
    with pytest.raises(InputError, match="measured: got no measurement"):
        transfer(old(), NEW, [], OPERATORS)


def test_an_operator_that_the_source_does_not_know_is_named():
    source = Source(ceilings=OLD, utilisation=lambda operators: np.full(len(operators), np.nan))
    with pytest.raises(InputError, match="no utilisation of Matmul"):
        transfer(source, NEW, [Timing(operator=OPERATORS[0], time_s=1e-5)], OPERATORS)


def test_a_format_without_a_rate_on_the_target_is_named():
    target = replace(NEW, flop_per_s={"fp8": figure(1e15)})
    with pytest.raises(InputError, match="the rate of bf16"):
        transfer(old(), target, [Timing(operator=OPERATORS[0], time_s=1e-5)], OPERATORS)


def test_a_belief_is_the_sum_of_what_its_prior_names():
    some = [*OPERATORS[:3], Matmul(rows=8, inputs=64, outputs=64, weights="fp8", weight_bytes=4096, bytes_per_value=2)]
    target = replace(NEW, flop_per_s={**NEW.flop_per_s, "fp8": figure(1800e12)})
    known = replace(OLD, flop_per_s={**OLD.flop_per_s, "fp8": figure(600e12)})
    source = Source(ceilings=known, utilisation=lambda operators: np.linspace(0.2, 0.5, len(operators)))
    explained = explain(some, source, target, EFFICIENCIES)
    belief = believe(explained, PRIOR)
    assert belief.mean == pytest.approx(explained.modelled + PRIOR.share * explained.residual)
    for i in range(4):
        for j in range(4):
            is_same_format = some[i].weights == some[j].weights
            apart = explained.extents[i] - explained.extents[j]
            naive = PRIOR.drift_sd**2 * (explained.sensitivities[i] @ explained.sensitivities[j])
            naive += PRIOR.share_sd**2 * explained.residual[i] * explained.residual[j]
            naive += PRIOR.offset_sd**2 * (0.5 + 0.5 * is_same_format)
            naive += PRIOR.smooth_sd**2 * np.exp(-(apart @ apart) / 2 / PRIOR.smooth_length**2)
            assert belief.covariance(belief)[i, j] == pytest.approx(naive)
    assert belief.variance() == pytest.approx(belief.covariance(belief).diagonal())


def test_the_likeliest_prior_is_nearer_to_the_one_that_made_the_times(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "costmodel"))
    benchmark = importlib.import_module("transfer_prior")
    explained = explain(OPERATORS, old(), NEW, EFFICIENCIES)
    truth = replace(PRIOR, share=0.9, share_sd=0.05, offset_sd=0.3, smooth_sd=0.02, scatter_sd=0.02)
    made = believe(explained, truth)
    covariance = made.covariance(made) + truth.scatter_sd**2 * np.eye(len(OPERATORS))
    draws = np.random.default_rng(0).multivariate_normal(made.mean, covariance, size=12)
    cases = [(explained, draw) for draw in draws]
    off = draws[0] - made.mean
    naive = -0.5 * (off @ np.linalg.inv(covariance) @ off + np.linalg.slogdet(covariance)[1])
    assert benchmark.log_density(cases[0], truth) == pytest.approx(naive)
    found = benchmark.likeliest(cases)
    assert found.share == pytest.approx(truth.share, abs=0.1)
    assert found.scatter_sd == pytest.approx(truth.scatter_sd, rel=0.2)
    assert found.offset_sd == pytest.approx(truth.offset_sd, rel=0.5)


def test_the_benchmark_judges_no_sum_that_holds_a_measured_operator(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "costmodel"))
    benchmark = importlib.import_module("transfer")
    times_s = np.array([1.0, 2.0, 4.0, 8.0])
    case = benchmark.Case(
        setting="old to new",
        what="matmul",
        source="old",
        target="new",
        here=benchmark.Table(operators=tuple(OPERATORS[:4]), times_s=times_s),
        there=benchmark.Table(operators=tuple(OPERATORS[:4]), times_s=times_s),
        sums=np.array([[0, 1], [1, 2], [2, 3]]),
        sum_of=lambda at, of: of[at].sum(axis=1),
    )
    wrong_s = np.array([100.0, 2.2, 4.4, 8.8])
    single, summed = benchmark.scored(case, "ours", [(wrong_s, [0])])
    assert (single["n"], summed["n"]) == (3, 2)
    assert single["mean"] == pytest.approx(0.1) and summed["mean"] == pytest.approx(0.1)
