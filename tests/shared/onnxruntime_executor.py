"""Does on the CPU what a TensorRT plan and a CUDA graph do on a GPU: ONNX Runtime on torch's tensors, and a tape."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blockwright.profiler.gpu_tensorrt import OnCpu

T = TypeVar("T")


class OnnxRuntimeExecutor:
    """Keeps which profile was asked for how many tokens, and how many of these runs were replays."""

    device = torch.device("cpu")

    def __init__(self, graph: bytes) -> None:
        self._graph, self._network = onnx.load_from_string(graph).graph, OnCpu(graph)
        self.inputs, self.outputs = self._network.inputs, self._network.outputs
        self._tape: Tape | None = None
        self.runs: list[tuple[int, int]] = []
        self.num_replays = 0

    def bind(self, profile: int, tensors: Mapping[str, torch.Tensor], is_passing: bool = False) -> Callable[[], None]:
        assert self.inputs <= set(tensors)
        compute, num_tokens = self._network.bind(profile, tensors), tensors["ids"].shape[1]

        def run() -> None:
            compute()
            self.runs.append((profile, num_tokens))

        def enqueue() -> None:
            if self._tape is not None:
                self._tape.calls.append(run)
            run()

        return enqueue

    def slots_of(self, name: str) -> int:
        """Of a cache, as the graph has it."""
        (found,) = (each.type.tensor_type.shape.dim[2] for each in self._graph.input if each.name == name)
        return found.dim_value

    def recorded(self, step: Callable[[], None]) -> Callable[[], None]:
        """Its first call does the work and records it; after that no Python of `step` runs any more."""
        tape = Tape()

        def replay() -> None:
            if tape.calls:
                tape.replay()
                self.num_replays += 1
                return
            self._tape = tape
            with tape:
                step()
            self._tape = None

        return replay

    def on_stream(self, work: Callable[[], T]) -> T:
        return work()

    def fetch(self, tensor: torch.Tensor) -> Callable[[], np.ndarray]:
        copy = tensor.clone().numpy()
        return lambda: copy

    def wait(self) -> None: ...


class Tape(TorchDispatchMode):
    """Calls of torch's operators with the very tensors that they had, as a CUDA graph keeps addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "local_scalar" not in str(func), "the host must not wait for the device"
        kwargs = kwargs or {}
        made = func(*args, **kwargs)

        def again() -> None:
            for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

        self.calls.append(again)
        return made

    def replay(self) -> None:
        for call in self.calls:
            call()
