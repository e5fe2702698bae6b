"""Blocks and whole children in TensorRT on a GPU: plans as engines have them, with random weights.

A plan is built as `tensorrt_engine` builds for up to as many sequences as the load has: the same operators, formats,
slots and profiles, for other kernels would promise what no engine keeps. Each is built in a process of its own, opened,
and deleted; only the timing cache stays, which spares TensorRT timing the same kernels again. Inputs and caches are
torch's tensors, caches are updated where they lie, and what a run enqueues is captured as what torch launches is.

No plan of `InPlans` was run yet: no GPU was at hand. `InOnnxRuntime` takes its place on the CPU, where the same graph
computes in fp32.

Shapes: B batch, T new tokens, S slots, H KV heads, D head size or hidden size, V vocabulary.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from blockwright.compile.decoder import decoder_graph, stack_graph
from blockwright.compile.device_places import Places, make_cache
from blockwright.compile.engine import DATA_FILE, GRAPH_FILE, SessionSettings, write_graph
from blockwright.compile.session import make_session
from blockwright.compile.tensorrt_build import BuildRequest, build_apart
from blockwright.compile.tensorrt_checks import check_plan_size, expected_of, int4_bytes
from blockwright.compile.tensorrt_engine import PLAN_FILE, TIMING_FILE, flavour_of, takes_one_token, token_ranges
from blockwright.compile.tensorrt_executor import GpuExecutor
from blockwright.compile.tensorrt_package import Package
from blockwright.compile.tensorrt_stored import Stored, stored_for_tensorrt
from blockwright.compile.tensorrt_writing import DTYPES
from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.hw_profiles.profile import Backend, Point
from blockwright.profiler.gpu_bench import Opened
from blockwright.profiler.synthetic import RepeatedWeights
from blockwright.spec import FP16, Format, Model

Kind = Literal["stack", "whole"]
_GRAPHS = {"stack": stack_graph, "whole": decoder_graph}


class Network(Protocol):
    """So much of `tensorrt_executor.Executor` as is needed here."""

    inputs: frozenset[str]
    device: torch.device

    def bind(self, profile: int, tensors: Mapping[str, torch.Tensor]) -> Callable[[], None]: ...


class Opener(Protocol):
    """Makes a network of a model and opens it."""

    def stored(self, model: Model) -> Stored:
        """The model as its networks have it. Raises an InputError where they cannot."""
        ...

    def open(self, kind: Kind, stored: Stored, point: Point) -> Network:
        """Raises an InputError where that cannot be."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class InPlans:
    """Plans on the GPU at hand."""

    package: Package
    capabilities: tuple[str, ...]
    """Of that GPU."""
    folder: Path
    """What is built goes here for as long as it takes to open it; beside it stays the timing cache."""

    def stored(self, model: Model) -> Stored:
        return stored_for_tensorrt(model, None)

    def open(self, kind: Kind, stored: Stored, point: Point) -> Network:
        with _emptied(self.folder) as folder:
            return GpuExecutor(self.package, self.build(kind, stored, point, folder))

    def build(self, kind: Kind, stored: Stored, point: Point, folder: Path) -> Path:
        """The plan of a network with random weights, in a folder.

        Raises:
            InputError: TensorRT refuses it, cannot build it, multiplies its integers out, or was killed.
        """
        weight_bytes = _write(kind, stored, point, folder)
        request = BuildRequest(
            package=self.package.name,
            graph=str(folder / GRAPH_FILE),
            plan=str(folder / PLAN_FILE),
            capabilities=self.capabilities,
            profiles=token_ranges(point.slots, takes_one_token(self.package.name, stored, point.batch)),
            most_sequences=point.batch,
            expected=expected_of(stored.model),
            timing_cache=str(self.folder.with_name(TIMING_FILE)) if self.package.name == "tensorrt" else None,
        )
        build_apart(request, self.package)
        plan_bytes = (folder / PLAN_FILE).stat().st_size
        check_plan_size(plan_bytes, weight_bytes, int4_bytes(stored.model), len(request.profiles))
        return folder / PLAN_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class InOnnxRuntime:
    """The same graphs on the CPU, to try the code out."""

    folder: Path
    """As `InPlans`."""

    def stored(self, model: Model) -> Stored:
        return replace(stored_for_tensorrt(model, None), activations="float32")

    def open(self, kind: Kind, stored: Stored, point: Point) -> Network:
        with _emptied(self.folder) as folder:
            _write(kind, stored, point, folder)
            return OnCpu(folder / GRAPH_FILE)


