"""Runs a TensorRT engine: caches in torch tensors, updated in place, prompts in chunks, then one token at a time.

`TensorRtSequences` is tested on the CPU, where ONNX Runtime executes the same graph on the same tensors. `_OnGpu`, the
calls to TensorRT themselves, was never run: no GPU was at hand. CUDA graphs and sampling on the GPU are not there yet.

Shapes: B batch, T new tokens, S slots, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from blockwright.compile.places import Chunk, logits_after, places, reach_by_mask
from blockwright.compile.tensorrt_engine import PLAN_FILE, TensorRtEngine, read_tensorrt_engine
from blockwright.compile.tensorrt_package import Package, find_package, in_words
from blockwright.compile.tensorrt_target import gpu_capability
from blockwright.errors import InputError
from blockwright.spec import Attention

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_PREFILL, _DECODE = 0, 1
"""Profiles, as `token_ranges` has them."""


class Executor(Protocol):
    """Runs the network on tensors by name: reads inputs, updates caches in place, fills ``logits``."""

    inputs: frozenset[str]
    device: torch.device

    def run(self, profile: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Runs it and waits."""
        ...


class TensorRtDecoder:
    """An engine opened for running."""

    def __init__(self, engine: TensorRtEngine, executor: Executor) -> None:
        self.engine = engine
        self._executor = executor

    @classmethod
    def open(cls, folder: Path) -> "TensorRtDecoder":
        """Opens an engine's folder on the GPU at hand.

        Raises:
            InputError: the engine is broken, or was built for another GPU or by another TensorRT than are here.
        """
        engine, gpu = read_tensorrt_engine(folder), gpu_capability()
        try:
            package = find_package((engine.package,))
        except InputError:
            check_gpu(engine, gpu)  # where there is none, to install TensorRT would not help
            raise
        check_version(engine, package)
        check_gpu(engine, gpu)
        return cls(engine, _OnGpu(package, folder / PLAN_FILE))

    def start(self, batch: int, num_tokens: int) -> "TensorRtSequences":
        """Makes room for a batch of new sequences of up to `num_tokens` each.

        Raises:
            InputError: they are longer or more than the engine was built for, or the GPU's memory is too small.
        """
        engine = self.engine
        could_be_longer = engine.num_positions < engine.model.max_positions
        for field, got, most, larger in (
            ("prompt and new tokens", num_tokens, engine.num_positions, "--context" if could_be_longer else None),
            ("sequences", batch, engine.most_sequences, "--batch"),
        ):
            if got > most:
                remedy = "Ask for less" + (f", or compile with a larger {larger}." if larger else ".")
                raise InputError(field, got=got, expected=f"at most {most}", remedy=remedy)
        try:
            return TensorRtSequences(engine, self._executor, batch)
        except torch.OutOfMemoryError as error:
            raise InputError(
                "GPU memory",
                got=str(error).splitlines()[0],
                expected=f"room for caches of {engine.slots} tokens",
                remedy="Compile with a shorter --context, or free memory.",
            ) from error


