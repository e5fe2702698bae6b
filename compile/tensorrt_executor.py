"""Runs a TensorRT plan on torch's tensors, once or recorded as a CUDA graph.

`GpuExecutor` was never run: no GPU was at hand. Everything that uses an `Executor` is tested on the CPU, where ONNX
Runtime executes the same graph and a tape stands for the CUDA graph.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from blockwright.compile.capture import no_collection
from blockwright.compile.tensorrt_package import Package, in_words, no_start
from blockwright.compile.tensorrt_runtime_cache import RuntimeCache
from blockwright.errors import InputError

T = TypeVar("T")
_AT_ONCE = "EAGER"
"""TensorRT-RTX compiles kernels for the shapes that it meets, when told nothing beside the first runs, in which slow
ones stand in. A CUDA graph would record these; a prompt, whose length may not come again, does not wait for others."""


class Executor(Protocol):
    """Runs a network whose inputs and outputs are tensors by name; caches are updated where they lie."""

    inputs: frozenset[str]
    outputs: frozenset[str]
    device: torch.device

    def bind(self, profile: int, tensors: Mapping[str, torch.Tensor], is_passing: bool = False) -> Callable[[], None]:
        """Ties tensors to the network's inputs and outputs; a cache ``past_…`` also serves as its ``present_…``.

        Args:
            profile: one of the plan's.
            tensors: by name.
            is_passing: runs will be few and are not to be recorded; costs less to begin with.

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


