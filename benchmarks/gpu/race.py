"""TensorRT against torch and ONNX Runtime on any NVIDIA GPU, in one run: `python benchmarks/gpu/race.py`.

First what the machine has, and whether each TensorRT that is installed takes the chip, in its own words. Then a race
over one parent of 200 M random weights and its child of `onnxruntime_cuda.py`, on the same prompts: transformers in
fp16, whose logits all others must agree with, after all that is timed; a decoder of our own by torch.compile and CUDA
graphs, in fp16 and in int4 by our Triton kernel; our engines in ONNX Runtime and in TensorRT, in fp16 and int4. A token
behind 128 and 2048 others, and a prompt of 512. Each contestant sits in a process of its own and measures when told, so
that rounds take all of them in turn, beside the rate of a copy in the same round. One that fails is listed with its own
words and how far it came, and the others go on. Last come the cases of `kernels_gpu.py`.

Needs torch with CUDA, transformers and onnxruntime; what else is installed plays along. `--minutes` bounds it all;
`--device cpu --small` tries it out without a GPU. Writes race_<device>_<date>.json and .md, after each round.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# So that a bare checkout will do.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from provenance import RESULTS, origin, write_results
from race_contestant import COPY
from race_page import as_text
from race_players import Entry
from race_processes import Contestant, told
from tensorrt_gpu import PACKAGES, TOLERANCE, Case, try_case

from blockwright.compile.tensorrt_package import find_package
from blockwright.compile.tensorrt_target import gpu_capability
from blockwright.errors import InputError
from blockwright.files import new_file, write_json
from blockwright.hw_profiles.device import this_device

FORMATS = ("fp16", "int4-g64")
"""Groups of 64 are the smallest that TensorRT is documented to keep."""
REFERENCE = "torch eager"
_SET_UP, _ROUNDS = 0.55, 0.75
"""Until which shares of all time contestants are set up and rounds begin."""
_LIMIT_S = 60
"""For one answer."""
_SOFTWARE = ("torch", "triton", "transformers", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")


def main() -> None:
    """Looks round, races, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try it out")
    parser.add_argument("--batches", default="1", help="of texts side by side, as 1,8")
    parser.add_argument(
        "--only", help="who plays beside the reference, as 'torch.compile, int4-g64;tensorrt_rtx, fp16'"
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="for all of it")
    parser.add_argument("--without-kernels", action="store_true", help="leave out the cases of kernels_gpu.py")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("No GPU that torch can use is here. --device cpu --small tries the script out without one.")
    ends = [time.monotonic() + 60 * asked.minutes * share for share in (_SET_UP, _ROUNDS, 1.0)]
    results, entries = look_round(asked)
    name = str(results["accelerator"] or "cpu").replace(" ", "-").lower()
    stem = asked.out / f"race_{name}_{results['date']}"
    with tempfile.TemporaryDirectory() as folder:
        contestants = set_up(entries, Path(folder), ends[0])
        try:
            results["unchecked"] = compare(contestants, results["contestants"], Path(folder))
            race(contestants, results, stem, ends[1])
        finally:
            for each in contestants:
                each.end()
        if not asked.without_kernels:
            results["kernels"] = kernels(asked, Path(folder), ends[2] - time.monotonic())
    write_results(results, as_text(results), stem)
    if not any("time_s" in row for each in results["rounds"] for row in each["times"]):
        raise SystemExit("Nobody was timed: see above.")


def look_round(asked: argparse.Namespace) -> tuple[dict[str, Any], list[Entry]]:
    """What the machine has and who would play, for the page; and who plays."""
    has_gpu = asked.device == "cuda"
    capability = gpu_capability() if has_gpu else None
    batches = tuple(int(word) for word in asked.batches.split(","))
    made = {"device": asked.device, "capability": capability, "is_small": asked.small, "batches": batches}
    entries = [
        Entry(runtime=REFERENCE, variant="", format="fp16", **made),
        *(Entry(runtime="torch.compile", variant="", format=each, **made) for each in FORMATS),
        *(
            Entry(runtime="ONNX Runtime", variant=f"ONNX Runtime {flavour}", format=each, **made)
            for flavour in ("standard", "contrib")
            for each in FORMATS
        ),
    ]
    probes = {package: probe(package, capability) for package in PACKAGES}
    engines = [Entry(runtime="TensorRT", variant=name, format=each, **made) for name in PACKAGES for each in FORMATS]
    rows = [{"name": entry.name, "why": _left_out(entry, asked.only)} for entry in entries]
    rows += [{"name": each.name, "why": probes[each.variant]["why"] or _left_out(each, asked.only)} for each in engines]
    plays = {row["name"] for row in rows if row["why"] is None}
    command = shlex.join(["python", "benchmarks/gpu/race.py", *sys.argv[1:]])
    results = origin(command, this_device()) | {
        "accelerator": torch.cuda.get_device_name() if has_gpu else None,
        "capability": capability,
        "gpu": gpu_facts() if has_gpu else None,
        "versions": {package: _version(package) for package in _SOFTWARE},
        "minutes": asked.minutes,
        "tolerance": TOLERANCE,
        "unchecked": None,
        "probes": probes,
        "contestants": rows,
        "rounds": [],
        "kernels": None,
    }
    return results, [each for each in entries + engines if each.name in plays]


