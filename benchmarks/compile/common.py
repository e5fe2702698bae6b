"""What `decode.py`, `export.py` and `startup.py` share: their commands, contestants apart, ranges, made-up tokens."""

import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def command_line() -> str:
    """The command that runs, all of its flags with it."""
    return shlex.join(["python", f"benchmarks/compile/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def apart(script: str, name: str, folder: str, *flags: str) -> dict[str, float]:
    """What a script's contestant, in a process of its own, says on its last line."""
    words = [sys.executable, script, "--one", name, folder, *flags]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip()}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def made_up_tokenizer(vocab_size: int) -> dict[str, Any]:
    """For llama.cpp, which loads no model without tokens."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*special, *(f"t{index}" for index in range(len(special), vocab_size))],
        "tokenizer.ggml.scores": [0.0] * vocab_size,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (vocab_size - len(special))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
