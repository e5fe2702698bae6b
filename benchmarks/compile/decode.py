"""Int4 engines beside llama.cpp's Q4_0, the same shape and random weights: `python benchmarks/compile/decode.py`.

Reading a prompt of 512 tokens, and writing tokens behind 128 and behind 4096, with one and with two threads. All
contestants of a phase run in turn, round after round: engines of both flavours and group sizes, llama.cpp with and
without repacked weights, and a plain read of memory, which bounds what writing a token can take. Ratios are of the
same round; their median and their range are told. Our times include choosing the likeliest token, llama.cpp's too.
Behind 4096 tokens our caches hold random numbers; llama.cpp reads a prompt of that length once per contestant.

Needs the extra [bench] (xllamacpp, gguf). Engines are kept in --work and used again. About 20 minutes on two cores,
seconds with --small. Writes benchmarks/results/decode_<device>_<date>.json and .md.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp  # pyright: ignore[reportMissingImports]

from blockwright.compile.engine import ENGINE_FILE, EngineOrder, SessionSettings, write_engine
from blockwright.compile.export_gguf import write_gguf
from blockwright.compile.flavour import FlavourName
from blockwright.compile.session import Decoder, Sequences, make_session
from blockwright.hw_profiles.device import installed_software, this_device
from blockwright.profiler.ceilings import ceiling_cases
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Attention, Block, GatedFFN, Model, Rope, parse_format, with_format

REPOSITORY = Path(__file__).parents[2]
PROMPT_TOKENS = 512
CONTEXTS = (128, 4096)
PEERS = {"llama.cpp Q4_0, repacked": False, "llama.cpp Q4_0, as stored": True}
"""Whether its extra buffers, which hold repacked weights, are turned off."""
BOUND = "plain read"


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
    contexts=CONTEXTS,
    prompt_tokens=PROMPT_TOKENS,
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

    def __init__(self, folder: Path, threads: int, spins: bool, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._decoder = Decoder.open(folder, SessionSettings(num_threads=threads, spins=spins))
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
        self, file: Path, threads: int, is_plain: bool, most_tokens: int, clock: Callable[[], float] | None
    ) -> None:
        self._clock = clock
        params = xllamacpp.CommonParams()  # pyright: ignore[reportAttributeAccessIssue]
        params.model.path = str(file)
        params.n_ctx = most_tokens
        params.n_batch = params.n_ubatch = PROMPT_TOKENS
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
        timings = self._complete(num_tokens, 1, first=int(time.time_ns() % 1000) + 3)
        assert timings["prompt_n"] == num_tokens, "part of the prompt was cached"
        return self._clock() - start if self._clock else timings["prompt_ms"] / 1e3

    def _complete(self, num_tokens: int, new_tokens: int, first: int = 2) -> dict[str, float]:
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


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes: does it run?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=24, help="to write in each round")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--formats", nargs="+", default=["int4-g32", "int4-g128"])
    parser.add_argument("--flavours", nargs="+", default=["contrib", "standard"])
    parser.add_argument("--contexts", type=int, nargs="*")
    parser.add_argument("--no-prefill", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--spin", action="store_true", help="let our threads wait without sleeping, as llama.cpp's do")
    parser.add_argument("--cpu-time", action="store_true", help="one thread by the processor's time: on a busy machine")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "blockwright-decode")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results")
    asked = parser.parse_args()
    shape = SMALL if asked.small else FULL
    shape = replace(shape, contexts=tuple(asked.contexts)) if asked.contexts is not None else shape
    folders, file = built(shape, asked)
    rows = [row for threads in asked.threads for row in measured(shape, asked, folders, file, threads)]
    write(rows, asked)


def built(shape: Shape, asked: argparse.Namespace) -> tuple[dict[str, Path], Path | None]:
    """Builds what is not there yet: our engines by their names, and llama.cpp's file."""
    base = _model(shape)
    weights: Mapping[str, np.ndarray] = {}
    home = asked.work / f"{shape.hidden_size}x{shape.num_layers}-{max(shape.contexts, default=0)}"
    folders: dict[str, Path] = {}
    for text in asked.formats:
        for flavour in asked.flavours:
            folder = folders[f"{text}, {flavour}"] = home / f"{text}-{flavour}"
            if not (folder / ENGINE_FILE).exists():
                weights = weights or random_weights(base)
                _write_engine(_stored(base, text), weights, flavour, folder)
    if asked.no_peers:
        return folders, None
    file = home / "model.gguf"
    if not file.exists():
        write_gguf(_stored(base, "int4-g32"), weights or random_weights(base), _tokenizer(shape.vocab_size), file)
    return folders, file


