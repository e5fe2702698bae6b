"""Writes text with a plan: caches in torch tensors, prompts in chunks, then a token at a time without the host.

A decode step is the plan's run and all that goes with it: where the token stands, what it may see, which token comes
next. All of it is on the device and at fixed addresses, so a CUDA graph holds it, and the host asks for the next step
before it reads the token of the last one. The tests do the same on the CPU, where ONNX Runtime executes the network and
a tape of torch's calls stands for the CUDA graph.

Shapes: B batch, T new tokens, S slots, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from blockwright.compile.device_places import Places, caches_by_new, make_cache
from blockwright.compile.places import Chunk, chunks_of_prompts
from blockwright.compile.sampling import Sampling
from blockwright.compile.slots import PREFILL_CHUNK, caches_of
from blockwright.compile.tensorrt_engine import TensorRtEngine
from blockwright.compile.tensorrt_executor import Executor, cuda_errors_told
from blockwright.compile.torch_sampling import Drawer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_PREFILL, _DECODE = 0, 1
"""Profiles, as `token_ranges` has them."""
R = TypeVar("R")


class TensorRtSequences:
    """A batch of sequences being written, with their caches. To be made on the executor's stream."""

    def __init__(
        self, engine: TensorRtEngine, executor: Executor, batch: int, text_written: Callable[[], None]
    ) -> None:
        self._text_written = text_written
        self._executor, self._model, self._slots = executor, engine.model, engine.slots
        self._cache = make_cache(engine.model, batch, engine.slots, DTYPES[engine.activations], executor.device)
        self._length_B = torch.zeros(batch, dtype=torch.int64, device=executor.device)
        self._logits_BV = torch.zeros((batch, engine.model.vocab_size), device=executor.device)
        self._step = self._bound(_DECODE, slice(0, batch), 1)
        # What is recorded names no `self`: caches go with the sequences, not when Python looks for circles.
        self._append = _Replayed(executor, partial(_append_once, self._step, self._length_B))
        self._writers: dict[Sampling, _Writer] = {}
        """By rule, the seed aside: what is recorded serves the next texts too."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Reads the prompts, shorter ones padded on the right, and returns the logits after each, logits_BV."""
        logits_BV = _waited(self._there(lambda: self._read_and_fetch(prompts)))
        self._text_written()  # what follows are steps, of which nobody says which is the last
        return logits_BV

    def step(self, ids_B: np.ndarray) -> np.ndarray:
        """Appends one token to each sequence and returns the logits after it, logits_BV."""

        def append() -> Callable[[], np.ndarray]:
            self._step.inputs["ids"][:, 0].copy_(torch.from_numpy(np.ascontiguousarray(ids_B)))
            self._append()
            return self._executor.fetch(self._logits_BV)

        return _waited(self._there(append))

    def write(self, prompts: Sequence[Sequence[int]], num_tokens: int, sampling: Sampling) -> Iterator[np.ndarray]:
        """Continues the prompts by `num_tokens`, drawn on the device.

        Yields:
            The next token of every sequence, ids_B.
        """
        try:
            yield from self._written(prompts, num_tokens, sampling)
        except (GeneratorExit, KeyboardInterrupt):  # somebody has read enough of it
            self._text_written()
            raise
        self._text_written()

    def _written(self, prompts: Sequence[Sequence[int]], num_tokens: int, sampling: Sampling) -> Iterator[np.ndarray]:
        rule = replace(sampling, seed=0)
        if rule not in self._writers:
            self._writers[rule] = self._there(lambda: self._writer(rule))
        writer = self._writers[rule]

        def begun() -> Callable[[], np.ndarray]:
            self._read(prompts)
            writer.drawer.begin(prompts, num_tokens, sampling.seed)
            writer.drawer.draw(self._logits_BV)
            return self._executor.fetch(writer.drawer.ids_B)

        def gone_on() -> Callable[[], np.ndarray]:
            writer.go_on()
            return self._executor.fetch(writer.drawer.ids_B)

        drawn = self._there(begun)
        for _ in range(1, num_tokens):
            following = self._there(gone_on)
            yield _waited(drawn)
            drawn = following
        yield _waited(drawn)

    def _there(self, work: Callable[[], R]) -> R:
        with cuda_errors_told():
            return self._executor.on_stream(work)

    def _writer(self, rule: Sampling) -> "_Writer":
        drawer = Drawer(rule, self._slots, self._logits_BV)
        step, length_B, logits_BV = self._step, self._length_B, self._logits_BV

        def append_and_draw() -> None:
            step.inputs["ids"][:, 0].copy_(drawer.ids_B)
            _append_once(step, length_B)
            drawer.draw(logits_BV)

        return _Writer(drawer=drawer, go_on=_Replayed(self._executor, append_and_draw))

    def _read_and_fetch(self, prompts: Sequence[Sequence[int]]) -> Callable[[], np.ndarray]:
        self._read(prompts)
        return self._executor.fetch(self._logits_BV)

    def _read(self, prompts: Sequence[Sequence[int]]) -> None:
        """Reads prompts piece by piece; their logits and lengths are then on the device."""
        assert len(prompts) == len(self._length_B), "one for each sequence"
        for tensor in self._cache.values():
            tensor.zero_()  # slots that nobody sees weigh nothing, unless the last text left NaN there
        for rows in self._rows_at_once(prompts):
            run: _Run | None = None
            for chunk in chunks_of_prompts(prompts[rows]):
                num_tokens = chunk.ids_BT.shape[1]
                if run is None or run.inputs["ids"].shape[1] != num_tokens:
                    run = self._bound(_PREFILL, rows, num_tokens)
                self._read_chunk(run, chunk, self._logits_BV[rows])
        self._length_B.copy_(torch.tensor([len(prompt) for prompt in prompts]))
        self._executor.wait()  # for the runs' inputs, which go with them

    def _rows_at_once(self, prompts: Sequence[Sequence[int]]) -> list[slice]:
        """Which prompts are read side by side: all, but where a longer one's padding would go round over a text."""
        goes_round = any(held.goes_round for held in caches_of(self._model, self._slots).values())
        if goes_round and max(map(len, prompts)) > PREFILL_CHUNK:
            return [slice(row, row + 1) for row in range(len(prompts))]
        return [slice(0, len(prompts))]

    def _read_chunk(self, run: "_Run", chunk: Chunk, logits_BV: torch.Tensor) -> None:
        device = self._executor.device
        run.inputs["ids"].copy_(torch.from_numpy(chunk.ids_BT))
        run.inputs["last"].copy_(torch.from_numpy(chunk.last_B))
        run.at(torch.full((len(chunk.ids_BT),), chunk.start, dtype=torch.int64, device=device))
        ends_here_B = torch.from_numpy(chunk.ends_here_B).to(device)
        logits_BV.copy_(torch.where(ends_here_B[:, None], run.logits_BV, logits_BV))

    def _bound(self, profile: int, rows: slice, num_tokens: int) -> "_Run":
        """The network bound to some rows; a prompt's logits go elsewhere first."""
        cache, logits_BV = {name: tensor[rows] for name, tensor in self._cache.items()}, self._logits_BV[rows]
        places = Places(
            self._model,
            (rows.stop - rows.start, num_tokens, self._slots),
            self._executor.inputs,
            self._executor.device,
        )
        return _Run(self._executor, profile, places, cache, logits_BV if profile == _DECODE else logits_BV.clone())