@contextmanager
def cuda_errors_told() -> Iterator[None]:
    """Tells what CUDA fails with as bad input.

    Raises:
        InputError: the GPU's memory is too small, or it failed in what was enqueued.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            "GPU memory",
            got=str(error).splitlines()[0],
            expected="room for the engine, its caches and what it computes with",
            remedy="Free memory, or compile with a shorter --context or a smaller --batch.",
        ) from error
    except torch.AcceleratorError as error:
        raise InputError(
            "GPU",
            got=str(error).splitlines()[0],
            expected="a GPU that runs the engine",
            remedy="Try once more in a new process; where it fails again, compile the engine again on this machine.",
        ) from error


class GpuExecutor:
    """A plan in TensorRT. All that it runs shares one workspace, for nothing runs side by side.

    What is to be recorded has an execution context of its own, at addresses that stay; graphs of the same run share it,
    and are replayed one after the other. All else shares one for each profile, which is tied anew where another ran
    last.
    """

    def __init__(self, package: Package, plan: Path, device: str = "cuda", cache: RuntimeCache | None = None) -> None:
        self._trt, self._log = package.trt, package.shared_log()
        self.device = torch.device(device)
        with cuda_errors_told():
            self._stream = torch.cuda.Stream()  # makes CUDA's context, which TensorRT is to share
        self._runtime = _runtime(package, self._log)
        self._engine = self._asked(str(plan), lambda: self._runtime.deserialize_cuda_engine(plan.read_bytes()))
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        is_input = self._trt.TensorIOMode.INPUT
        self.inputs = frozenset(name for name in names if self._engine.get_tensor_mode(name) == is_input)
        self.outputs = frozenset(names) - self.inputs
        num_bytes = self._engine.device_memory_size_v2
        with cuda_errors_told():
            make = lambda: torch.empty(max(1, num_bytes), dtype=torch.uint8, device=self.device)  # noqa: E731
            self._workspace = self.on_stream(make)
        self._shared: dict[int, Any] = {}
        """Contexts by profile."""
        self._tied: dict[int, object] = {}
        """Whose addresses a shared context has."""
        self._allocates_while_running = False
        # Contexts go before what they were made with: attributes go in this order, and `bind` keeps to it.
        self._configs: dict[bool, Any] = {}
        """Of TensorRT-RTX, by whether their contexts are to be recorded."""
        self._cache = RuntimeCache() if cache is None else cache

    def bind(self, profile: int, tensors: Mapping[str, torch.Tensor], is_passing: bool = False) -> Callable[[], None]:
        """Ties tensors to the network: now where it may be recorded, else when it runs and another ran before."""
        kept = dict(tensors)
        if is_passing:
            return self._passing(profile, kept)
        context = self._context(profile, is_recorded=True)
        self._tie(context, kept)
        # Only TensorRT-RTX has this question; in TensorRT, networks of fixed shapes can be recorded.
        is_capturable = getattr(context, "is_stream_capturable", lambda stream: True)
        self._allocates_while_running |= not is_capturable(self._stream.cuda_stream)
        return lambda kept=kept, context=context: self._enqueue(context)

    def _passing(self, profile: int, tensors: dict[str, torch.Tensor]) -> Callable[[], None]:
        own = object()

        def enqueue() -> None:
            if profile not in self._shared:
                self._shared[profile] = self._context(profile, is_recorded=False)
            if self._tied.get(profile) is not own:
                self._tied.pop(profile, None)  # should tying end half-way
                self._tie(self._shared[profile], tensors)
                self._tied[profile] = own
            self._enqueue(self._shared[profile])

        return enqueue

    def recorded(self, step: Callable[[], None]) -> Callable[[], None]:
        """The work as a CUDA graph; where that cannot be, the work itself, with a warning that says why."""
        graph = torch.cuda.CUDAGraph()
        try:
            if self._allocates_while_running:
                raise RuntimeError("TensorRT allocates memory while it runs")
            with no_collection(), torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                step()
        except (RuntimeError, InputError) as error:  # CUDA's and torch's errors are RuntimeErrors
            said = str(error).splitlines()[0]
            words = "Every step is launched anew, not as a recorded CUDA graph; a new process may do better"
            warnings.warn(f"{words}: {said}", stacklevel=2)
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

    def _enqueue(self, context: Any) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        self._asked("run", lambda: context.execute_async_v3(stream))

    def _tie(self, context: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            self._asked(name, lambda name=name, tensor=tensor: context.set_tensor_address(name, tensor.data_ptr()))
            if name in self.inputs:
                shape = tuple(tensor.shape)
                self._asked(name, lambda name=name, shape=shape: context.set_input_shape(name, shape))
            present = name.replace("past_", "present_")
            if present != name and present in self.outputs:  # the cache is updated where it lies
                where = tensor.data_ptr()
                self._asked(present, lambda name=present, where=where: context.set_tensor_address(name, where))

    def _context(self, profile: int, is_recorded: bool) -> Any:
        """A context that computes in the shared workspace."""
        ours = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        strategies = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is not None and is_recorded not in self._configs:  # TensorRT-RTX, which compiles on the device
            config = self._configs[is_recorded] = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(ours)
            if is_recorded:
                config.dynamic_shapes_kernel_specialization_strategy = strategies.__members__[_AT_ONCE]
            self._cache.attach(config)
        how = self._configs.get(is_recorded, ours)
        context = self._asked("execution context", lambda: self._engine.create_execution_context(how))
        context.set_device_memory(self._workspace.data_ptr(), self._workspace.numel())
        stream = self._stream.cuda_stream
        self._asked("profile", lambda: context.set_optimization_profile_async(profile, stream))
        self._stream.synchronize()
        return context

    def _asked(self, field: str, call: Callable[[], Any]) -> Any:
        """What TensorRT answers, or what it said meanwhile, as an error."""
        self._log.errors.clear()
        answer = call()
        if answer is None or answer is False:
            said = self._log.errors or ["nothing said"]
            raise InputError(
                field,
                got=in_words(said[-1]),
                expected="TensorRT to open and run the engine",
                remedy="Free GPU memory, or compile again on this machine.",
            )
        return answer


def _runtime(package: Package, log: Any) -> Any:
    log.errors.clear()
    try:
        return package.trt.Runtime(log)
    except TypeError as error:  # what its interface makes of a null pointer
        raise no_start(package, log) from error
