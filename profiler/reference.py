"""A reference kernel: it tells how fast the machine is at the moment.

A neighbour on the other half of a core or in the cache that cores share, or a clock that is turned down, slows work
without interrupting it: the thread's own clock runs on. A small fixed piece of work shows all three: a product that
stays in the core's own cache, and a larger matrix that is read once from the shared one. Whoever measures counts times
in units of it (see `clock`).
"""

from collections.abc import Callable

import numpy as np

from blockwright.compile.engine import SessionSettings
from blockwright.compile.graph import Graph
from blockwright.compile.session import make_session
from blockwright.profiler.clock import CALM, clock_for, sample

_ROWS, _INNER, _COLUMNS = 32, 512, 512
"""A product of 17 MFLOP over 1 MiB: 0.25 ms on a Zen 3."""
_STREAMED_COLUMNS = 4096
"""A vector by a matrix of 8 MiB: 0.25 ms there too, read from the last level of cache where that is large enough."""
_RUNS_PER_LOOK, _UNRECORDED, _LOOKS_AT_FIRST = 5, 2, 150
"""A core that has slept takes about ten runs to come to speed."""


class Reference:
    """The kernel, and what it takes at its best.

    Args:
        run: the work.
        least_s: what it took in the calmest stretch before; infinity where that is unknown.
    """

    def __init__(self, run: Callable[[], object], least_s: float) -> None:
        self.least_s = least_s
        self._run = run

    def look(self) -> float:
        """What the work takes now: the median of a few runs, in seconds, those that were interrupted left out."""
        for _ in range(_UNRECORDED):
            self._run()
        samples = [sample(self._run, 1, clock_for(1)) for _ in range(_RUNS_PER_LOOK)]
        clean = [time_s for time_s, is_clean in samples if is_clean]
        return float(np.median(clean if len(clean) > _RUNS_PER_LOOK // 2 else [time_s for time_s, _ in samples]))


def make_reference(least_s: float | None = None) -> Reference:
    """The reference kernel in ONNX Runtime, on one thread.

    Args:
        least_s: what it took at its best when this machine was profiled; looks for it where that is unknown.
    """
    generator = np.random.default_rng(0)
    graph = Graph()
    x = graph.input("x", "float32", [_ROWS, _INNER])
    v = graph.input("v", "float32", [1, _INNER])
    for name, (source, rows, columns) in {"y": (x, _ROWS, _COLUMNS), "z": (v, 1, _STREAMED_COLUMNS)}.items():
        graph.constant(f"w{name}", generator.standard_normal((_INNER, columns), dtype=np.float32))
        graph.output(graph.node("MatMul", [source, f"w{name}"], name), "float32", [rows, columns])
    session = make_session(graph.model().SerializeToString(), SessionSettings(num_threads=1))
    inputs = {
        name: generator.standard_normal((rows, _INNER), dtype=np.float32) for name, rows in (("x", _ROWS), ("v", 1))
    }
    reference = Reference(lambda: session.run(None, inputs), float("inf") if least_s is None else least_s)
    looks_s = [reference.look() for _ in range(_LOOKS_AT_FIRST if least_s is None else 1)]
    if least_s is None:
        reference.least_s = float(np.quantile(looks_s, CALM))
    return reference
