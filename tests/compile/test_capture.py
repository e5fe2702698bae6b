"""What holds while a CUDA graph is captured, and what outlives all that runs."""

import gc
import weakref
from types import SimpleNamespace

import pytest

from blockwright.compile.capture import no_collection
from blockwright.compile.tensorrt_package import Package


class _Circle:
    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("is_on", [True, False])
def test_circles_go_before_a_capture_or_behind_it(is_on: bool) -> None:
    before = weakref.ref(_Circle())
    (gc.enable if is_on else gc.disable)()
    try:
        with pytest.raises(RuntimeError), no_collection():
            assert before() is None and not gc.isenabled()
            meanwhile = weakref.ref(_Circle())
            _ = [[index] for index in range(10_000)]  # would start a collection
            assert meanwhile() is not None
            raise RuntimeError
        assert gc.isenabled() == is_on
    finally:
        gc.enable()


def test_all_that_runs_in_a_process_writes_to_one_logger() -> None:
    class Logger:
        ERROR, WARNING = 1, 2

    def package() -> Package:
        return Package(name="tensorrt_rtx", version="1.7.1", trt=trt)

    trt = SimpleNamespace(ILogger=Logger)
    log = package().shared_log()
    assert package().shared_log() is log and package().new_log() is not log
    log.log(Logger.ERROR, "it fails")
    log.log(Logger.WARNING, "it is slow")
    assert (log.errors, log.warnings) == (["it fails"], ["it is slow"])
    trt = SimpleNamespace(ILogger=Logger)
    assert package().shared_log() is not log
