"""Packs everything that is to be measured for a parent into a kit for a device without torch or Blockwright.

A kit is a zip of ONNX graphs, a list of cases and a runner that needs Python, numpy and onnxruntime only
(`kit_runner.py`, beside the same `clock.py` that measures here). Graphs carry no weights: they point into files of
random numbers that the runner makes on the device, so a kit is small. What comes back is read by `kit_results.py`.
"""

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import onnx
from onnx import TensorProto, helper

from blockwright.compile.decoder import decoder_graph, stack_graph
from blockwright.compile.engine import SessionSettings
from blockwright.compile.graph import IR_VERSION, OPSET
from blockwright.compile.places import places, reach_by_mask
from blockwright.compile.session import session_entries
from blockwright.compile.slots import chunks_of, slots_for
from blockwright.cost import Load
from blockwright.hw_profiles.profile import Point
from blockwright.profiler.bench import COPIES, flavour_of, stacks_of
from blockwright.profiler.ceilings import CeilingCase, ceiling_cases
from blockwright.profiler.clock import Effort
from blockwright.profiler.measure import Case, MemoryCase, PartCase, Request, WholesCase, cases
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FFN, Attention, Format, Mixer, Model
from blockwright.strict import to_data

SCHEMA_VERSION = 2
"""Of version 2 on, results come with their digests."""
CEILING = "ceiling "
"""How the names of the cases of ceilings begin."""
_PAGE = 1 << 16
"""Places of tensors in the files of weights are multiples of this, as mapping them into memory asks for."""
_INLINE_BYTES = 1 << 10
"""Smaller constants stay in the graph: shapes and axes decide what the graph does."""
_KINDS: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.INT4: "bytes",
    TensorProto.INT8: "bytes",
    TensorProto.UINT8: "bytes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Binding:
    """What a graph is bound to: arrays that are given, shapes of random ones, and outputs that are written in place."""

    given: dict[str, np.ndarray]
    random: dict[str, list[int]]
    in_place: dict[str, str]