def measured(
    shape: Shape, asked: argparse.Namespace, folders: Mapping[str, Path], file: Path | None, threads: int
) -> list[dict[str, Any]]:
    """Times everything at one number of threads, in turn."""
    most_tokens = max((*shape.contexts, shape.prompt_tokens)) + 2 * asked.new_tokens
    is_busy = asked.cpu_time and threads == 1
    clock = time.process_time if is_busy else time.perf_counter
    contestants: dict[str, Engine | Peer] = {n: Engine(path, threads, asked.spin, clock) for n, path in folders.items()}
    if file is not None:
        own = clock if is_busy else None
        contestants |= {name: Peer(file, threads, plain, most_tokens, own) for name, plain in PEERS.items()}
    bound = Bound(threads, clock)
    phases: list[tuple[str, int, Callable[[Engine | Peer], float]]] = []
    if not asked.no_prefill:
        phases.append(("prefill", 0, lambda each: each.prefill(shape.prompt_tokens)))
    for context in shape.contexts:
        phases.append(("decode", context, lambda each, context=context: each.decode(context, asked.new_tokens)))
    rows: list[dict[str, Any]] = []
    for phase, context, run in phases:
        for each in contestants.values():
            if phase == "decode":
                each.begin(context, asked.new_tokens)
            run(each)
        times: dict[str, list[float]] = {name: [] for name in contestants}
        rates = []
        for _ in range(asked.rounds):
            rates.append(bound.rate())
            for name, each in contestants.items():
                times[name].append(run(each))
        rows += [_row(phase, context, threads, name, times, rates, folders, shape) for name in contestants]
        for row in rows[-len(contestants) :]:
            print(_line(row), flush=True)
    return rows


