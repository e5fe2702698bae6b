"""From nothing to the first token, beside llama.cpp: `python benchmarks/compile/startup.py`.

A Llama of 213 million random weights (16 layers, hidden 1024, 16 heads on 4, ffn 2816, 32000 words) in int4 with groups
of 32, ours in both flavours, on our own operators and on ONNX Runtime's, and as Q4_0 in llama.cpp, with and without
repacked weights. A prompt of 16 tokens, one thread, files in the page cache. Every start is a process of its own, all
in turn, round after round. Two times: from the call that opens the model to the first token, libraries imported; and
from starting the process, Python's own start and imports on both sides.

Needs the extras [clients] and [gguf]. About three minutes on two cores, seconds with --small. Writes
benchmarks/results/startup_<device>_<date>.json and .md.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import apart, command_line, made_up_tokenizer, spread
from provenance import RESULTS, origin, write_results

from blockwright.hw_profiles.device import this_device
from blockwright.llama import llama
from blockwright.spec import Attention, Block, GatedFFN, Model, parse_format, with_format

FULL = llama(
    (Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=2816)),) * 16,
    vocab_size=32000,
    hidden_size=1024,
    num_heads=16,
    head_dim=64,
    max_positions=512,
    has_tied_embeddings=False,
)
SMALL = replace(FULL, layers=FULL.layers[:2], vocab_size=2048)
FORMAT = parse_format("int4-g32")
PROMPT = [3 + 7 * index for index in range(16)]
OURS = {
    f"{flavour}, {words}": (flavour, operators)
    for flavour in ("contrib", "standard")
    for operators, words in (("fastest", "our operators"), ("onnxruntime", "onnxruntime's operators"))
}
PEERS = {"llama.cpp, repacked": False, "llama.cpp, as stored": True}
"""Whether its extra buffers, which hold repacked weights, are turned off."""


def main() -> None:
    """Writes the models and starts all in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="two layers and few words, to try it out")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        print(json.dumps(_start(asked.one[0], Path(asked.one[1]))))
        return
    device = this_device()
    results = origin(command_line(), device)
    results["software"] |= {"xllamacpp": version("xllamacpp")}
    names = (*OURS, *PEERS)
    with tempfile.TemporaryDirectory() as folder:
        _write(SMALL if asked.small else FULL, Path(folder))
        for name in names:  # brings the files into the page cache
            _begun(name, folder)
        rounds = [{name: _begun(name, folder) for name in names} for _ in range(asked.rounds)]
    results |= {"rounds": rounds, "rows": [_row(name, rounds) for name in names]}
    write_results(results, _page(results, device.name), asked.out / f"startup_{device.name}_{results['date']}")


def _write(model: Model, folder: Path) -> None:
    from blockwright.compile.engine import EngineOrder, SessionSettings, write_engine
    from blockwright.compile.export_gguf import write_gguf
    from blockwright.profiler.synthetic import random_weights

    stored = replace(with_format(model, FORMAT), embedding_weights=FORMAT)
    weights = random_weights(model)
    for flavour in ("contrib", "standard"):
        order = EngineOrder(
            model=stored,
            weights_format=None,
            num_positions=model.max_positions,
            session=SessionSettings(num_threads=1),
            built_from="random weights",
            flavour=flavour,
        )
        (folder / flavour).mkdir()
        write_engine(order, weights, folder / flavour)
    write_gguf(stored, weights, made_up_tokenizer(model.vocab_size), folder / "model.gguf")


def _begun(name: str, folder: str) -> dict[str, float]:
    """Starts one in a process of its own."""
    begin = time.monotonic()
    found = apart(__file__, name, folder)
    # The clock is the system's, the same in every process.
    return {"open_s": found["end"] - found["begin"], "all_s": found["end"] - begin}


def _start(name: str, folder: Path) -> dict[str, float]:
    """Opens a model and writes a token; the clock when it begins and when the token is there."""
    write = _our_writer(*OURS[name], folder) if name in OURS else _peer_writer(PEERS[name], folder / "model.gguf")
    begin = time.monotonic()
    write()
    return {"begin": begin, "end": time.monotonic()}


def _our_writer(flavour: str, operators: Any, folder: Path) -> Callable[[], object]:
    from blockwright.compile.session import Decoder

    def write() -> int:
        decoder = Decoder.open(folder / flavour, operators=operators)
        return int(decoder.start(1, len(PROMPT) + 1).prefill([PROMPT]).argmax(-1)[0])

    return write


def _peer_writer(is_plain: bool, file: Path) -> Callable[[], object]:
    import xllamacpp  # pyright: ignore[reportMissingImports]

    def write() -> Any:
        params = xllamacpp.CommonParams()  # pyright: ignore[reportAttributeAccessIssue]
        params.model.path = str(file)
        params.n_ctx, params.n_parallel = 512, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.no_extra_bufts, params.warmup, params.verbosity = is_plain, False, -1
        server = xllamacpp.Server(params)  # pyright: ignore[reportAttributeAccessIssue]
        return server.handle_completions({"prompt": PROMPT, "n_predict": 1, "temperature": 0})["timings"]

    return write


def _row(name: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    def times_as_fast(kind: str, peer: str) -> dict[str, float]:
        return spread([each[peer][kind] / each[name][kind] for each in rounds])

    kinds = ("open_s", "all_s")
    return {
        "name": name,
        **{kind: spread([each[name][kind] for each in rounds]) for kind in kinds},
        "times_as_fast_as": {kind: {peer: times_as_fast(kind, peer) for peer in PEERS} for kind in kinds},
    }


def _page(results: dict[str, Any], device_name: str) -> str:
    peers = list(PEERS)
    lines = [
        f"# From nothing to the first token, {results['date']}",
        "",
        f"`{results['command']}` at {results['commit']} on {device_name}: {results['software']}.",
        "",
        f"Median and range of {len(results['rounds'])} rounds; times as fast as {' and as '.join(peers)}. Wanted: not"
        " slower.",
        "",
        "| what | opening and first token, ms | times as fast | with the process's start, ms | times as fast |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        cells = []
        for kind in ("open_s", "all_s"):
            seconds, faster = row[kind], row["times_as_fast_as"][kind]
            cells.append(f"{1e3 * seconds['median']:.0f} ({1e3 * seconds['low']:.0f}–{1e3 * seconds['high']:.0f})")
            told = (f"{faster[p]['median']:.2f} ({faster[p]['low']:.2f}–{faster[p]['high']:.2f})" for p in peers)
            cells.append("; ".join(told))
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