@dataclass(slots=True)
class _Writer:
    """A kit that is being written."""

    archive: zipfile.ZipFile
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes that the largest graph needs of each kind of weights."""
    num_graphs: int = 0

    def graph(self, proto: onnx.ModelProto, entries: dict[str, str], bindings: Sequence[_Binding]) -> dict[str, Any]:
        """Adds a graph without its weights, and what to bind it to, one after another."""
        name = f"{self.num_graphs:05d}"
        self.num_graphs += 1
        for kind, size in _without_weights(proto).items():
            self.sizes[kind] = max(size, self.sizes.get(kind, 0))
        self.archive.writestr(f"graphs/{name}.onnx", proto.SerializeToString())
        described: list[dict[str, Any]] = []
        for number, bound in enumerate(bindings):
            file = f"{name}-{number}.npz"
            with self.archive.open(f"graphs/{file}", "w") as stream:
                np.savez_compressed(stream, **bound.given)  # type: ignore[arg-type]
            described.append({"given": file, "random": bound.random, "in_place": bound.in_place})
        return {"file": f"{name}.onnx", "session": entries, "bindings": described}


@dataclass(frozen=True, slots=True, kw_only=True)
class KitOrder:
    """What a kit is to measure: what says which cases there are, so that results find theirs by name."""

    parent: Model
    mixers: tuple[Mixer, ...]
    ffns: tuple[FFN, ...]
    formats: tuple[Format, ...]
    loads: tuple[Load, ...]

    def cases(self, threads: int = 1) -> dict[str, Case]:
        """All cases by their names."""
        request = Request(
            parent=self.parent,
            mixers=self.mixers,
            ffns=self.ffns,
            formats=self.formats,
            loads=self.loads,
            session=SessionSettings(num_threads=threads),
            effort=Effort(),
        )
        return {case.name: case for case in cases(request)}


def write_kit(order: KitOrder, path: Path, on_case: Callable[[], object] = lambda: None) -> int:
    """Writes a kit, whole or not at all.

    Args:
        order: what to measure.
        path: the zip.
        on_case: called after each case.

    Returns:
        How many cases there are.

    Raises:
        InputError: the parent is too large to be measured as one graph.
    """
    partial = path.with_name(f".{path.name}.partial")
    written: list[dict[str, Any]] = []
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        writer = _Writer(archive=archive)
        for case in order.cases().values():
            written.append(_described(writer, case))
            on_case()
        written += [_ceiling(writer, case) for case in ceiling_cases()]
        contents = {
            "schema_version": SCHEMA_VERSION,
            "order": to_data(order),
            "cases": written,
            "empty": writer.graph(_empty_graph(), {}, [_Binding(given={}, random={"x": [1], "y": [1]}, in_place={})]),
            "weights": writer.sizes,
        }
        archive.writestr("cases.json", json.dumps(contents, indent=1))
        for module, name in (("kit_runner.py", "run.py"), ("clock.py", "blockwright/profiler/clock.py")):
            archive.writestr(name, (resources.files("blockwright.profiler") / module).read_text())
    os.replace(partial, path)
    return len(written)


def _ceiling(writer: _Writer, case: CeilingCase) -> dict[str, Any]:
    [output] = case.graph.outputs
    shape = [dimension.dim_value for dimension in output.type.tensor_type.shape.dim]
    bound = _Binding(given={}, random={"x": list(case.shape), output.name: shape}, in_place={})
    graph = writer.graph(case.graph.model(), session_entries(SessionSettings(num_threads=1)), [bound])
    return {"name": CEILING + case.name, "kind": "time", "graphs": [graph], "derive": []}


def _described(writer: _Writer, case: Case) -> dict[str, Any]:
    entries, derive, flavour = session_entries(case.bench.session), [], flavour_of(case.bench)
    match case:
        case PartCase(point=point):
            stacks = stacks_of(case.bench, case.variant)
            protos = [stack_graph(stack, random_weights(stack), point.slots, flavour) for stack in stacks]
            bindings = [[_stack_binding(proto, stack, point)] for proto, stack in zip(protos, stacks, strict=True)]
            derive = [[-1.0 / COPIES, 1.0 / COPIES]]
        case WholesCase(point=point, models=models):
            protos = [decoder_graph(model, random_weights(model), point.slots, flavour) for model in models]
            bindings = [[_model_binding(proto, model, point)] for proto, model in zip(protos, models, strict=True)]
        case MemoryCase(load=load, models=models):
            slots = slots_for(load.total_tokens)
            points = [Point(batch=load.batch, new_tokens=n, slots=slots) for n in (chunks_of(load.prompt_tokens)[0], 1)]
            protos = [decoder_graph(model, random_weights(model), load.total_tokens, flavour) for model in models]
            pairs = zip(protos, models, strict=True)
            bindings = [[_model_binding(proto, model, point) for point in points] for proto, model in pairs]
        case _:
            assert_never(case)
    return {
        "name": case.name,
        "kind": "memory" if isinstance(case, MemoryCase) else "time",
        "graphs": [writer.graph(proto, entries, bound) for proto, bound in zip(protos, bindings, strict=True)],
        "derive": derive,
    }


def _stack_binding(proto: onnx.ModelProto, model: Model, point: Point) -> _Binding:
    shape = [point.batch, point.new_tokens, model.hidden_size]
    return _binding(proto, model, point, given={}, random={"hidden_in": shape, "hidden_out": shape})


def _model_binding(proto: onnx.ModelProto, model: Model, point: Point) -> _Binding:
    ids_BT = np.arange(point.batch * point.new_tokens, dtype=np.int64).reshape(point.batch, -1) % model.vocab_size
    given = {"ids": ids_BT, "last": np.full(point.batch, point.new_tokens - 1, dtype=np.int64)}
    return _binding(proto, model, point, given, {"logits": [point.batch, model.vocab_size]})


def _binding(
    proto: onnx.ModelProto, model: Model, point: Point, given: dict[str, np.ndarray], random: dict[str, list[int]]
) -> _Binding:
    """New tokens are the last ones in the cache, as in `onnx_blocks`."""
    starts_B = np.full(point.batch, point.slots - point.new_tokens, dtype=np.int64)
    known = places(reach_by_mask(model), starts_B, point.new_tokens, np.arange(point.slots))
    declared = {value.name: value.type.tensor_type.elem_type for value in proto.graph.input}
    where = {
        name: np.asarray(value(), dtype=helper.tensor_dtype_to_np_dtype(declared[name]))
        for name, value in known.items()
        if name in declared
    }
    caches = {
        f"{word}_{index}": [point.batch, block.mixer.num_kv_heads, point.slots, model.head_dim]
        for index, block in enumerate(model.layers)
        if isinstance(block.mixer, Attention)
        for word in ("key", "value")
    }
    return _Binding(
        given=given | where,
        random=random | {f"past_{name}": shape for name, shape in caches.items()},
        in_place={f"present_{name}": f"past_{name}" for name in caches},
    )


def _without_weights(proto: onnx.ModelProto) -> dict[str, int]:
    """Points the graph's larger constants into files of weights, each at a place of its own.

    Returns:
        The bytes that each file needs.
    """
    sizes: dict[str, int] = {}
    for tensor in proto.graph.initializer:
        size = len(tensor.raw_data)
        if size < _INLINE_BYTES:
            continue
        kind = _KINDS[tensor.data_type]
        start = sizes.get(kind, 0)
        sizes[kind] = -(-(start + size) // _PAGE) * _PAGE
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", f"{kind}.bin"), ("offset", start), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
    return sizes


def _empty_graph() -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
