"""Writes text with a plan: caches in torch tensors, prompts in chunks, then a token at a time without the host.

A decode step is the plan's run and all that goes with it: where the token stands, what it may see, which token comes
next. All of it is on the device and at fixed addresses, so a CUDA graph holds it, and the host asks for the next step
before it reads the token of the last one. The tests do the same on the CPU, where ONNX Runtime executes the network and
a tape of torch's calls stands for the CUDA graph.

Shapes: B batch, T new tokens, S slots, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from blockwright.compile.device_places import place, place_inputs, reaches_of
from blockwright.compile.places import Chunk, chunks_of_prompts
from blockwright.compile.sampling import Sampling
from blockwright.compile.tensorrt_engine import TensorRtEngine
from blockwright.compile.tensorrt_executor import Executor
from blockwright.compile.torch_sampling import Drawer
from blockwright.spec import Attention, Model

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_PREFILL, _DECODE = 0, 1
"""Profiles, as `token_ranges` has them."""
R = TypeVar("R")


class TensorRtSequences:
    """A batch of sequences being written, with their caches. To be made on the executor's stream."""

    def __init__(self, engine: TensorRtEngine, executor: Executor, batch: int) -> None:
        self._executor, self._model, self._slots = executor, engine.model, engine.slots
        self._cache = make_cache(engine.model, batch, engine.slots, DTYPES[engine.activations], executor.device)
        self._length_B = torch.zeros(batch, dtype=torch.int64, device=executor.device)
        self._logits_BV = torch.zeros((batch, engine.model.vocab_size), device=executor.device)
        self._step = _Run(self._executor, self._model, (batch, 1, self._slots), _DECODE, self._cache, self._logits_BV)
        self._append: Callable[[], None] = self._append_once
        self._is_recorded = False

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Reads the prompts, shorter ones padded on the right, and returns the logits after each, logits_BV."""
        return self._there(lambda: self._read_and_fetch(prompts))()

    def step(self, ids_B: np.ndarray) -> np.ndarray:
        """Appends one token to each sequence and returns the logits after it, logits_BV."""

        def append() -> Callable[[], np.ndarray]:
            self._step.inputs["ids"][:, 0].copy_(torch.from_numpy(np.ascontiguousarray(ids_B)))
            self._append()
            return self._executor.fetch(self._logits_BV)

        logits_BV = self._there(append)()
        if not self._is_recorded:
            self._append, self._is_recorded = self._there(lambda: self._executor.recorded(self._append_once)), True
        return logits_BV

    def write(self, prompts: Sequence[Sequence[int]], num_tokens: int, sampling: Sampling) -> Iterator[np.ndarray]:
        """Continues the prompts by `num_tokens`, drawn on the device.

        Yields:
            The next token of every sequence, ids_B.
        """

        def begin() -> tuple[Drawer, Callable[[], np.ndarray]]:
            self._read(prompts)
            drawer = Drawer(prompts, num_tokens, sampling, self._logits_BV)
            drawer.draw(self._logits_BV)
            return drawer, self._executor.fetch(drawer.ids_B)

        drawer, drawn = self._there(begin)

        def one_more() -> None:
            self._step.inputs["ids"][:, 0].copy_(drawer.ids_B)
            self._append_once()
            drawer.draw(self._logits_BV)

        def launched(work: Callable[[], None]) -> Callable[[], np.ndarray]:
            work()
            return self._executor.fetch(drawer.ids_B)

        work = one_more
        for index in range(1, num_tokens):
            if index == 2:  # what is recorded must have been run before
                work = self._there(lambda: self._executor.recorded(one_more))
            following = self._there(lambda work=work: launched(work))
            yield drawn()
            drawn = following
        yield drawn()

    def _there(self, work: Callable[[], R]) -> R:
        return self._executor.on_stream(work)

    def _append_once(self) -> None:
        self._step.at(self._length_B)
        self._length_B += 1

    def _read_and_fetch(self, prompts: Sequence[Sequence[int]]) -> Callable[[], np.ndarray]:
        self._read(prompts)
        return self._executor.fetch(self._logits_BV)

    def _read(self, prompts: Sequence[Sequence[int]]) -> None:
        """Reads prompts piece by piece; their logits and lengths are then on the device."""
        run: _Run | None = None
        for chunk in chunks_of_prompts(prompts):
            if run is None or run.inputs["ids"].shape != chunk.ids_BT.shape:
                shape = (*chunk.ids_BT.shape, self._slots)
                run = _Run(self._executor, self._model, shape, _PREFILL, self._cache, torch.empty_like(self._logits_BV))
            self._read_chunk(run, chunk)
        self._length_B.copy_(torch.tensor([len(prompt) for prompt in prompts]))
        self._executor.wait()  # for the runs' inputs, which go with them

    def _read_chunk(self, run: "_Run", chunk: Chunk) -> None:
        run.inputs["ids"].copy_(torch.from_numpy(chunk.ids_BT))
        run.inputs["last"].copy_(torch.from_numpy(chunk.last_B))
        run.at(torch.full_like(self._length_B, chunk.start))
        ends_here_B = torch.from_numpy(chunk.ends_here_B).to(self._executor.device)
        self._logits_BV.copy_(torch.where(ends_here_B[:, None], run.logits_BV, self._logits_BV))


class _Run:
    """The network bound to inputs for T new tokens of every sequence, to the caches, and to its logits."""

    def __init__(
        self,
        executor: Executor,
        model: Model,
        shape: tuple[int, int, int],
        profile: int,
        cache: dict[str, torch.Tensor],
        logits_BV: torch.Tensor,
    ) -> None:
        self._reaches, self.logits_BV = reaches_of(model), logits_BV
        self.inputs = place_inputs(model, shape, executor.device)
        read = {name: tensor for name, tensor in self.inputs.items() if name in executor.inputs}
        self._enqueue = executor.bind(profile, read | cache | {"logits": logits_BV})

    def at(self, starts_B: torch.Tensor) -> None:
        """Runs it on tokens that stand from these positions on."""
        place(self.inputs, self._reaches, starts_B)
        self._enqueue()


def make_cache(
    model: Model, batch: int, slots: int, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """Empty key-value buffers for every attention layer, by the graph's input names, ``past_key_3`` and so on."""
    cache: dict[str, torch.Tensor] = {}
    for index, block in enumerate(model.layers):
        if isinstance(block.mixer, Attention):
            shape = (batch, block.mixer.num_kv_heads, slots, model.head_dim)
            for word in ("key", "value"):
                cache[f"past_{word}_{index}"] = torch.zeros(shape, dtype=dtype, device=device)
    return cache
