"""One contestant of race.py in a process of its own, which stays open and measures when told: not to be run by hand.

It is given an `Entry` in JSON, builds, opens, and runs every case once. Then it takes orders from standard input, one
in a line, and answers each in a line; what anything else prints goes to standard error.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

# So that a bare checkout will do.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from kernels_gpu_race import SMALL as SMALL_KERNELS
from kernels_gpu_race import Bench
from race_players import MODELS, Case, Entry, Load, Player, text_of

from blockwright.compile.tensorrt_stored import stored_for_tensorrt
from blockwright.errors import InputError
from blockwright.spec import parse_format
from blockwright.strict import from_data

COPY = "copy"
MODULES = {
    "torch eager": "race_torch",
    "torch.compile": "race_torch",
    "ONNX Runtime": "race_engines",
    "TensorRT": "race_engines",
}
_COPY_BYTES = 2**28
"""More than any L2 cache holds, and little beside what the others hold."""
Answer = dict[str, Any]


def main() -> None:
    """Sets up, then answers until no orders come."""
    entry = from_data(Entry, json.loads(sys.argv[1]), "entry")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like

    def tell(**answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    answer_to = copying(entry) if entry.runtime == COPY else playing(entry, tell)
    tell(stage="ready")
    for line in sys.stdin:
        tell(**answer_to(json.loads(line)))


def copying(entry: Entry) -> Callable[[Answer], Answer]:
    """Measures the rate of a copy whenever it is asked."""
    plan = SMALL_KERNELS if entry.is_small else replace(SMALL_KERNELS, copy_bytes=_COPY_BYTES)
    device = torch.device(entry.device)
    return lambda _: {"bytes_per_s": Bench(device, plan).bytes_per_s}


def playing(entry: Entry, tell: Callable[..., None]) -> Callable[[Answer], Answer]:
    """Opens a player and runs each case once, for what is made at the first run: kernels, graphs, room."""
    began = time.perf_counter()
    try:
        player: Player = importlib.import_module(MODULES[entry.runtime]).PLAYERS[entry.runtime](entry)
    except (InputError, RuntimeError) as error:  # torch's and ONNX Runtime's errors of CUDA are of the latter kind
        tell(stage="refused", why=str(error))
        sys.exit(1)
    tell(stage="opened", facts=getattr(player, "facts", {}), opened_s=time.perf_counter() - began)
    cases = [measured(player, *case) | {"case": case} for case in entry.cases]
    least = [
        {"model": name, "tokens": tokens, "batch": batch, "bytes": player.least_bytes(name, tokens, batch)}
        for name, what, tokens, batch in entry.cases
        if what == "decode"
    ]
    failed = [case for case in cases if "why" in case]
    runs = [case for case, tried in zip(entry.cases, cases, strict=True) if tried not in failed]
    tell(stage="tried", failed=failed, least=least, set_up_s=time.perf_counter() - began)

    def answer(order: Answer) -> Answer:
        match order["do"]:
            case "reference":
                return write_references(player, order)
            case "compare":
                return compared(player, order, runs)
            case _:
                return measured(player, *order["case"])

    return answer


def measured(player: Player, name: str, what: str, tokens: int, batch: int) -> Answer:
    """Its time, or why there is none."""
    try:
        return {"time_s": player.time_s(name, what, tokens, batch)}
    except (InputError, RuntimeError) as error:
        return {"why": str(error)}


def write_references(player: Any, order: Answer) -> Answer:
    """Writes what the models say in each format, for the others to be held against, or tells why it cannot."""
    for format_name in order["formats"]:
        said = {}
        for name in MODELS:
            stored = stored_for_tensorrt(player.models[name], parse_format(format_name)).model
            said |= {_key(name, load): found for load, found in player.reference(name, stored).items()}
        if not all(np.isfinite(each).all() for each in said.values()):
            return {"why": f"its logits in {format_name} are not all numbers"}
        np.savez(Path(order["folder"]) / f"{format_name}.npz", **said)
    return {"is_written": True}


def compared(player: Player, order: Answer, cases: list[Case]) -> Answer:
    """The largest difference of logits to the reference's, as a share of their spread, by model.

    Args:
        player: whose.
        order: says where the references are.
        cases: those that ran when they were tried; the others are not timed.
    """
    reference = np.load(Path(order["folder"]) / f"{player.entry.format}.npz")
    differences: dict[str, float] = {}
    try:
        for name, load in ((case[0], case[1:]) for case in cases):
            expected_SBV = reference[_key(name, load)]
            found_SBV = player.logits(name, text_of(player.entry.plan, load))
            if not np.isfinite(found_SBV).all():  # JSON has no word for how far off these are
                return {"differences": differences, "why": f"its logits are not all numbers: {_key(name, load)}"}
            off = float(np.abs(found_SBV - expected_SBV).max() / expected_SBV.std())
            differences[name] = max(off, differences.get(name, 0.0))
    except (InputError, RuntimeError) as error:
        return {"differences": differences, "why": str(error)}
    return {"differences": differences}


def _key(name: str, load: Load) -> str:
    return "-".join(map(str, (name, *load)))


if __name__ == "__main__":
    main()
