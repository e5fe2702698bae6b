"""Who runs in `decode.py`: our engines, llama.cpp, and a plain read of memory, of one shape and random weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xllamacpp  # pyright: ignore[reportMissingImports]
from common import made_up_tokenizer

from blockwright.compile.engine import EngineOrder, SessionSettings, read_engine, write_engine
from blockwright.compile.export_gguf import write_gguf
from blockwright.compile.flavour import FlavourName
from blockwright.compile.session import Decoder, OperatorsOf, Sequences, make_session
from blockwright.count import ffn_weight_bytes, kv_bytes_per_slot, matrix_bytes, mixer_weight_bytes
from blockwright.llama import llama
from blockwright.profiler.ceilings import ceiling_cases
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Attention, Block, GatedFFN, Model, parse_format, with_format

PEERS = {"llama.cpp Q4_0, repacked": False, "llama.cpp Q4_0, as stored": True}
"""Whether its extra buffers, which hold repacked weights, are turned off."""
_FIRST = 2
"""Token of prompts that may be cached; the others begin with another each, so that no part of them is."""
_SPARE_TOKENS = 128
"""Behind the longest context, for what is written there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of everything."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    width: int
    vocab_size: int
    num_layers: int
    contexts: tuple[int, ...]
    prompt_tokens: int


FULL = Shape(
    hidden_size=1024,
    num_heads=16,
    num_kv_heads=4,
    width=2816,
    vocab_size=32000,
    num_layers=16,
    contexts=(128, 4096),
    prompt_tokens=512,
)
SMALL = Shape(
    hidden_size=256,
    num_heads=4,
    num_kv_heads=2,
    width=512,
    vocab_size=2048,
    num_layers=2,
    contexts=(32, 256),
    prompt_tokens=64,
)


class Engine:
    """One of our engines at a number of threads."""

    def __init__(
        self, folder: Path, settings: SessionSettings, operators: OperatorsOf, clock: Callable[[], float]
    ) -> None:
        self.folder = folder
        self._clock = clock
        self._decoder = Decoder.open(folder, settings, operators)
        self._sequences: Sequences | None = None

    def begin(self, context: int, new_tokens: int) -> None:
        """Makes ready to write behind so many tokens."""
        self._sequences = self._decoder.start(1, context + new_tokens)
        self._sequences.make_room(context + new_tokens)
        generator = np.random.default_rng(0)
        for array in self._sequences.cache.values():
            array[:] = generator.standard_normal(array.shape, dtype=np.float32)

    def decode(self, context: int, new_tokens: int) -> float:
        """Seconds per token."""
        assert self._sequences is not None
        self._sequences.lengths_B = np.array([context])
        ids_B = np.array([1])
        start = self._clock()
        for _ in range(new_tokens):
            ids_B = self._sequences.step(ids_B).argmax(-1)
        return (self._clock() - start) / new_tokens

    def prefill(self, num_tokens: int) -> float:
        """Seconds to read a prompt and choose the next token."""
        sequences = self._decoder.start(1, num_tokens)
        prompt = _prompt(num_tokens)
        start = self._clock()
        sequences.prefill([prompt]).argmax(-1)
        return self._clock() - start


