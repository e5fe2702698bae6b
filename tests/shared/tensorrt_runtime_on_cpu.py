"""TensorRT's runtime and so much of CUDA as `GpuExecutor` asks of them, on the CPU: ONNX Runtime on bare addresses.

It refuses what TensorRT or CUDA would: a run without a workspace, a profile or an address, and touching a context while
a graph is captured. What it cannot show is how real ones fail.

TensorRT-RTX's compiles a kernel for each profile and number of tokens that it meets, and has a cache of these.
"""

import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from blockwright.compile.session import DTYPES
from blockwright.compile.tensorrt_package import Package
from onnxruntime_executor import Tape

WORKSPACE_BYTES = 4096


class World:
    """What happens, and how to let it fail."""

    def __init__(self, graph: bytes, is_rtx: bool) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.is_rtx = is_rtx
        self.contexts: list[Context] = []
        self.tape: Tape | None = None
        self.fails: str | None = None
        """The call that TensorRT refuses from now on."""
        self.is_capturable = True
        self.num_replays = 0
        self.gpu = "a GPU"
        """Whose kernels are taken from a cache, and no other's."""
        self.num_compiled = 0
        self.num_serialised = 0
        self.configs: list[RuntimeConfig] = []

    def package(self) -> Package:
        strategies = SimpleNamespace(__members__={"EAGER": "eager"}) if self.is_rtx else None
        trt = SimpleNamespace(
            Runtime=lambda log: SimpleNamespace(
                deserialize_cuda_engine=lambda data: self.or_none("open", Engine(self))
            ),
            TensorIOMode=SimpleNamespace(INPUT="input"),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="ours"),
            ILogger=_Logger,
        )
        if strategies is not None:
            trt.DynamicShapesKernelSpecializationStrategy = strategies
        return Package(name="tensorrt_rtx" if self.is_rtx else "tensorrt", version="0", trt=trt)

    def or_none(self, call: str, made: Any) -> Any:
        if self.fails != call:
            return made
        _Logger.last.log(_Logger.ERROR, f"Error Code 1: {call} is refused")
        return None


class _Logger:
    ERROR, WARNING = 1, 2
    last: Any

    def __init__(self) -> None:
        _Logger.last = self

    def log(self, severity: int, msg: str) -> None: ...


class Engine:
    """An opened plan."""

    num_optimization_profiles = 2
    device_memory_size_v2 = WORKSPACE_BYTES

    def __init__(self, world: World) -> None:
        self.world = world
        self.inputs = [each.name for each in world.session.get_inputs()]
        self.names = [*self.inputs, *(each.name for each in world.session.get_outputs())]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def create_runtime_config(self) -> "RuntimeConfig":
        assert self.world.is_rtx
        self.world.configs.append(RuntimeConfig(self.world))
        return self.world.configs[-1]

    def create_execution_context(self, asked: Any) -> Any:
        memory = asked.memory if self.world.is_rtx else asked
        assert memory == "ours"
        context = Context(self, asked if self.world.is_rtx else None)
        self.world.contexts.append(context)
        return self.world.or_none("context", context)


class RuntimeConfig:
    """What TensorRT-RTX's contexts are made with."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dynamic_shapes_kernel_specialization_strategy = "lazy"
        self.memory = self.cache = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.memory = strategy

    def create_runtime_cache(self) -> Any:
        return self.world.or_none("cache", RuntimeCache(self.world))

    def set_runtime_cache(self, cache: Any) -> bool:
        assert isinstance(cache, RuntimeCache)
        self.cache = cache
        return True


class RuntimeCache:
    """TensorRT-RTX's compiled kernels."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kernels: set[tuple[int | None, int]] = set()

    def serialize(self) -> Any:
        """A buffer, as TensorRT's memory is, and no bytes."""
        self.world.num_serialised += 1
        data = json.dumps([self.world.gpu, *sorted(self.kernels, key=str)]).encode()
        return self.world.or_none("serialise", np.frombuffer(data, dtype=np.uint8))

    def deserialize(self, blob: bytes) -> bool:
        gpu, *kernels = json.loads(blob)
        if gpu != self.world.gpu:
            return False
        self.kernels |= {(profile, num_tokens) for profile, num_tokens in kernels}
        return True


