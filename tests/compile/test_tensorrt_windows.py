"""Plans whose windows go round in short caches, really built by TensorRT-RTX; nothing here can run one."""

import json
from pathlib import Path

import onnx
import pytest
from safetensors.numpy import save_file

from blockwright.compile.engine import GRAPH_FILE, TOKENIZER_FILE
from blockwright.compile.slots import PREFILL_CHUNK
from blockwright.compile.tensorrt_engine import TensorRtOrder, build_tensorrt_engine
from blockwright.compile.tensorrt_package import Form, find_package
from blockwright.compile.tensorrt_stored import stored_for_tensorrt
from blockwright.errors import InputError
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FP16, Attention, Block, GatedFFN, NoOp, Window

try:
    PACKAGE = find_package(("tensorrt_rtx",))
except InputError as absent:
    pytest.skip(f"TensorRT-RTX is needed (the extra tensorrt-rtx): {absent.got}", allow_module_level=True)

CONTEXT = 4 * PREFILL_CHUNK
LAYERS = (
    Block(mixer=Attention(num_kv_heads=2, reach=Window(num_tokens=16)), ffn=NoOp()),
    Block(mixer=Attention(num_kv_heads=1), ffn=GatedFFN(width=256)),
    Block(mixer=Attention(num_kv_heads=4, reach=Window(num_tokens=700)), ffn=NoOp()),
)
MODEL = llama(LAYERS, hidden_size=128, num_heads=4, head_dim=32, vocab_size=256, max_positions=CONTEXT)
SLOTS = (3 * PREFILL_CHUNK, CONTEXT, 3 * PREFILL_CHUNK)
"""By layer."""


@pytest.mark.parametrize("form", ["fused", "decomposed"])
def test_plans_have_caches_of_several_lengths(form: Form, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    save_file(random_weights(MODEL), checkpoint / "model.safetensors")
    (checkpoint / TOKENIZER_FILE).write_text("{}")
    (checkpoint / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    order = TensorRtOrder(
        stored=stored_for_tensorrt(MODEL, FP16),
        num_positions=CONTEXT,
        most_sequences=2,
        package=PACKAGE,
        capabilities=("sm89",),
        built_from="digest",
        form=form,
    )
    engine = build_tensorrt_engine(order, checkpoint, tmp_path / "engine")
    inputs = onnx.load(tmp_path / "engine" / GRAPH_FILE, load_external_data=False).graph.input
    sizes = {each.name: each.type.tensor_type.shape.dim[2].dim_value for each in inputs if "past_key" in each.name}
    assert sizes == {f"past_key_{layer}": slots for layer, slots in enumerate(SLOTS)}
    assert engine.slots == CONTEXT
    indices = {each.name for each in inputs if "write_index" in each.name}
    assert indices == ({"write_index", "write_index_around"} if form == "fused" else set())