class Peer:
    """llama.cpp at a number of threads; it times itself, or is timed by the processor's time."""

    def __init__(
        self, file: Path, threads: int, is_plain: bool, sizes: tuple[int, int], clock: Callable[[], float] | None
    ) -> None:
        """Args: sizes: the longest sequence, and the prompt that is read at once."""
        self._clock, self._num_prompts = clock, 0
        params = xllamacpp.CommonParams()  # pyright: ignore[reportAttributeAccessIssue]
        params.model.path = str(file)
        params.n_ctx, params.n_batch = sizes
        params.n_ubatch = params.n_batch
        params.n_parallel = 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.no_extra_bufts = is_plain
        params.warmup = True
        params.verbosity = -1
        self._server = xllamacpp.Server(params)  # pyright: ignore[reportAttributeAccessIssue]

    def begin(self, context: int, new_tokens: int) -> None:
        """Reads a prompt of so many tokens, which stays cached."""
        self._complete(context, 1)

    def decode(self, context: int, new_tokens: int) -> float:
        """Seconds per token."""
        start = self._clock() if self._clock else 0.0
        timings = self._complete(context, new_tokens)  # its first token comes from reading the prompt's last one again
        if self._clock:
            return (self._clock() - start) / new_tokens
        return timings["predicted_ms"] / timings["predicted_n"] / 1e3

    def prefill(self, num_tokens: int) -> float:
        """Seconds to read a prompt."""
        start = self._clock() if self._clock else 0.0
        self._num_prompts += 1
        timings = self._complete(num_tokens, 1, first=_FIRST + self._num_prompts)
        assert timings["prompt_n"] == num_tokens, "part of the prompt was cached"
        return self._clock() - start if self._clock else timings["prompt_ms"] / 1e3

    def _complete(self, num_tokens: int, new_tokens: int, first: int = _FIRST) -> dict[str, float]:
        request = {
            "prompt": [first, *_prompt(num_tokens)[1:]],
            "n_predict": new_tokens,
            "temperature": 0,
            "samplers": ["temperature"],
            "ignore_eos": True,
            "cache_prompt": True,
        }
        return self._server.handle_completions(request)["timings"]


class Bound:
    """A vector times a matrix of 256 MiB or so: little but reading."""

    def __init__(self, threads: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        case = next(case for case in ceiling_cases() if case.name == "stream")
        graph = case.graph.model()
        self.num_bytes = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
        self._x = np.ones(case.shape, dtype=np.float32)
        self._session = make_session(graph.SerializeToString(), SessionSettings(num_threads=threads))

    def rate(self) -> float:
        """Bytes per second, the better of two reads."""
        times = []
        for _ in range(2):
            start = self._clock()
            self._session.run(None, {"x": self._x})
            times.append(self._clock() - start)
        return self.num_bytes / min(times)


def write_engines(shape: Shape, formats: list[str], flavours: list[FlavourName], home: Path) -> dict[str, Path]:
    """Builds the engines; their folders by their names."""
    model = _model(shape)
    weights, folders = random_weights(model), {}
    for text in formats:
        for flavour in flavours:
            folder = folders[f"{text}, {flavour}"] = home / f"{text}-{flavour}"
            _write_engine(_stored(model, text), weights, flavour, folder)
    return folders


def write_peer(shape: Shape, home: Path) -> Path:
    """Writes llama.cpp's file."""
    file, model = home / "model.gguf", _model(shape)
    write_gguf(_stored(model, "int4-g32"), random_weights(model), made_up_tokenizer(shape.vocab_size), file)
    return file


def bytes_per_token(folder: Path, context: int) -> int:
    """What writing a token has to read: codes and scales of all layers and of the head, and the cache up to here."""
    model = read_engine(folder).model
    layers = sum(mixer_weight_bytes(model, b.mixer) + ffn_weight_bytes(model, b.ffn) for b in model.layers)
    head = matrix_bytes(model.hidden_size, model.vocab_size, model.embedding_weights)
    cache = sum(kv_bytes_per_slot(model, b.mixer) for b in model.layers) * context
    return layers + head + cache


def _model(shape: Shape) -> Model:
    block = Block(mixer=Attention(num_kv_heads=shape.num_kv_heads), ffn=GatedFFN(width=shape.width))
    return llama(
        (block,) * shape.num_layers,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_heads=shape.num_heads,
        head_dim=shape.hidden_size // shape.num_heads,
        max_positions=max(shape.contexts, default=0) + _SPARE_TOKENS + shape.prompt_tokens,
        has_tied_embeddings=False,
    )


def _stored(model: Model, text: str) -> Model:
    """All matrices in the format, the head too, as Q4_0 has it."""
    weights = parse_format(text)
    return replace(with_format(model, weights), embedding_weights=weights)


def _write_engine(model: Model, weights: Mapping[str, np.ndarray], flavour: FlavourName, folder: Path) -> None:
    folder.mkdir()
    order = EngineOrder(
        model=model,
        weights_format=None,
        num_positions=model.max_positions,
        session=SessionSettings(num_threads=1),
        built_from="random weights",
        flavour=flavour,
    )
    write_engine(order, weights, folder)


def _prompt(num_tokens: int) -> list[int]:
    return [3 + 7 * index % 1000 for index in range(num_tokens)]
