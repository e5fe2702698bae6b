"""What to time of a machine by itself: operators of sizes that models are made of, spread evenly over their logarithms.

Each operator is timed in ONNX Runtime as engines run it, as a slope: a graph of 2n of them less one of n, divided by n.
Copies read weights, or caches, of their own, so that large matrices come from memory as they do when a model writes a
token; small ones stay near the core, as they do then.
Products of many rows are bound by arithmetic and need no more than one copy.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from blockwright.compile.engine import SessionSettings
from blockwright.compile.graph import Graph
from blockwright.compile.runtime import ort
from blockwright.compile.session import make_session
from blockwright.count import matrix_bytes
from blockwright.hw_profiles.profile import OperatorRow
from blockwright.profiler.clock import Effort, Samples, Timing, sample_in_turn
from blockwright.profiler.operators import Attend, Elementwise, Matmul
from blockwright.spec import FP32, Format

_SHAPES = ((128, 512), (512, 512), (1024, 1024), (1024, 4096))
_FEW_ROWS, _MANY_ROWS = (1, 2, 4, 8, 16, 32), (64, 128, 256, 512)
_FORMATS = (
    FP32,
    Format(name="int8", group_size=32),
    Format(name="int4", group_size=32),
    Format(name="int4", group_size=128),
)
_HEADS = ((8, 8, 64), (8, 2, 64), (16, 4, 128))
"""Heads, KV heads, head size."""
_BATCHES, _NEW_TOKENS, _CONTEXTS = (1, 4), (1, 16, 128), (64, 256, 1024)
_VALUES = (2**10, 2**13, 2**16, 2**19, 2**22)
_MOST_COPIES = 8
_MOST_FLOP = 3e9
"""Of the larger graph; beyond it an operator takes too long to be timed well in the time that there is."""
_DEFAULT_CACHE_BYTES = 2**25
"""Where the machine does not tell."""
_BEYOND = 2
"""Copies together are larger than the last cache by this factor, where so many are allowed."""
_STRIDE = 7
"""Shares no factor with the number of formats or heads, so that every start of the list has some of all."""

Operator = Matmul | Attend | Elementwise
_KINDS = {Matmul: "matmul", Attend: "attend", Elementwise: "elementwise"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GridCase:
    """Operators that one pair of graphs serves."""

    operators: tuple[Operator, ...]
    copies: int
    """n: in the smaller of the two graphs."""
    session: SessionSettings
    effort: Effort

    @property
    def name(self) -> str:
        """The same in every run."""
        first, last = self.operators[0], self.operators[-1]
        words = [f"{name} {value}" for name, value in asdict(first).items() if value == asdict(last)[name]]
        return f"{_KINDS[type(first)]} × {len(self.operators)} by {self.copies}: {', '.join(words)}"

    def sample(self) -> list[Samples]:
        """Times each operator here."""
        slope = np.array([-1.0, 1.0]) / self.copies
        sessions = [self._session_of(n) for n in (self.copies, 2 * self.copies)]
        return [
            sample_in_turn(
                [_run_of(session, operator) for session in sessions],
                self.effort,
                self.session.num_threads,
                derive=[slope],
            )[-1]
            for operator in self.operators
        ]

    def prepared(self) -> Callable[[], object]:
        """Builds the larger graph, and returns work that does nothing but run each operator in it once."""
        session = self._session_of(2 * self.copies)
        runs = [_run_of(session, operator) for operator in self.operators]
        return lambda: [run() for run in runs]

    def _session_of(self, copies: int) -> ort.InferenceSession:
        return make_session(_graph_of(self.operators[0], copies).model().SerializeToString(), self.session)

    def rows(self, timings: Sequence[Timing]) -> list[OperatorRow]:
        """What the timings say. An operator that was lost in the noise, and came out as nothing, is left out."""
        return [
            OperatorRow(
                backend="onnxruntime",
                kind=_KINDS[type(operator)],  # type: ignore[arg-type]
                fields=asdict(operator),
                time_s=timing.calm_s,
                low_s=max(timing.low_s, 0.0),
                high_s=timing.high_s,
                num_samples=timing.num_samples,
                num_rejected=timing.num_rejected,
                origin="measured",
            )
            for operator, timing in zip(self.operators, timings, strict=True)
            if timing.calm_s > 0
        ]


def grid_cases(session: SessionSettings, effort: Effort, cache_bytes: int | None) -> list[GridCase]:
    """The whole grid, those of one kind far apart, so that a part of it is of use as well."""
    cache = cache_bytes or _DEFAULT_CACHE_BYTES
    families = [list(_matmuls()), list(_attends()), [(Elementwise(num_values=n, bytes_per_value=4),) for n in _VALUES]]
    found = [
        GridCase(operators=small, copies=copies, session=session, effort=effort)
        for family in families
        for operators in family
        for copies in [_copies_of(operators[0], cache)]
        if (small := tuple(each for each in operators if 2 * copies * each.flop <= _MOST_FLOP))
    ]
    return [case for start in range(_STRIDE) for case in found[start::_STRIDE]]


def _matmuls() -> Iterator[tuple[Operator, ...]]:
    for inputs, outputs in _SHAPES:
        for weights in _FORMATS:
            for rows in (_FEW_ROWS, _MANY_ROWS):
                yield tuple(
                    Matmul(
                        rows=each,
                        inputs=inputs,
                        outputs=outputs,
                        weights=str(weights),
                        weight_bytes=matrix_bytes(inputs, outputs, weights),
                        bytes_per_value=4,
                    )
                    for each in rows
                )


def _attends() -> Iterator[tuple[Operator, ...]]:
    for num_heads, num_kv_heads, head_dim in _HEADS:
        for batch in _BATCHES:
            for context in _CONTEXTS:
                yield tuple(
                    Attend(
                        batch=batch,
                        new_tokens=new_tokens,
                        context=context,
                        num_heads=num_heads,
                        num_kv_heads=num_kv_heads,
                        head_dim=head_dim,
                        bytes_per_value=4,
                        kv_bytes_per_value=4,
                        is_causal=False,
                    )
                    for new_tokens in _NEW_TOKENS
                    if new_tokens <= context
                )


def _copies_of(operator: Operator, cache_bytes: int) -> int:
    match operator:
        case Matmul(rows=rows, weight_bytes=own_bytes):
            if rows > _FEW_ROWS[-1]:
                return 1
        case Attend():
            own_bytes = operator.num_bytes
        case Elementwise():
            own_bytes = operator.num_bytes
    return int(np.clip(_BEYOND * cache_bytes // own_bytes, 1, _MOST_COPIES))


def _graph_of(operator: Operator, copies: int) -> Graph:
    """Copies side by side, each with an output of its own so that none is left out; the number of rows stays open."""
    graph = Graph()
    generator = np.random.default_rng(0)
    match operator:
        case Matmul(inputs=inputs, outputs=outputs):
            weights = next(each for each in _FORMATS if str(each) == operator.weights)
            x = graph.input("x", "float32", ["rows", inputs])
            for index in range(copies):
                matrix = generator.standard_normal((inputs, outputs), dtype=np.float32)
                graph.node("MatMul", [x, graph.matrix(f"w{index}", matrix, weights)], f"y{index}")
                graph.output(f"y{index}", "float32", ["rows", outputs])
        case Attend():
            query = graph.input("q", "float32", ["batch", operator.num_heads, "tokens", operator.head_dim])
            mask = graph.input("mask", "bool", ["batch", 1, "tokens", "slots"])
            for index in range(copies):
                shape = ["batch", operator.num_kv_heads, "slots", operator.head_dim]
                caches = [graph.input(f"{word}{index}", "float32", shape) for word in "kv"]
                name = graph.node("Attention", [query, *caches, mask], f"y{index}", scale=operator.head_dim**-0.5)
                graph.output(name, "float32", ["batch", operator.num_heads, "tokens", operator.head_dim])
        case Elementwise():
            x = graph.input("x", "float32", [operator.num_values // 3])
            for index in range(copies):
                other = graph.input(f"c{index}", "float32", [operator.num_values // 3])
                graph.output(graph.node("Add", [x, other], f"y{index}"), "float32", [operator.num_values // 3])
    return graph


def _run_of(session: ort.InferenceSession, operator: Operator) -> Callable[[], object]:
    """A graph bound to buffers for one operator's sizes."""
    generator, binding = np.random.default_rng(1), session.io_binding()
    sizes = asdict(operator)
    sizes |= {"tokens": sizes.get("new_tokens"), "slots": sizes.get("context")}
    held: list[ort.OrtValue] = []
    for declared in (*session.get_inputs(), *session.get_outputs()):
        shape = [sizes[each] if isinstance(each, str) else each for each in declared.shape]
        is_mask = declared.type == "tensor(bool)"
        array = np.ones(shape, dtype=bool) if is_mask else generator.standard_normal(shape, dtype=np.float32)
        held.append(ort.OrtValue.ortvalue_from_numpy(array))
        is_input = len(held) <= len(session.get_inputs())
        (binding.bind_ortvalue_input if is_input else binding.bind_ortvalue_output)(declared.name, held[-1])

    def run() -> list[ort.OrtValue]:
        session.run_with_iobinding(binding)
        return held  # the runtime itself keeps no hold on the buffers

    return run
