"""What is measured again: what matters most for whole models."""

from dataclasses import replace

import pytest

from blockwright.compile.engine import SessionSettings
from blockwright.hw_profiles.profile import Point
from blockwright.profiler.adaptive import Uncertainty, is_gain, next_cases, uncertainty_of
from blockwright.profiler.bench import Bench
from blockwright.profiler.clock import Effort, Timing
from blockwright.profiler.measure import PartCase, WholesCase
from blockwright.spec import FP32, Attention, GatedFFN, LinearFFN, Model

POINT = Point(batch=1, new_tokens=1, slots=64)


def _timing(calm_s: float, half_width_s: float) -> Timing:
    low_s, high_s = calm_s - half_width_s, calm_s + half_width_s
    return Timing(
        calm_s=calm_s,
        low_s=low_s,
        high_s=high_s,
        typical_s=calm_s,
        num_samples=9,
        num_rejected=0,
        clock="thread_cpu",
    )


@pytest.fixture
def bench(made_up_parent: Model) -> Bench:
    session = SessionSettings(num_threads=1)
    return Bench(backend="onnxruntime", weights=FP32, model=made_up_parent, session=session, effort=Effort())


def _cases(bench: Bench) -> tuple[PartCase, PartCase, PartCase, WholesCase]:
    variants = (Attention(num_kv_heads=4), GatedFFN(width=128), LinearFFN())
    attention, wide, linear = (PartCase(bench=bench, variant=each, point=POINT) for each in variants)
    return attention, wide, linear, WholesCase(bench=bench, models=(bench.model,) * 4, point=POINT)


def test_a_parts_share_is_how_often_it_occurs_times_its_half_width_beside_a_whole(bench: Bench) -> None:
    attention, wide, linear, wholes = _cases(bench)
    timed = [(attention, [_timing(2.0, 0.1)]), (wide, [_timing(3.0, 0.2)]), (linear, [_timing(1.0, 0.0)])]
    known = uncertainty_of([*timed, (wholes, [_timing(10.0, 0.4)] * 4)])
    # 3 layers; 1 mixer and 2 ffns, and nothing at all beside each
    assert known.of_cases[attention.name] == pytest.approx(3 / 2 * 0.1 / 10)
    assert known.of_cases[wide.name] == pytest.approx(3 / 3 * 0.2 / 10)
    assert known.of_cases[wholes.name] == pytest.approx(0.04 / 2)
    assert known.worst == pytest.approx((0.015**2 + 0.02**2 + 0.02**2) ** 0.5)


def test_points_without_whole_models_do_not_count(bench: Bench) -> None:
    attention, *_ = _cases(bench)
    assert uncertainty_of([(attention, [_timing(2.0, 1.0)])]).worst == 0.0


def test_only_what_has_more_than_its_part_of_the_target_is_measured_again(bench: Bench) -> None:
    attention, wide, linear, wholes = cases = _cases(bench)
    elsewhere = replace(attention, point=replace(POINT, slots=128))
    shares = {attention.name: 0.03, wide.name: 0.004, linear.name: 0.006, wholes.name: 0.0, elsewhere.name: 0.009}
    key, other = (("onnxruntime", "fp32", each.point) for each in (attention, elsewhere))
    known = Uncertainty(of_cases=shares, of_groups={key: 0.031, other: 0.009})
    assert next_cases([*cases, elsewhere], known, 0.01) == [attention, linear]
    assert next_cases([*cases, elsewhere], known, 0.05) == []


def test_a_round_that_takes_off_little_is_no_gain() -> None:
    before = Uncertainty(of_cases={}, of_groups={("a",): 0.02, ("b",): 0.01})
    assert is_gain(before, Uncertainty(of_cases={}, of_groups={("a",): 0.015, ("b",): 0.01}))
    assert not is_gain(before, Uncertainty(of_cases={}, of_groups={("a",): 0.0199, ("b",): 0.001}))
