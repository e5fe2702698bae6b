"""A machine with a made-up GPU, on which processes open one TensorRT engine after another, or side by side."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from blockwright.compile.decoder import decoder_graph
from blockwright.compile.engine import ENGINE_FILE, StoredFile
from blockwright.compile.flavour import Flavour
from blockwright.compile.generate import generate_ids
from blockwright.compile.sampling import Sampling
from blockwright.compile.tensorrt_engine import PLAN_FILE
from blockwright.compile.tensorrt_executor import GpuExecutor
from blockwright.compile.tensorrt_session import TensorRtDecoder
from blockwright.files import write_json
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FP32, Attention, Block, GatedFFN
from blockwright.strict import to_data
from tensorrt_on_cpu import engine_of
from tensorrt_runtime_on_cpu import World, pretend_cuda

GPU = ("NVIDIA H200", "sm86", "CUDA 13000")
PROMPT = (3, 1, 4)
_SLOTS = 64
_LAYERS = (Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=64)),)
_MODEL = llama(_LAYERS, hidden_size=32, num_heads=2, head_dim=16, vocab_size=80, max_positions=_SLOTS)
_PLAN = b"plan"
_SESSION = "blockwright.compile.tensorrt_session"


class Machine:
    """Where an engine lies, and the user's cache folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._engine, self._monkeypatch = folder / "engine", monkeypatch
        self.cache = folder / "cache"
        self.kept = self.cache / "blockwright" / "tensorrt"
        """The folder of kernels, which is not there yet."""
        self._engine.mkdir()
        (self._engine / PLAN_FILE).write_bytes(_PLAN)
        monkeypatch.setenv("XDG_CACHE_HOME", str(self.cache))
        flavour, weights = Flavour(name="standard", slots=_SLOTS), random_weights(_MODEL, seed=1)
        graph = decoder_graph(replace(_MODEL, embedding_weights=FP32), weights, _SLOTS, flavour)
        self._graph = graph.SerializeToString()

    def process(self, is_rtx: bool = True, **changes: object) -> World:
        """A process of its own: `process(fails="cache")`."""
        world = World(self._graph, is_rtx)
        for name, value in changes.items():
            setattr(world, name, value)
        pretend_cuda(world, self._monkeypatch)
        return world

    def open(self, world: World) -> TensorRtDecoder:
        """The engine, as a user opens it."""
        package = replace(world.package(), version="1.7.1")
        stored = StoredFile(size_bytes=len(_PLAN), sha256=sha256(_PLAN).hexdigest())
        engine = replace(engine_of(_MODEL, _SLOTS), package=package.name, files={PLAN_FILE: stored})
        write_json(self._engine / ENGINE_FILE, to_data(engine))
        self._monkeypatch.setattr(f"{_SESSION}.find_package", lambda names: package)
        self._monkeypatch.setattr(f"{_SESSION}.gpu_capability", lambda: GPU[1])
        self._monkeypatch.setattr(f"{_SESSION}.gpu_identity", lambda: GPU)
        self._monkeypatch.setattr(f"{_SESSION}.GpuExecutor", partial(GpuExecutor, device="cpu"))
        return TensorRtDecoder.open(self._engine)

    def names(self) -> list[str]:
        """How the names of what is kept end."""
        return sorted(path.suffix for path in self.kept.iterdir()) if self.kept.exists() else []


def write(decoder: TensorRtDecoder, prompt: Sequence[int] = PROMPT, num_tokens: int = 4) -> list[int]:
    """A text behind a prompt, whose length and the new tokens' are what kernels are compiled for."""
    return [int(ids_B[0]) for ids_B in generate_ids(decoder, [prompt], num_tokens, Sampling())]
