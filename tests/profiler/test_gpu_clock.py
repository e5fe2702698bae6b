"""The GPU's clock against a made-up device whose time stands still but for its samples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, repeat

import numpy as np
import pytest

from blockwright.hw_profiles.gpu_state import GpuState, gpu_state
from blockwright.hw_profiles.machine import Machine
from blockwright.profiler.gpu_clock import (
    GpuClock,
    GpuEffort,
    Look,
    Sample,
    drift_between,
    local_drift,
    num_copies,
    relative_half_width,
    slope_of,
    stop_reason,
)

FAST = GpuState(sm_hz=2e9, celsius=50.0, used_bytes=0, throttles=())
SLOW = replace(FAST, sm_hz=1e9)
EFFORT = GpuEffort(limit_s=0.5, warm_up_s=0.2)


class MadeUp:
    """A device whose samples, states and time are given; it remembers what it was asked."""

    cache_bytes = 100

    def __init__(self, states: Iterator[GpuState | None] | None = None) -> None:
        self.time_s, self.pauses, self.num_samples = 0.0, [], 0
        self._states = states or repeat(FAST)

    def sample_of(self, times_s: Sequence[float]) -> Sample:
        values = cycle(times_s)

        def sample() -> float:
            self.num_samples += 1
            taken_s = next(values)
            self.time_s += taken_s
            return taken_s

        return sample

    def ready(self, run: Callable[[], object]) -> Sample:
        raise NotImplementedError

    def state(self) -> GpuState | None:
        return next(self._states)

    def now_s(self) -> float:
        return self.time_s

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


def test_equal_samples_end_at_the_least_number_for_their_interval() -> None:
    device = MadeUp()
    timing = GpuClock(device, EFFORT, 2e9).time(device.sample_of([1e-3]))
    assert (timing.median_s, timing.num_samples, timing.stopped) == (1e-3, 10, "interval")
    assert device.num_samples == 200 + 10  # 200 ms of warm-up


def test_warm_up_is_three_calls_even_where_each_is_long() -> None:
    device = MadeUp()
    GpuClock(device, EFFORT, None).time(device.sample_of([1.0]))
    assert device.num_samples == 3 + 10


def test_noise_that_does_not_narrow_ends_as_settled() -> None:
    device = MadeUp()
    timing = GpuClock(device, replace(EFFORT, limit_s=1e9), None).time(device.sample_of([1.0, 2.0]))
    assert (timing.stopped, timing.num_samples) == ("settled", 20)


def test_time_that_is_up_ends_but_not_below_the_least_samples() -> None:
    times = list(np.linspace(1.0, 2.0, 10))
    assert stop_reason(times[:9], 99.0, EFFORT) is None
    assert stop_reason(times, 0.4, EFFORT) is None
    assert stop_reason(times, 0.5, EFFORT) == "timeout"


def test_the_half_width_is_that_of_many_medians() -> None:
    generator = np.random.default_rng(0)
    samples = generator.normal(1.0, 0.1, (2000, 100))
    claimed = np.mean([relative_half_width(list(each)) for each in samples])
    assert claimed == pytest.approx(1.96 * np.median(samples, axis=1).std(), rel=0.1)


def test_samples_at_a_low_clock_are_thrown_away_after_a_pause() -> None:
    device = MadeUp(iter([FAST, SLOW, FAST, FAST]))
    timing = GpuClock(device, EFFORT, 2e9).time(device.sample_of([1e-3]))
    assert (timing.num_samples, timing.num_rejected, timing.is_slow_clock) == (10, 10, False)
    assert len(device.pauses) == 1


def test_a_clock_that_stays_low_marks_the_timing() -> None:
    device = MadeUp(repeat(SLOW))
    timing = GpuClock(device, EFFORT, 2e9).time(device.sample_of([1e-3]))
    assert (timing.num_rejected, timing.is_slow_clock, len(device.pauses)) == (20, True, 2)


def test_three_quarters_of_the_reference_clock_are_enough() -> None:
    device = MadeUp(repeat(replace(FAST, sm_hz=1.5e9)))
    assert GpuClock(device, EFFORT, 2e9).time(device.sample_of([1e-3])).num_rejected == 0


def test_a_throttle_before_or_after_marks_the_timing() -> None:
    device = MadeUp(iter([replace(FAST, throttles=("power_cap",)), replace(FAST, celsius=80.0)]))
    timing = GpuClock(device, EFFORT, 2e9).time(device.sample_of([1e-3]))
    assert (timing.throttles, timing.celsius, timing.num_samples) == (("power_cap",), 80.0, 10)


def test_a_sample_of_many_parts_gives_the_time_of_one() -> None:
    device = MadeUp(repeat(None))
    timing = GpuClock(device, EFFORT, 2e9).time(device.sample_of([8e-3]), parts=4)
    assert (timing.median_s, timing.low_s, timing.high_s, timing.sm_hz) == (2e-3, 2e-3, 2e-3, None)


def test_a_slope_is_the_larger_less_the_smaller() -> None:
    device = MadeUp()
    assert slope_of(device.sample_of([3.0]), device.sample_of([5.0]))() == 2.0


@pytest.mark.parametrize(
    ("weight_bytes", "copies"), [(1000, 1), (500, 1), (499, 2), (100, 5), (99, 6), (1, 500), (0, 500)]
)
def test_copies_fill_five_caches(weight_bytes: int, copies: int) -> None:
    assert num_copies(weight_bytes, 100) == copies


def test_copies_end_where_capturing_takes_longer_than_timing() -> None:
    assert num_copies(1, 2**30) == 512


def test_drift_is_divided_out_around_a_case() -> None:
    looks = [Look(position=8 * index, time_s=1.0 if index < 10 else 1.1) for index in range(16)]
    assert local_drift(looks, 5) == pytest.approx(1.0)
    assert local_drift(looks, 120) == pytest.approx(1.1)


def test_one_disturbed_look_moves_nothing() -> None:
    looks = [Look(position=8 * index, time_s=9.0 if index == 5 else 1.0) for index in range(16)]
    assert all(local_drift(looks, position) == 1.0 for position in range(128))


def test_without_looks_there_is_no_drift() -> None:
    assert local_drift([], 3) == 1.0


def test_repeats_tell_what_changed_either_way() -> None:
    drift = drift_between([1.0, 2.0, 4.0, 0.0], [1.1, 1.8, 4.0, 1.0])
    assert drift is not None
    assert (drift.num_repeated, drift.median, drift.worst) == (3, pytest.approx(0.1), pytest.approx(0.1))
    assert drift_between([], []) is None


def _machine(answers: dict[str, str]) -> Machine:
    def run(command: str) -> str | None:
        return next((text for word, text in answers.items() if word in command), None)

    return Machine(system="Linux", architecture="x86_64", num_usable_cores=1, read=lambda _: None, run=run)


def test_the_driver_tells_clock_heat_memory_and_what_holds_the_clock() -> None:
    state = gpu_state(_machine({"clocks_event_reasons": "1980, 41, 1024, 0x0000000000000064"}))
    assert state == GpuState(
        sm_hz=1.98e9,
        celsius=41.0,
        used_bytes=2**30,
        throttles=("power_cap", "thermal_software", "thermal_hardware"),
    )


def test_an_older_driver_is_asked_in_its_own_words() -> None:
    state = gpu_state(_machine({"clocks_throttle_reasons": "[N/A], 41, 0, 0x0000000000000001"}))
    assert state == GpuState(sm_hz=None, celsius=41.0, used_bytes=0, throttles=())


def test_reasons_that_are_not_told_are_none() -> None:
    state = gpu_state(_machine({"clocks_event_reasons": "1980, 41, 0, [Not Supported]"}))
    assert state is not None and state.throttles == ()


def test_without_a_driver_there_is_no_state() -> None:
    assert gpu_state(_machine({})) is None