class OnCpu:
    """A graph in ONNX Runtime on torch's tensors; caches are updated where they lie."""

    device = torch.device("cpu")

    def __init__(self, graph: Path | bytes) -> None:
        self._session = make_session(graph, SessionSettings(num_threads=1, accuracy_level=0), operators="onnxruntime")
        self.inputs = frozenset(each.name for each in self._session.get_inputs())
        self.outputs = frozenset(each.name for each in self._session.get_outputs())

    def bind(self, profile: int, tensors: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        """Runs the network at once. It has no profiles."""
        arrays, names = {name: tensor.numpy() for name, tensor in tensors.items()}, sorted(self.outputs)

        def run() -> None:
            found = self._session.run(names, {name: arrays[name] for name in self.inputs})
            for name, array in zip(names, found, strict=True):
                arrays[name.replace("present_", "past_")][...] = np.asarray(array)

        return run


class TensorRtRuntime:
    """A `gpu_bench.Runtime`.

    Args:
        weights: of all layers; the embedding and the head are in what TensorRT computes in.
        opener: makes and opens networks.
    """

    def __init__(self, weights: Format, opener: Opener) -> None:
        self.backend: Backend = "tensorrt"
        self.weights = weights
        self._opener = opener

    def open_stack(self, model: Model, points: Sequence[Point]) -> Opened:
        """From hidden state to hidden state."""
        return self._open("stack", model, points)

    def open_whole(self, model: Model, points: Sequence[Point]) -> Opened:
        """The choice of the next token is torch's, in the same graph."""
        return self._open("whole", model, points)

    def _open(self, kind: Kind, model: Model, points: Sequence[Point]) -> Opened:
        """One plan serves all points, which differ in their new tokens alone."""
        first = points[0]
        assert all((each.batch, each.slots) == (first.batch, first.slots) for each in points), "a plan has one of each"
        with _as_runtime_error():
            stored = self._opener.stored(model)
            network = self._opener.open(kind, stored, first)
        dtype = DTYPES[stored.activations]
        caches = make_cache(stored.model, first.batch, first.slots, dtype, network.device)
        for tensor in caches.values():
            tensor.normal_()
        net = _Net(kind=kind, model=stored.model, network=network, dtype=dtype, caches=caches)
        return lambda point: _run_of(net, point)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Net:
    """A network that is open, with caches that its runs share, as an engine has them once."""

    kind: Kind
    model: Model
    network: Network
    dtype: torch.dtype
    caches: Mapping[str, torch.Tensor]


def _run_of(net: _Net, point: Point) -> Callable[[], object]:
    """A run over tensors of its own beside the caches: one token over full ones, or a prompt into empty ones.

    That of a whole model is an engine's step: where its tokens stand is written by the device each time.
    """
    places, tensors = _prepare(net, point)
    starts_B, is_whole = _starts(point, net.network.device), net.kind == "whole"
    places.write(starts_B)
    with _as_runtime_error():
        enqueue = net.network.bind(_profile_of(point), tensors)

    def run() -> object:
        if is_whole:
            places.write(starts_B)
        with _as_runtime_error():
            enqueue()
        return tensors["logits"].argmax(-1) if is_whole else None

    return run


def _prepare(net: _Net, point: Point) -> tuple[Places, dict[str, torch.Tensor]]:
    """All inputs and outputs, with random hidden states and tokens, and what writes where these stand."""
    batch, num_tokens, device = point.batch, point.new_tokens, net.network.device
    places = Places(net.model, (batch, num_tokens, point.slots), net.network.inputs, device)
    tensors = places.inputs | dict(net.caches)
    if net.kind == "stack":
        hidden_BTD = torch.randn((batch, num_tokens, net.model.hidden_size), dtype=net.dtype, device=device)
        return places, tensors | {"hidden_in": hidden_BTD, "hidden_out": torch.empty_like(hidden_BTD)}
    tensors["ids"].random_(net.model.vocab_size)
    tensors["last"].fill_(num_tokens - 1)
    return places, tensors | {"logits": torch.empty((batch, net.model.vocab_size), device=device)}


def with_integer_rates(ceilings: Ceilings, formats: Sequence[Format]) -> Ceilings:
    """With rates of products with int4 weights, which TensorRT multiplies in fp16: times between widths go by these."""
    halves = ceilings.flop_per_s.get(FP16.name)
    if halves is None:
        return ceilings
    integers = replace(halves, origin="transferred", source=f"as of fp16, in which int4 is multiplied: {halves.source}")
    added = {str(weights): integers for weights in formats if weights.group_size is not None}
    return replace(ceilings, flop_per_s=ceilings.flop_per_s | added)


def _starts(point: Point, device: torch.device) -> torch.Tensor:
    start = 0 if point.new_tokens > 1 else point.slots - 1
    return torch.full((point.batch,), start, device=device)


def _write(kind: Kind, stored: Stored, point: Point, folder: Path) -> int:
    """Writes a network's graph, and gives the bytes of its weights."""
    flavour = flavour_of("fused", stored, point.slots)
    files = write_graph(stored.model, RepeatedWeights(stored.model), point.slots, flavour, folder, _GRAPHS[kind])
    return files[DATA_FILE].size_bytes


def _profile_of(point: Point) -> int:
    """Which of a plan's profiles, as `token_ranges` has them."""
    wanted = "prefill" if point.new_tokens > 1 else "decode"
    return next(index for index, each in enumerate(token_ranges(point.slots)) if each.name == wanted)


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """A folder in this one, which holds nothing else and is gone afterwards.

    After a kill the build may go on in its own process: what that writes has another name.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield Path(tempfile.mkdtemp(dir=folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _as_runtime_error() -> Iterator[None]:
    """What TensorRT refuses of a network is no fault of the order's: such a case fails, and the others go on."""
    try:
        yield
    except InputError as error:
        raise RuntimeError(str(error)) from error