class TensorRtSequences:
    """A batch of sequences being written, with their caches."""

    def __init__(self, engine: TensorRtEngine, executor: Executor, batch: int) -> None:
        self._executor, self._vocab_size = executor, engine.model.vocab_size
        self._masks, self._slot_S = reach_by_mask(engine.model), np.arange(engine.slots)
        self._cache: dict[str, torch.Tensor] = {}
        for index, block in enumerate(engine.model.layers):
            if isinstance(block.mixer, Attention):
                shape = (batch, block.mixer.num_kv_heads, engine.slots, engine.model.head_dim)
                for word in ("key", "value"):
                    empty = torch.zeros(shape, dtype=_DTYPES[engine.activations], device=executor.device)
                    self._cache[f"past_{word}_{index}"] = empty
        self.lengths_B = np.zeros(batch, dtype=np.int64)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Reads the prompts, shorter ones padded on the right, and returns the logits after each, logits_BV."""
        self.lengths_B = np.array([len(prompt) for prompt in prompts])

        def read(chunk: Chunk) -> np.ndarray:
            return self._run(_PREFILL, chunk.ids_BT, chunk.last_B, np.full(len(prompts), chunk.start))

        return logits_after(prompts, self._vocab_size, read)

    def step(self, ids_B: np.ndarray) -> np.ndarray:
        """Appends one token to each sequence and returns the logits after it, logits_BV."""
        logits_BV = self._run(_DECODE, ids_B[:, None], np.zeros_like(self.lengths_B), self.lengths_B)
        self.lengths_B = self.lengths_B + 1
        return logits_BV

    def _run(self, profile: int, ids_BT: np.ndarray, last_B: np.ndarray, starts_B: np.ndarray) -> np.ndarray:
        known = places(self._masks, starts_B, ids_BT.shape[1], self._slot_S)
        arrays = {"ids": ids_BT, "last": last_B} | {
            n: made() for n, made in known.items() if n in self._executor.inputs
        }
        device = self._executor.device
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in arrays.items()}
        logits_BV = torch.empty((len(ids_BT), self._vocab_size), dtype=torch.float32, device=device)
        self._executor.run(profile, tensors | self._cache | {"logits": logits_BV})
        return logits_BV.cpu().numpy()


def check_gpu(engine: TensorRtEngine, gpu: str | None) -> None:
    """Refuses to open an engine where it cannot run.

    Raises:
        InputError: there is no GPU, or it is another one.
    """
    if gpu in engine.compute_capabilities:
        return
    built_for = ", ".join(engine.compute_capabilities)
    raise InputError(
        "GPU",
        got="none that torch sees" if gpu is None else f"an {gpu}",
        expected=f"a GPU of {built_for}, for which this TensorRT engine was built",
        remedy="Run it there, with torch's CUDA build; for this machine's CPU compile without --target tensorrt."
        if gpu is None
        else f"Compile again with --for {gpu}.",
    )


def check_version(engine: TensorRtEngine, package: Package) -> None:
    """Refuses a plan of another version: TensorRT's plans open in the one that built them.

    Raises:
        InputError: names both.
    """
    if package.version != engine.package_version:
        raise InputError(
            "engine",
            got=f"a plan of version {engine.package_version}",
            expected=f"one of {package.title}, which is installed",
            remedy=f"Compile again, or install {engine.package}=={engine.package_version}.",
        )


class _OnGpu:
    """The plan in TensorRT. One execution context for each profile; all tensors are torch's."""

    def __init__(self, package: Package, plan: Path) -> None:
        trt, self._log = package.trt, package.new_log()
        self.device = torch.device("cuda")
        torch.zeros(1, device=self.device)  # the context that TensorRT is to share
        self._runtime = trt.Runtime(self._log)
        self._engine = self._or_refused(self._runtime.deserialize_cuda_engine(plan.read_bytes()), str(plan))
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        is_input = trt.TensorIOMode.INPUT
        self.inputs = frozenset(name for name in names if self._engine.get_tensor_mode(name) == is_input)
        self._stream = torch.cuda.Stream()
        self._contexts = [self._context(profile) for profile in range(self._engine.num_optimization_profiles)]

    def run(self, profile: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Runs the network and waits for it."""
        context = self._contexts[profile]
        for name, tensor in tensors.items():
            context.set_tensor_address(name, tensor.data_ptr())
            if name in self.inputs:
                context.set_input_shape(name, tuple(tensor.shape))
            if name.startswith("past_"):  # the cache is updated where it lies
                context.set_tensor_address(name.replace("past_", "present_"), tensor.data_ptr())
        self._stream.wait_stream(torch.cuda.current_stream())
        self._or_refused(context.execute_async_v3(self._stream.cuda_stream) or None, "run")
        self._stream.synchronize()

    def _context(self, profile: int) -> Any:
        context = self._or_refused(self._engine.create_execution_context(), "execution context")
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
