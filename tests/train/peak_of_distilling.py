"""Distils or judges once, and prints by how many bytes that let the process grow, for `test_memory.py`."""

import json
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from blockwright.strict import from_data
from blockwright.train.distill import GkdSettings, distill
from blockwright.train.quality import compare_windows
from blockwright.train.windows import Windows

SETTINGS, IS_JUDGED = from_data(GkdSettings, json.loads(sys.argv[1]), "settings"), sys.argv[2] == "True"


def resident_bytes() -> int:
    """What the process takes now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def run(hidden_size: int, vocab_size: int, num_windows: int) -> None:
    """A distillation, or a judgement, of untrained models."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    child, parent = (AutoModelForCausalLM.from_config(config, attn_implementation="sdpa") for _ in range(2))
    if IS_JUDGED:
        ids_NT = torch.randint(0, vocab_size, (8, 512))
        compare_windows(child, parent, Windows(ids_NT=ids_NT, document_N=np.zeros(8, int), bytes_per_token=1))
        return
    batches = [torch.randint(0, vocab_size, (num_windows, 128)) for _ in range(2)]
    distill(child, parent, batches, SETTINGS, Path(tempfile.mkdtemp()) / "state")


if __name__ == "__main__":
    run(16, 64, 1)
    before_bytes = resident_bytes()
    run(256, 4096, 16)
    status = Path("/proc/self/status").read_text()  # getrusage hands on the peak of the process that forked
    print(1024 * int(status.split("VmHWM:")[1].split()[0]) - before_bytes)
