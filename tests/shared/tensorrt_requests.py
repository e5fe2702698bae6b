"""Graphs of small models, written for TensorRT-RTX to build."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from blockwright.compile.decoder import decoder_graph
from blockwright.compile.engine import GRAPH_FILE
from blockwright.compile.tensorrt_build import BuildRequest
from blockwright.compile.tensorrt_checks import expected_of
from blockwright.compile.tensorrt_engine import (
    PLAN_FILE,
    flavour_of,
    token_ranges,
)
from blockwright.compile.tensorrt_package import Form, find_package
from blockwright.compile.tensorrt_stored import Stored, stored_for_tensorrt
from blockwright.errors import InputError
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Attention, Block, GatedFFN, Model, Window, parse_format
from decoders import every_kind

try:
    PACKAGE = find_package(("tensorrt_rtx",))
except InputError as absent:
    pytest.skip(f"TensorRT-RTX is needed (the extra tensorrt-rtx): {absent.got}", allow_module_level=True)
GPUS = ("sm86", "sm89", "sm120")
CONTEXT = 128
HETEROGENEOUS = every_kind(512, 256, 128, reach=Window(num_tokens=16))
HOMOGENEOUS = (Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=256)),) * 2
PLAIN = llama(HETEROGENEOUS, hidden_size=128, num_heads=4, head_dim=32, vocab_size=256, max_positions=CONTEXT)
SMALL = replace(PLAIN, layers=HOMOGENEOUS)


def request_of(folder: Path, model: Model, text: str = "fp16", form: Form = "fused", **changes: Any) -> BuildRequest:
    """Of a graph written into a folder, with a profile."""
    return replace(written_request(folder, stored_for_tensorrt(model, parse_format(text)), form), **changes)


def written_request(folder: Path, stored: Stored, form: Form = "fused") -> BuildRequest:
    flavour = flavour_of(form, stored, CONTEXT)
    onnx.save_model(decoder_graph(stored.model, random_weights(stored.model), CONTEXT, flavour), folder / GRAPH_FILE)
    return BuildRequest(
        package=PACKAGE.name,
        graph=str(folder / GRAPH_FILE),
        plan=str(folder / PLAN_FILE),
        capabilities=GPUS,
        profiles=token_ranges(CONTEXT)[:1],
        most_sequences=1,
        expected=expected_of(stored.model, form),
        timing_cache=None,
    )
