"""Runs a TensorRT plan on torch's tensors, once or recorded as a CUDA graph.

`GpuExecutor` was never run: no GPU was at hand. Everything that uses an `Executor` is tested on the CPU, where ONNX
Runtime executes the same graph and a tape stands for the CUDA graph.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from blockwright.compile.tensorrt_package import Package, in_words
from blockwright.errors import InputError

T = TypeVar("T")
_AHEAD_OF_TIME = "EAGER"
"""TensorRT-RTX compiles kernels for the shapes that it meets. When told nothing it does so beside the first runs, and
what a CUDA graph recorded then would be the slow kernels that stand in."""


class Executor(Protocol):
    """Runs a network whose inputs and outputs are tensors by name; caches are updated where they lie."""

    inputs: frozenset[str]
    outputs: frozenset[str]
    device: torch.device

    def bind(self, profile: int, tensors: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        """Ties tensors to the network's inputs and outputs; a cache ``past_…`` also serves as its ``present_…``.

        Returns:
            What enqueues one run on the current stream and does not wait. It keeps the tensors alive.
        """
        ...

    def recorded(self, step: Callable[[], None]) -> Callable[[], None]:
        """The same work as something to replay, on the current stream; it keeps alive what `step` keeps.

        `step` must have been run once before, and is not run here.
        """
        ...

    def on_stream(self, work: Callable[[], T]) -> T:
        """Does work with the executor's own stream as the current one: memory is made and enqueued on there."""
        ...

    def fetch(self, tensor: torch.Tensor) -> Callable[[], np.ndarray]:
        """Begins to copy a tensor to the host behind what is enqueued; what it returns waits for the copy."""
        ...

    def wait(self) -> None:
        """Waits for all that is enqueued."""
        ...


class GpuExecutor:
    """A plan in TensorRT, with an execution context for each profile."""

    def __init__(self, package: Package, plan: Path) -> None:
        trt, self._log = package.trt, package.new_log()
        self.device = torch.device("cuda")
        self._stream = torch.cuda.Stream()  # makes the context that TensorRT is to share
        self._runtime = trt.Runtime(self._log)
        self._engine = self._or_refused(self._runtime.deserialize_cuda_engine(plan.read_bytes()), str(plan))
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        is_input = trt.TensorIOMode.INPUT
        self.inputs = frozenset(name for name in names if self._engine.get_tensor_mode(name) == is_input)
        self.outputs = frozenset(names) - self.inputs
        self._contexts = [self._context(trt, profile) for profile in range(self._engine.num_optimization_profiles)]
        self._bound: dict[int, object] = {}
        """Whose addresses a context has, by profile."""

    def bind(self, profile: int, tensors: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        """Ties tensors to the network. Several may be bound to a profile; each run takes its own."""
        context, own = self._contexts[profile], object()

        def enqueue() -> None:
            if self._bound.get(profile) is not own:
                self._tie(context, tensors)
                self._bound[profile] = own
            stream = torch.cuda.current_stream().cuda_stream
            self._or_refused(context.execute_async_v3(stream) or None, "run")

        return enqueue

    def recorded(self, step: Callable[[], None]) -> Callable[[], None]:
        """The work as a CUDA graph; where that cannot be, the work itself, with a warning that says why."""
        graph = torch.cuda.CUDAGraph()
        try:
            for context in self._contexts:
                # Only TensorRT-RTX has this question; in TensorRT, networks of fixed shapes can be recorded.
                is_capturable = getattr(context, "is_stream_capturable", lambda stream: True)
                if not is_capturable(self._stream.cuda_stream):
                    raise RuntimeError("TensorRT allocates memory while it runs")
            with torch.cuda.graph(graph, stream=self._stream):
                step()
        except (RuntimeError, InputError) as error:  # CUDA's and torch's errors are RuntimeErrors
            said = str(error).splitlines()[0]
            warnings.warn(f"Every step is launched anew, not as a recorded CUDA graph: {said}", stacklevel=2)
            return step

        def replay(graph: torch.cuda.CUDAGraph = graph, step: Callable[[], None] = step) -> None:
            graph.replay()  # reads and writes what `step` keeps alive

        return replay

    def on_stream(self, work: Callable[[], T]) -> T:
        """Does work with the executor's own stream as the current one. TensorRT is slower on CUDA's default one."""
        with torch.cuda.stream(self._stream):
            return work()

    def fetch(self, tensor: torch.Tensor) -> Callable[[], np.ndarray]:
        """Copies into memory that does not move, so that the host need not wait."""
        host, copied = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True), torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            host.copy_(tensor, non_blocking=True)
            copied.record(self._stream)

        def wait() -> np.ndarray:
            copied.synchronize()
            return host.numpy()

        return wait

    def wait(self) -> None:
        """Waits for all that is enqueued."""
        self._stream.synchronize()

    def _tie(self, context: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            fits = context.set_tensor_address(name, tensor.data_ptr())
            if name in self.inputs:
                fits &= context.set_input_shape(name, tuple(tensor.shape))
            present = name.replace("past_", "present_")
            if present != name and present in self.outputs:  # the cache is updated where it lies
                fits &= context.set_tensor_address(present, tensor.data_ptr())
            self._or_refused(fits or None, name)

    def _context(self, trt: Any, profile: int) -> Any:
        strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:
            made = self._engine.create_execution_context()
        else:
            config = self._engine.create_runtime_config()
            config.dynamic_shapes_kernel_specialization_strategy = strategies.__members__[_AHEAD_OF_TIME]
            made = self._engine.create_execution_context(config)
        context = self._or_refused(made, "execution context")
        context.set_optimization_profile_async(profile, self._stream.cuda_stream)
        self._stream.synchronize()
        return context

    def _or_refused(self, made: Any, field: str) -> Any:
        if made is None:
            said = self._log.errors or ["nothing said"]
            raise InputError(
                field,
                got=in_words(said[-1]),
                expected="TensorRT to open and run the engine",
                remedy="Free GPU memory, or compile again on this machine.",
            )
        return made
