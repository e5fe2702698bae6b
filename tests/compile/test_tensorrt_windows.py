"""Plans whose windows go round in short caches, really built by TensorRT-RTX; nothing here can run one."""

import json
from pathlib import Path

import onnx
import pytest
from safetensors.numpy import save_file

from blockwright.compile.engine import GRAPH_FILE, TOKENIZER_FILE
from blockwright.compile.slots import PREFILL_CHUNK, caches_of
from blockwright.compile.tensorrt_engine import TensorRtOrder, build_tensorrt_engine
from blockwright.compile.tensorrt_package import Form, find_package
from blockwright.compile.tensorrt_stored import stored_for_tensorrt
from blockwright.errors import InputError
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Attention, Block, Full, GatedFFN, Model, NoOp, Window, parse_format

try:
    PACKAGE = find_package(("tensorrt_rtx",))
except InputError as absent:
    pytest.skip(f"TensorRT-RTX is needed (the extra tensorrt-rtx): {absent.got}", allow_module_level=True)

CONTEXT = 4 * PREFILL_CHUNK


def _layers(pattern: str) -> tuple[Block, ...]:
    """s and l for a short and a long window, f for full attention, - for none."""
    reaches = {"s": Window(num_tokens=16), "l": Window(num_tokens=700), "f": Full()}
    return tuple(
        Block(
            mixer=NoOp() if letter == "-" else Attention(num_kv_heads=(2, 1, 4)[index % 3], reach=reaches[letter]),
            ffn=GatedFFN(width=256) if index % 2 else NoOp(),
        )
        for index, letter in enumerate(pattern)
    )


def _model(pattern: str) -> Model:
    return llama(_layers(pattern), hidden_size=128, num_heads=4, head_dim=32, vocab_size=256, max_positions=CONTEXT)


@pytest.mark.parametrize("format", ["fp16", "int4-g32"])
@pytest.mark.parametrize("form", ["fused", "decomposed"])
@pytest.mark.parametrize("pattern", ["sfl", "ssf", "s-sf", "sss", "fsf", "ffs", "ffssl", "lssssfsslssf"])
def test_plans_have_caches_of_two_lengths(pattern: str, form: Form, format: str, tmp_path: Path) -> None:
    model, checkpoint = _model(pattern), tmp_path / "checkpoint"
    checkpoint.mkdir()
    save_file(random_weights(model), checkpoint / "model.safetensors")
    (checkpoint / TOKENIZER_FILE).write_text("{}")
    (checkpoint / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    order = TensorRtOrder(
        stored=stored_for_tensorrt(model, parse_format(format)),
        num_positions=CONTEXT,
        most_sequences=2,
        package=PACKAGE,
        capabilities=("sm89",),
        built_from="digest",
        form=form,
    )
    build_tensorrt_engine(order, checkpoint, tmp_path / "engine")
    inputs = onnx.load(tmp_path / "engine" / GRAPH_FILE, load_external_data=False).graph.input
    sizes = {each.name: each.type.tensor_type.shape.dim[2].dim_value for each in inputs if "past_key" in each.name}
    held = caches_of(model, CONTEXT)
    assert sizes == {f"past_key_{layer}": each.slots for layer, each in held.items()}
    assert min(sizes.values()) < CONTEXT
    indices = {each.name for each in inputs if "write_index" in each.name}
    around = {"write_index_around" if each.goes_round else "write_index" for each in held.values()}
    assert indices == (around if form == "fused" else set())
