"""What of the GPU's own device can be tried without one."""

import weakref

import pytest

from blockwright.profiler.gpu_device import _kept_busy


@pytest.mark.parametrize(
    ("times_s", "runs_before"),
    [([1e-4, 1e-4, 1e-4], [1, 2, 3]), ([0.1, 0.1, 0.1], [1, 1, 1]), ([0.1, 1e-3, 0.1], [1, 1, 2])],
)
def test_short_work_is_timed_behind_the_same_work(times_s: list[float], runs_before: list[int]) -> None:
    runs, seen, times = list[str](), list[int](), iter(times_s)

    def timed() -> float:
        seen.append(len(runs))
        return next(times)

    sample = _kept_busy(lambda: runs.append("run"), timed, object())
    assert [sample() for _ in times_s] == times_s
    assert seen == runs_before


def test_work_lives_as_long_as_its_sample() -> None:
    class Work:
        pass

    work = Work()
    alive = weakref.ref(work)
    sample = _kept_busy(lambda: None, lambda: 1.0, work)
    del work
    assert alive() is not None and sample() == 1.0
    del sample
    assert alive() is None