def _left_out(entry: Entry, only: str | None) -> str | None:
    is_in = only is None or entry.runtime == REFERENCE or entry.name in only.split(";")
    return None if is_in else "it was not asked for"


def probe(package: str, capability: str | None) -> dict[str, Any]:
    """Whether a TensorRT takes the chip: a tiny plan is built for it, opened and run."""
    try:
        title = find_package((package,)).title  # pyright: ignore[reportArgumentType]
    except InputError as error:
        return {"title": package, "why": str(error)}
    if capability is None:
        return {"title": title, "why": "it needs a GPU to run"}
    case = Case(package=package, format="fp16", is_probe=True, is_small=True, capability=capability)  # pyright: ignore[reportArgumentType]
    found = try_case(case)
    came = [word for word in ("built", "opened", "races") if word in found]
    return {"title": title, "why": found["why"], "came": came}


def gpu_facts() -> dict[str, str]:
    """What nvidia-smi says of the GPU."""
    asked = ("name", "driver_version", "memory.total", "clocks.max.sm", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader", "--id=0"]
    said = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    return dict(zip(asked, said.split(", "), strict=False))


def set_up(entries: list[Entry], folder: Path, deadline: float) -> list[Contestant]:
    """Starts the copy and all that play, full TensorRT last and alone: it chooses kernels by their times."""
    entries = [replace(entries[0], runtime=COPY, variant=COPY), *entries]
    alone = [entry for entry in entries if entry.variant == "tensorrt"]
    contestants: list[Contestant] = []
    for group in ([each for each in entries if each not in alone], *([each] for each in alone)):
        started = [Contestant(entry, folder / f"{entry.name}.log") for entry in group]
        contestants += started
        for each in started:
            each.set_up(deadline)
    return contestants


def compare(contestants: list[Contestant], rows: list[dict[str, Any]], folder: Path) -> str | None:
    """Holds all logits against the reference's, and takes out who differs; or tells why nobody could be compared."""
    reference = next(each for each in contestants if each.entry.runtime == REFERENCE)
    order = {"do": "reference", "formats": FORMATS, "folder": str(folder)}
    unchecked: str | None = reference.ask(order, 2 * _LIMIT_S).get("why")
    for each in contestants:
        if unchecked is None and each.why is None and each.entry.runtime not in (REFERENCE, COPY):
            answer = each.ask({"do": "compare", "folder": str(folder)}, 2 * _LIMIT_S)
            each.came["compared"] = answer
            worst = max(answer.get("differences", {}).values(), default=0.0)
            if "why" in answer:
                each.end(answer["why"])
            elif worst > TOLERANCE:
                each.end(f"its logits are off by {worst:.1e} of their spread, more than {TOLERANCE:.0e}")
    _note(contestants, rows)
    return unchecked


def _note(contestants: list[Contestant], rows: list[dict[str, Any]]) -> None:
    known = {each.entry.name: each for each in contestants}
    for row in rows:
        if each := known.get(row["name"]):
            row |= {"why": each.why, "came": each.came}


def race(contestants: list[Contestant], results: dict[str, Any], stem: Path, deadline: float) -> None:
    """Round after round, each case by all in turn, the one who begins another one each time."""
    copy, players = contestants[0], contestants[1:]
    if not players:
        return
    plan, cases = players[0].entry.plan, players[0].entry.cases
    for index in range(1 + plan.rounds):
        if index > 1 and time.monotonic() > deadline:
            return
        rate = copy.ask({}, _LIMIT_S).get("bytes_per_s")
        times: list[dict[str, Any]] = []
        for case in cases:
            for each in players[index % len(players) :] + players[: index % len(players)]:
                if each.why is None and list(case) not in _failed(each):
                    answer = each.ask({"do": "time", "case": case}, _LIMIT_S)
                    words = zip(("model", "what", "tokens", "batch"), case, strict=True)
                    times.append({"contestant": each.entry.name} | dict(words) | answer)
        _note(contestants, results["contestants"])
        if index:  # the first wakes the clocks
            results["rounds"].append({"copy_bytes_per_s": rate, "times": times})
            write_quietly(results, stem)


def _failed(contestant: Contestant) -> list[list[Any]]:
    return [each["case"] for each in contestant.came["tried"]["failed"]]


def write_quietly(results: dict[str, Any], stem: Path) -> None:
    """Writes what there is so far."""
    write_json(stem.with_suffix(".json"), results)
    with new_file(stem.with_suffix(".md")) as temporary:
        temporary.write_text(as_text(results))


def kernels(asked: argparse.Namespace, folder: Path, limit_s: float) -> dict[str, Any]:
    """What kernels_gpu.py finds in the time that is left."""
    words = ["--small"] * asked.small + ["--interpret"] * (asked.device == "cpu")
    command = [
        sys.executable,
        str(Path(__file__).with_name("kernels_gpu.py")),
        *words,
        "--out",
        str(folder / "kernels"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=max(1.0, limit_s))
    except subprocess.TimeoutExpired:
        return {"why": f"they were not done in the {limit_s:.0f} s that were left"}
    found = list((folder / "kernels").glob("*.json"))
    return told(json.loads(found[0].read_text()) if found else {}, done.returncode, done.stderr)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