class Context:
    """An execution context."""

    def __init__(self, engine: Engine, config: RuntimeConfig | None) -> None:
        self.engine, self.world = engine, engine.world
        self.specialisation = None if config is None else config.dynamic_shapes_kernel_specialization_strategy
        self.kernels = None if config is None else RuntimeCache(self.world) if config.cache is None else config.cache
        self.profile: int | None = None
        self.memory: tuple[int, int] | None = None
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.num_runs, self.num_ties_after_run, self.was_captured = 0, 0, False
        if self.world.is_rtx:
            self.is_stream_capturable = lambda stream: self.world.is_capturable

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory and size >= self.engine.device_memory_size_v2
        self.memory = (memory, size)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return self.world.or_none("profile", True) is not None

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._tied()
        self.addresses[name] = address
        return self.world.or_none("address", name in self.engine.names) is not None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._tied()
        self.shapes[name] = shape
        return self.world.or_none("shape", name in self.engine.inputs) is not None

    def execute_async_v3(self, stream: int) -> bool:
        assert self.memory and self.profile is not None and set(self.addresses) == set(self.engine.names)
        if self.world.or_none("run", True) is None:
            return False
        if self.world.tape is not None:
            assert self.num_runs, "to be run once before it is captured"
            self.was_captured = True
            self.world.tape.calls.append(self._run)
        kernel = (self.profile, self.shapes["ids"][1])
        if self.kernels is not None and kernel not in self.kernels.kernels:
            assert self.world.tape is None, "a kernel is compiled while a graph is captured"
            self.world.num_compiled += 1
            self.kernels.kernels.add(kernel)
        self._run()
        self.num_runs += 1
        return True

    def _tied(self) -> None:
        assert self.world.tape is None, "a context is left alone while a graph is captured"
        assert not self.was_captured, "and after that: the graph reads what it points to"

    def _run(self) -> None:
        types = {each.name: DTYPES[each.type] for each in self.world.session.get_inputs()}
        given = {name: _at(self.addresses[name], self.shapes[name], types[name]) for name in self.engine.inputs}
        outputs = [name for name in self.engine.names if name not in self.engine.inputs]
        for name, array in zip(outputs, self.world.session.run(outputs, given), strict=True):
            made = np.asarray(array)
            _at(self.addresses[name], made.shape, made.dtype.type)[...] = made


def _at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    there: Any = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(there, dtype=dtype).reshape(shape)


def pretend_cuda(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torch's calls for streams, events and graphs work on the CPU."""
    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: None)
    empty: Callable[..., torch.Tensor] = torch.empty
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda given: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: _Graph(world))
    monkeypatch.setattr(torch.cuda, "graph", _captured)
    monkeypatch.setattr(
        torch.cuda, "Event", lambda: SimpleNamespace(record=lambda given: None, synchronize=lambda: None)
    )
    monkeypatch.setattr(torch, "empty", lambda *sizes, pin_memory=False, **how: empty(*sizes, **how))


class _Graph:
    """Captured while it runs, as nothing can be captured without on a CPU; so its first replay does nothing."""

    def __init__(self, world: World) -> None:
        self.world, self.tape, self.was_run = world, Tape(), True

    def replay(self) -> None:
        self.world.num_replays += 1
        if self.was_run:
            self.was_run = False
        else:
            self.tape.replay()


@contextmanager
def _captured(graph: _Graph, stream: Any, capture_error_mode: str) -> Iterator[None]:
    assert capture_error_mode == "thread_local" and stream.cuda_stream == 7
    graph.world.tape = graph.tape
    try:
        with graph.tape:
            yield
    finally:
        graph.world.tape = None