def _append_once(step: "_Run", length_B: torch.Tensor) -> None:
    step.at(length_B)
    length_B += 1


def _waited(fetched: Callable[[], np.ndarray]) -> np.ndarray:
    with cuda_errors_told():  # what is enqueued fails when it is waited for
        return fetched()


class _Replayed:
    """Work that is run once, as it is, and from then on is a replay of what is recorded."""

    def __init__(self, executor: Executor, work: Callable[[], None]) -> None:
        self._executor, self._work = executor, work
        self._replay: Callable[[], None] | None = None
        self._was_run = False

    def __call__(self) -> None:
        """To be called on the executor's stream."""
        if not self._was_run:
            self._was_run = True
            self._work()
            return
        if self._replay is None:
            self._replay = self._executor.recorded(self._work)
        self._replay()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writer:
    """Draws by a rule, and appends what it drew last."""

    drawer: Drawer
    go_on: _Replayed


class _Run:
    """The network bound to inputs for T new tokens of some sequences, to their caches, and to their logits."""

    def __init__(
        self,
        executor: Executor,
        profile: int,
        places: Places,
        cache: dict[str, torch.Tensor],
        logits_BV: torch.Tensor,
    ) -> None:
        self._places, self.inputs, self.logits_BV = places, places.inputs, logits_BV
        num_tokens = self.inputs["ids"].shape[1]
        self._kept = {
            name: (old_BJSD, old_BJSD.new_empty((*old_BJSD.shape[:2], num_tokens, old_BJSD.shape[3])))
            for name, old_BJSD in caches_by_new(cache).items()
            if name in executor.outputs
        }
        new = {name: new_BJTD for name, (_, new_BJTD) in self._kept.items()}
        tensors = self.inputs | cache | new | {"logits": logits_BV}
        self._enqueue = executor.bind(profile, tensors, is_passing=profile == _PREFILL)

    def at(self, starts_B: torch.Tensor) -> None:
        """Runs it on tokens that stand from these positions on."""
        self._places.write(starts_B)
        self._enqueue()
        for old_BJSD, new_BJTD in self._kept.values():
            self._places.keep(old_BJSD, new_BJTD)
