"""A folder that onnxruntime-genai serves: our graph in the contrib flavour, its configuration, and the tokenizer.

It is the graph of our own engines but for who says where the new tokens stand. Ours are told each place; onnxruntime-
genai gives a mask over the text so far, ones for tokens and zeros for what fills up shorter prompts on the right:

    attention_mask_BL   L tokens of the longest text, the T new ones included
    last_slot_B         = ones of each row - 1
    total_length        = L
    last_B              = min(ones of each row, T) - 1, for after the first T tokens it takes one by one unless B = 1
    logits_B1V          of these last tokens alone

It finds out from the graph which layers have a cache, and of how many heads. From its own 0.18, by trying: its
tokenizer knows the byte-level BPE of GPT-2, Llama 3 and Qwen, misreads others in silence, and begins no text with a
token. That is no obstacle to the model, which takes ids; it is remarked on.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from blockwright.compile.checkpoint import Weights
from blockwright.compile.engine import GRAPH_FILE, TOKENIZER_FILE, special_ids, write_graph
from blockwright.compile.export_tokenizer import name_of_pattern, put_around
from blockwright.compile.flavour import Flavour
from blockwright.errors import InputError
from blockwright.files import read_json, write_json
from blockwright.spec import Attention, Model

CONFIG_FILE = "genai_config.json"
_TOLD = ("last", "last_slot", "total_length")
"""Inputs of ours that are computed from the mask instead."""

_KEPT = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_KNOWN_PATTERNS = ("gpt-2", "llama-bpe", "dbrx", "qwen2")


def write_genai(model: Model, weights: Weights, checkpoint: Path, folder: Path, num_positions: int) -> None:
    """Writes everything into an existing, empty folder.

    Args:
        model: each matrix in the format that it says.
        weights: the checkpoint's.
        checkpoint: its folder, with the tokenizer.
        folder: where to.
        num_positions: the longest text; onnxruntime-genai makes caches of that size unless its user asks for less.

    Raises:
        InputError: the checkpoint or its tokenizer is missing or broken.
    """
    config = genai_config(model, checkpoint, num_positions)
    write_graph(model, weights, num_positions, Flavour(name="contrib"), folder)
    graph = onnx.load(folder / GRAPH_FILE, load_external_data=False)
    _place_by_mask(graph)
    (folder / GRAPH_FILE).write_bytes(graph.SerializeToString())
    write_json(folder / CONFIG_FILE, config)
    for file in (checkpoint / name for name in (TOKENIZER_FILE, *_KEPT)):
        if file.exists():
            shutil.copyfile(file, folder / file.name)


def genai_config(model: Model, checkpoint: Path, num_positions: int) -> dict[str, Any]:
    """What genai_config.json says: the names of our inputs and outputs, and how a text begins and ends.

    Raises:
        InputError: the checkpoint has no tokenizer or no configuration, or names no token that ends a text.
    """
    stop_ids, start_id = special_ids(checkpoint)
    if not stop_ids:
        raise InputError(
            f"{checkpoint / 'config.json'}: eos_token_id",
            got="none",
            expected="the token that ends a text; without one, onnxruntime-genai ends it at the padding token",
            remedy="Write one into the checkpoint's configuration.",
        )
    pad_id = read_json(checkpoint / "config.json").get("pad_token_id")
    ids: dict[str, Any] = {"eos_token_id": list(stop_ids)}
    if start_id is not None:
        ids["bos_token_id"] = start_id
    # Within a batch this token counts as none, wherever it stands.
    ids["pad_token_id"] = stop_ids[0] if pad_id is None else pad_id
    kv_heads = [block.mixer.num_kv_heads for block in model.layers if isinstance(block.mixer, Attention)]
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "session.set_denormal_as_zero": "1", "provider_options": []},
        "filename": GRAPH_FILE,
        "head_size": model.head_dim,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_heads,
        "num_hidden_layers": len(model.layers),
        "num_key_value_heads": max(kv_heads, default=1),
        "inputs": {
            "input_ids": "ids",
            "attention_mask": "attention_mask",
            "position_ids": "positions",
            "past_key_names": "past_key_%d",
            "past_value_names": "past_value_%d",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present_key_%d",
            "present_value_names": "present_value_%d",
        },
    }
    shape = {"type": "llama", "context_length": num_positions, "vocab_size": model.vocab_size, "decoder": decoder}
    return {
        "model": ids | shape,
        "search": {"do_sample": False, "max_length": num_positions, "past_present_share_buffer": True},
    }


def tokenizer_remark(checkpoint: Path) -> str | None:
    """Why texts should not be left to onnxruntime-genai's own tokenizer; None where it reads them as tokenizers does.

    Raises:
        InputError: there is no tokenizer.
    """
    data = read_json(checkpoint / TOKENIZER_FILE)
    model = data.get("model") or {}
    try:
        name = None if model.get("type") != "BPE" or model.get("byte_fallback") else name_of_pattern(data)
        puts_around = any(token is not None for token in put_around(data))
    except InputError:
        name, puts_around = None, False
    if name in _KNOWN_PATTERNS and not puts_around:
        return None
    what = "puts no special tokens around a text" if name in _KNOWN_PATTERNS else "reads texts otherwise, or not at all"
    return f"its own tokenizer {what}: give it ids from the tokenizers library"


def _place_by_mask(model: ModelProto) -> None:
    """Computes what our runtime tells a graph from the mask that onnxruntime-genai gives."""
    graph = model.graph
    told = {each.name for each in graph.input} & set(_TOLD)
    kept = [each for each in graph.input if each.name not in told]
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "length"])
    logits = next(each for each in graph.output if each.name == "logits")
    vocab_size = logits.type.tensor_type.shape.dim[-1].dim_value
    logits.CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, vocab_size]))
    for node in graph.node:
        node.output[:] = ["last_logits" if name == "logits" else name for name in node.output]
    nodes = [
        *_places(told),
        *graph.node,
        helper.make_node("Unsqueeze", ["last_logits", "second_axis"], ["logits"], name="logits.by_token"),
    ]
    del graph.input[:], graph.node[:]
    graph.input.extend([*kept, mask])
    graph.node.extend(nodes)
    for name, value in (("second_axis", [1]), ("one_token", [1])):
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.int64), name))


def _places(told: set[str]) -> list[onnx.NodeProto]:
    """The nodes that make `last`, and where there is attention `last_slot` and `total_length`."""

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], name=output, **attributes)

    nodes = [
        node("ReduceSum", ["attention_mask", "second_axis"], "num_tokens", keepdims=0),
        node("Shape", ["ids"], "num_new", start=1, end=2),
        node("Min", ["num_tokens", "num_new"], "num_tokens_here"),
        node("Sub", ["num_tokens_here", "one_token"], "last"),
    ]
    if "last_slot" in told:
        nodes += [
            node("Sub", ["num_tokens", "one_token"], "last_slot.wide"),
            node("Cast", ["last_slot.wide"], "last_slot", to=TensorProto.INT32),
            node("Shape", ["attention_mask"], "length", start=1, end=2),
            node("Squeeze", ["length"], "total_length.wide"),
            node("Cast", ["total_length.wide"], "total_length", to=TensorProto.INT32),
        ]
    return nodes
