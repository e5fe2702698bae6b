"""A reference kernel: it tells how fast the machine is at the moment.

A neighbour on the other half of a core, or a clock that is turned down, slows work without interrupting it: the
thread's own clock runs on. Measured on a shared 2-core Zen 3: a few seconds to a minute of 1.45 times as slow, at odd
moments, and two clock rates 9 % apart. A small fixed piece of work shows both. Whoever measures waits until it is not
far from its best, counts times in units of it, and throws away what was measured while it changed.
"""

import time
from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper

from blockwright.compile.engine import SessionSettings
from blockwright.compile.graph import Graph
from blockwright.compile.session import make_session
from blockwright.profiler.clock import clock_for, sample

_ROWS, _INNER, _COLUMNS = 32, 512, 512  # 0.2 ms at 100 GFLOP/s; its 1 MiB comes from the last level of cache
_CALM = 1.15
"""Slower than at its best by more than this factor, the machine is disturbed: it is not only the clock."""
_RUNS_PER_LOOK, _UNRECORDED, _LOOKS_AT_FIRST = 9, 3, 200
"""A core that has slept takes about ten runs to come to speed."""
_PAUSE_S = 0.05


class Reference:
    """The kernel, what it takes at its best, and how long one is ready to wait for that.

    Args:
        run: the work.
        least_s: what it took at its best before; infinity where that is unknown.
        patience_s: how long to wait in all, over all measurements that share this.
    """

    def __init__(self, run: Callable[[], object], least_s: float, patience_s: float) -> None:
        self.least_s = least_s
        self.patience_s = patience_s
        self._run = run

    def look(self) -> float:
        """What the work takes now: the median of a few runs, in seconds, those that were interrupted left out."""
        for _ in range(_UNRECORDED):
            self._run()
        samples = [sample(self._run, 1, clock_for(1)) for _ in range(_RUNS_PER_LOOK)]
        clean = [time_s for time_s, is_clean in samples if is_clean]
        look_s = float(np.median(clean if len(clean) >= _RUNS_PER_LOOK // 2 else [time_s for time_s, _ in samples]))
        self.least_s = min(self.least_s, look_s)
        return look_s

    def is_calm(self, look_s: float) -> bool:
        """Whether that is not far from its best."""
        return look_s <= _CALM * self.least_s

    def await_calm(self) -> None:
        """Waits until the machine is calm or patience is at its end."""
        while not self.is_calm(self.look()) and self.patience_s > 0:
            time.sleep(_PAUSE_S)
            self.patience_s -= _PAUSE_S


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
    for _ in range(_LOOKS_AT_FIRST if least_s is None else 1):
        reference.look()
    return reference
