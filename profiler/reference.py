"""A reference kernel: it tells whether the machine is disturbed.

A neighbour on the other half of a core, or a clock that is turned down, slows work without interrupting it: the
thread's own clock runs on. Measured on a shared 2-core Zen 3: a few seconds to a minute of 1.45 times as slow, at odd
moments, and two clock rates 9 % apart. A small fixed piece of work shows both. Whoever measures waits until it is about
as fast as it ever was, and throws away what was measured while it was not.
"""

import time
from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper

from blockwright.compile.engine import SessionSettings
from blockwright.compile.graph import Graph
from blockwright.compile.session import make_session

_ROWS, _INNER, _COLUMNS = 32, 512, 512  # 0.2 ms at 100 GFLOP/s; its 1 MiB comes from the last level of cache
_CALM = 1.05
"""Slower than at its best by more than this factor, the machine is disturbed."""
_RUNS_PER_LOOK, _RUNS_AT_FIRST = 40, 200
"""A core that has slept takes about ten runs to come to speed."""
_PAUSE_S = 0.05


class Reference:
    """The kernel, the least time it took so far, and how long one is ready to wait for that.

    Args:
        run: the work.
        least_s: the least time that it took before; infinity where that is unknown.
        patience_s: how long to wait in all, over all measurements that share this.
    """

    def __init__(self, run: Callable[[], object], least_s: float, patience_s: float) -> None:
        self.least_s = least_s
        self.patience_s = patience_s
        self._run = run

    def is_calm(self) -> bool:
        """Whether one of some runs takes about as long as the work ever did."""
        for _ in range(_RUNS_PER_LOOK):
            started = time.perf_counter()
            self._run()
            took_s = time.perf_counter() - started
            self.least_s = min(self.least_s, took_s)
            if took_s <= _CALM * self.least_s:
                return True
        return False

    def await_calm(self) -> bool:
        """Waits until the machine is calm or patience is at its end; tells which."""
        while not (is_calm := self.is_calm()) and self.patience_s > 0:
            time.sleep(_PAUSE_S)
            self.patience_s -= _PAUSE_S
        return is_calm


def make_reference(patience_s: float, least_s: float | None = None) -> Reference:
    """The reference kernel in ONNX Runtime, on one thread.

    Args:
        patience_s: how long to wait for a calm machine in all.
        least_s: what it took at its best when this machine was profiled; looks for it where that is unknown.
    """
    generator = np.random.default_rng(0)
    graph = Graph()
    graph.input("x", "float32", [_ROWS, _INNER])
    graph.constant("w", generator.standard_normal((_INNER, _COLUMNS), dtype=np.float32))
    graph.node("MatMul", ["x", "w"], "y")
    graph.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [_ROWS, _COLUMNS]))
    session = make_session(graph.model().SerializeToString(), SessionSettings(num_threads=1))
    x = generator.standard_normal((_ROWS, _INNER), dtype=np.float32)
    reference = Reference(lambda: session.run(None, {"x": x}), float("inf") if least_s is None else least_s, patience_s)
    for _ in range(_RUNS_AT_FIRST):
        reference.is_calm()
    return reference