def _row(
    phase: str,
    context: int,
    threads: int,
    name: str,
    times: Mapping[str, list[float]],
    rates: list[float],
    folders: Mapping[str, Path],
    shape: Shape,
) -> dict[str, Any]:
    """What the rounds say of one contestant."""
    faster = {
        peer: _spread([theirs / own for theirs, own in zip(times[peer], times[name], strict=True)])
        for peer in times
        if peer != name and (peer in PEERS or peer == name.replace("standard", "contrib"))
    }
    num_bytes = _bytes_per_token(folders[name], shape, context) if name in folders and phase == "decode" else None
    shares = None if num_bytes is None else [num_bytes / r / t for r, t in zip(rates, times[name], strict=True)]
    return {
        "phase": phase,
        "context_tokens": context,
        "threads": threads,
        "name": name,
        "time_s": _spread(times[name]),
        "times_as_fast_as": faster,
        "read_bytes": num_bytes,
        "read_bytes_per_s": _spread(rates),
        "share_of_bound": None if shares is None else _spread(shares),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _bytes_per_token(folder: Path, shape: Shape, context: int) -> int:
    """What writing a token has to read: all codes and scales but the embeddings', and the cache up to here."""
    graph_bytes = sum(file.stat().st_size for file in folder.iterdir())
    embeddings = 4 * shape.vocab_size * shape.hidden_size
    tables = 4 * (max(shape.contexts) + 128) * (shape.hidden_size // shape.num_heads)
    cache = 2 * 4 * shape.num_layers * shape.num_kv_heads * (shape.hidden_size // shape.num_heads) * context
    return graph_bytes - embeddings - tables + cache


def _model(shape: Shape) -> Model:
    block = Block(mixer=Attention(num_kv_heads=shape.num_kv_heads), ffn=GatedFFN(width=shape.width))
    return Model(
        family="llama",
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_heads=shape.num_heads,
        head_dim=shape.hidden_size // shape.num_heads,
        max_positions=max(shape.contexts, default=0) + 128 + PROMPT_TOKENS,
        norm_eps=1e-5,
        rope=Rope(theta=1e4),
        activation="silu",
        has_tied_embeddings=False,
        has_qkv_bias=False,
        has_output_bias=False,
        has_ffn_bias=False,
        has_qk_norm=False,
        layers=(block,) * shape.num_layers,
    )


def _stored(model: Model, text: str) -> Model:
    """All matrices in the format, the head too, as Q4_0 has it."""
    weights = parse_format(text)
    return replace(with_format(model, weights), embedding_weights=weights)


def _write_engine(model: Model, weights: Mapping[str, np.ndarray], flavour: FlavourName, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    order = EngineOrder(
        model=model,
        weights_format=None,
        num_positions=model.max_positions,
        session=SessionSettings(num_threads=1),
        built_from="random weights",
        flavour=flavour,
    )
    write_engine(order, weights, folder)


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    """Made-up tokens, for llama.cpp loads no model without any."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*special, *(f"t{index}" for index in range(len(special), vocab_size))],
        "tokenizer.ggml.scores": [0.0] * vocab_size,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (vocab_size - len(special))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def _prompt(num_tokens: int) -> list[int]:
    return [3 + 7 * index % 1000 for index in range(num_tokens)]


def _line(row: dict[str, Any]) -> str:
    what = f"{row['phase']} {row['context_tokens'] or ''}".strip()
    time_s, share = row["time_s"], row["share_of_bound"]
    faster = "; ".join(f"{s['median']:.2f} ({s['low']:.2f}–{s['high']:.2f})" for s in row["times_as_fast_as"].values())
    bound = "" if share is None else f"{share['median']:.0%}"
    spread = f"{1e3 * time_s['low']:.1f}–{1e3 * time_s['high']:.1f}"
    return (
        f"| {what} | {row['threads']} | {row['name']} | {1e3 * time_s['median']:.1f} ({spread}) | {faster} | {bound} |"
    )


def write(rows: list[dict[str, Any]], asked: argparse.Namespace) -> None:
    """Writes the results as data and as a page."""
    device, day = this_device(), f"{datetime.now(UTC):%Y-%m-%d}"
    versions = installed_software() | {"xllamacpp": version("xllamacpp")}
    command = f"python benchmarks/compile/decode.py --rounds {asked.rounds}" + (" --spin" if asked.spin else "")
    command += " --cpu-time" if asked.cpu_time else ""
    load = os.getloadavg()[0]
    asked.out.mkdir(parents=True, exist_ok=True)
    stem = asked.out / f"decode_{device.name}_{day}"
    data = {"command": command, "device": asdict(device), "versions": versions, "load_average": load, "rows": rows}
    stem.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    peers = " and ".join(PEERS)
    lines = [
        f"# Int4 decoding beside llama.cpp, {day}",
        "",
        f"`{command}` on {device.name}; {versions}; load average at the end {load:.1f}.",
        "",
        f"Times as fast as {peers}; for the standard flavour, as contrib first.",
        "The bound is reading the weights and the cache once, at the rate of a plain read in the same round.",
        "",
        "| what | threads | engine | ms, median (range) | times as fast as the others | of the bound |",
        "|---|---|---|---|---|---|",
        *map(_line, rows),
    ]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(stem)


if __name__ == "__main__":
    main()
