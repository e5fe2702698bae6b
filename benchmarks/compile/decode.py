"""Int4 engines beside llama.cpp's Q4_0, the same shape and random weights: `python benchmarks/compile/decode.py`.

Reading a prompt of 512 tokens, and writing tokens behind 128 and behind 4096, with one and with two threads. All
contestants of a phase run in turn, round after round: engines of both flavours and group sizes on our own
operators, those of the contrib flavour on ONNX Runtime's, llama.cpp with and without repacked weights, and a plain read
of memory, which bounds what writing a token can take. Ratios are of the same round; their median and their range are
told. Our times include choosing the likeliest token, llama.cpp's too. Behind 4096 tokens our caches hold random
numbers; llama.cpp reads a prompt of that length once per contestant.

Needs the extras [clients] and [gguf]. About 15 minutes on two cores, seconds with --small. Writes
benchmarks/results/decode_<device>_<date>.json and .md.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import command_line, spread
from decode_contestants import (
    FULL,
    PEERS,
    SMALL,
    Bound,
    Engine,
    Peer,
    Shape,
    bytes_per_token,
    write_engines,
    write_peer,
)
from provenance import RESULTS, origin, write_results

from blockwright.compile.engine import SessionSettings
from blockwright.hw_profiles.device import this_device

OTHERS = ", ONNX Runtime's operators"
"""What the names of engines end with that run without our own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Something that all contestants do in turn."""

    name: str
    context: int
    run: Callable[[Engine | Peer], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """The times of a phase by contestant, and the plain read's bytes per second, round by round."""

    times: Mapping[str, list[float]]
    rates: list[float]


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
    parser.add_argument("--work", type=Path, help="folder of the engines (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    asked = parser.parse_args()
    shape = SMALL if asked.small else FULL
    shape = replace(shape, contexts=tuple(asked.contexts)) if asked.contexts is not None else shape
    device = this_device()
    results = origin(command_line(), device)
    results["software"] |= {"xllamacpp": version("xllamacpp")}
    with tempfile.TemporaryDirectory(dir=asked.work) as home:
        folders = write_engines(shape, asked.formats, asked.flavours, Path(home))
        file = None if asked.no_peers else write_peer(shape, Path(home))
        rows = [row for threads in asked.threads for row in measured(shape, asked, folders, file, threads)]
    results |= {"load_average": os.getloadavg()[0], "rows": rows}
    write_results(results, _page(results, device.name), asked.out / f"decode_{device.name}_{results['date']}")


def measured(
    shape: Shape, asked: argparse.Namespace, folders: Mapping[str, Path], file: Path | None, threads: int
) -> list[dict[str, Any]]:
    """Times everything at one number of threads, in turn."""
    is_busy = asked.cpu_time and threads == 1
    clock = time.process_time if is_busy else time.perf_counter
    settings = SessionSettings(num_threads=threads, spins=asked.spin)
    contestants: dict[str, Engine | Peer] = {n: Engine(path, settings, "fastest", clock) for n, path in folders.items()}
    others = {name: path for name, path in folders.items() if name.endswith("contrib")}
    contestants |= {name + OTHERS: Engine(path, settings, "onnxruntime", clock) for name, path in others.items()}
    if file is not None:
        sizes = max((*shape.contexts, shape.prompt_tokens)) + 2 * asked.new_tokens, shape.prompt_tokens
        own = clock if is_busy else None
        contestants |= {name: Peer(file, threads, plain, sizes, own) for name, plain in PEERS.items()}
    bound = Bound(threads, clock)
    rows: list[dict[str, Any]] = []
    for phase in _phases(shape, asked):
        for each in contestants.values():
            if phase.name == "decode":
                each.begin(phase.context, asked.new_tokens)
            phase.run(each)
        rounds = Rounds(times={name: [] for name in contestants}, rates=[])
        for _ in range(asked.rounds):
            rounds.rates.append(bound.rate())
            for name, each in contestants.items():
                rounds.times[name].append(phase.run(each))
        for name, each in contestants.items():
            num_bytes = None
            if isinstance(each, Engine) and phase.name == "decode":
                num_bytes = bytes_per_token(each.folder, phase.context)
            row = {"phase": phase.name, "context_tokens": phase.context, "threads": threads, "name": name}
            rows.append(row | _told(name, rounds, num_bytes))
            print(_line(rows[-1]), flush=True)
    return rows


def _phases(shape: Shape, asked: argparse.Namespace) -> list[Phase]:
    reading = Phase(name="prefill", context=0, run=lambda each: each.prefill(shape.prompt_tokens))
    writing = [
        Phase(name="decode", context=n, run=lambda each, n=n: each.decode(n, asked.new_tokens)) for n in shape.contexts
    ]
    return writing if asked.no_prefill else [reading, *writing]


def _told(name: str, rounds: Rounds, num_bytes: int | None) -> dict[str, Any]:
    """What the rounds say of one contestant."""
    own, times = rounds.times[name], rounds.times
    twins = {name.replace("standard", "contrib"), name + OTHERS} - {name}
    faster = {
        peer: spread([theirs / ours for theirs, ours in zip(times[peer], own, strict=True)])
        for peer in times
        if peer != name and (peer in PEERS or peer in twins)
    }
    shares = None if num_bytes is None else [num_bytes / r / t for r, t in zip(rounds.rates, own, strict=True)]
    return {
        "time_s": spread(own),
        "times_as_fast_as": faster,
        "read_bytes": num_bytes,
        "read_bytes_per_s": spread(rounds.rates),
        "share_of_bound": None if shares is None else spread(shares),
    }


def _line(row: dict[str, Any]) -> str:
    what = f"{row['phase']} {row['context_tokens'] or ''}".strip()
    time_s, share, faster = row["time_s"], row["share_of_bound"], row["times_as_fast_as"]
    twins = [spread for name, spread in faster.items() if name not in PEERS]
    cells = [faster.get(peer) for peer in PEERS] + [twins[0] if twins else None]
    ratios = " | ".join("" if s is None else f"{s['median']:.2f} ({s['low']:.2f}–{s['high']:.2f})" for s in cells)
    bound = "" if share is None else f"{share['median']:.0%} ({share['low']:.0%}–{share['high']:.0%})"
    spread = f"{1e3 * time_s['low']:.1f}–{1e3 * time_s['high']:.1f}"
    ours = f"{1e3 * time_s['median']:.1f} ({spread})"
    return f"| {what} | {row['threads']} | {row['name']} | {ours} | {ratios} | {bound} |"


def _page(results: dict[str, Any], device_name: str) -> str:
    lines = [
        f"# Int4 decoding beside llama.cpp, {results['date']}",
        "",
        f"`{results['command']}` at {results['commit']} on {device_name}; {results['software']}; "
        f"load average at the end {results['load_average']:.1f}.",
        "",
        "Times as fast as llama.cpp's Q4_0, and as a twin of the same group size: for contrib on our own operators",
        "that is contrib on ONNX Runtime's, for standard it is contrib on ours. Medians and ranges over rounds. The",
        "bound is reading the weights and the cache once, at the rate of a plain read in the same round.",
        "",
        f"| what | threads | engine | ms | {' | '.join(f'of {peer}' for peer in PEERS)} | of its twin | of the bound |",
        "|---|---|---|---|---|---|---|---|",
        *map(_line, results["rows"]),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
