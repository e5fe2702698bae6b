"""llama.cpp itself loads what is written for it, and computes and tokenises as torch and tokenizers do."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from blockwright.compile.blocked import rounded
from blockwright.compile.export import ExportOrder, read_export, write_export
from blockwright.compile.export_gguf import architecture
from blockwright.compile.ggml import pack_matrix, unpack_matrix
from blockwright.errors import InputError
from blockwright.model.child import load_child, save_child
from blockwright.spec import (
    FP32,
    Block,
    Format,
    LinearMixer,
    Model,
    NoOp,
    Rope,
    parse_format,
    stored_as,
    with_format,
)
from gguf_files import LENGTH, SAME, VOCAB, attention_of, child_of_kind, ffn_of, gguf_model, post, server_of, write_gguf

gguf = pytest.importorskip("gguf", reason="GGUF files are written by the package gguf (the extra gguf)")
MIXED = (
    (attention_of(), ffn_of()),
    (NoOp(), ffn_of(96)),
    (NoOp(), NoOp()),
    (LinearMixer(), ffn_of(32)),
    (attention_of(4), ffn_of()),
)
LLAMA3 = (("factor", 8.0), ("high_freq_factor", 4.0), ("low_freq_factor", 1.0), LENGTH)
KINDS = {
    "the same layers": gguf_model(*SAME),
    "the same layers, tied": gguf_model(*SAME, has_tied_embeddings=True),
    "the same layers with biases": gguf_model(*SAME, has_qkv_bias=True, has_output_bias=True, has_ffn_bias=True),
    "the same layers, Llama 3.1": gguf_model(*SAME, rope=Rope(theta=5e5, scaling="llama3", parameters=LLAMA3)),
    "mixed layers": gguf_model(*MIXED),
    "mixed layers, tied": gguf_model(*MIXED, has_tied_embeddings=True),
    "mixed layers with biases": gguf_model(
        MIXED[0], *MIXED[4:], has_qkv_bias=True, has_output_bias=True, has_ffn_bias=True
    ),
    "mixed layers, heads of another size": gguf_model(*MIXED, head_dim=32),
    "mixed layers, another base": gguf_model(*MIXED, rope=Rope(theta=5e5)),
    "mixed layers, Llama 3.1": gguf_model(*MIXED, rope=Rope(theta=1e4, scaling="llama3", parameters=LLAMA3)),
    "mixed layers, linear": gguf_model(*MIXED, rope=Rope(theta=1e4, scaling="linear", parameters=(("factor", 2.0),))),
    "mixed layers, YaRN": gguf_model(
        *MIXED, rope=Rope(theta=1e4, scaling="yarn", parameters=(("factor", 4.0), LENGTH))
    ),
    "odd widths": gguf_model((attention_of(), ffn_of(40)), (attention_of(1), ffn_of(41))),
    "nothing first and last": gguf_model((NoOp(), NoOp()), MIXED[0], (attention_of(1), ffn_of(41)), (NoOp(), NoOp())),
}


def generate_by(server: Any, prompt: list[int], num_tokens: int) -> tuple[list[int], np.ndarray]:
    """The likeliest tokens but for the one that ends a text, and the logarithms of all probabilities before each."""
    asked = {"prompt": prompt, "n_predict": num_tokens, "temperature": 0, "n_probs": VOCAB, "ignore_eos": True}
    content = post(server, "completion", asked)["completion_probabilities"]
    logs = np.zeros((len(content), VOCAB))
    for step, token in enumerate(content):
        for other in token["top_logprobs"]:
            logs[step, other["id"]] = other["logprob"]
    return [token["id"] for token in content], logs


@torch.no_grad()
def _expected(child: PreTrainedModel, prompt: list[int], tokens: list[int]) -> np.ndarray:
    logits = child(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :]
    return torch.log_softmax(logits, dim=-1).numpy()


def _off_by(file: Path, *children: PreTrainedModel) -> tuple[float, list[float]]:
    """What llama.cpp's choices fall short of the first child's, and how far its logits are from theirs.

    Both over a whole generation and in shares of the spread of the logits; the distance is a root mean square.
    """
    draw = random.Random(0)
    prompt = [draw.randrange(1, VOCAB) for _ in range(40)]
    with server_of(file) as server:
        tokens, logs = generate_by(server, prompt, 12)
    assert len(tokens) == 12
    expected = [_expected(child, prompt, tokens) for child in children]
    short = expected[0][:, 1:].max(axis=1) - expected[0][range(len(tokens)), tokens]
    return float(short.max() / expected[0].std()), [
        float(np.sqrt(np.mean(np.square(logs - other))) / other.std()) for other in expected
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_generates_what_torch_does(kind: str, small_parent: Path, tmp_path: Path) -> None:
    child = write_gguf(KINDS[kind], FP32, small_parent, tmp_path)
    short, (off_by,) = _off_by(tmp_path / "out" / "model.gguf", child)
    assert short == 0
    assert off_by < 1e-5


@pytest.mark.parametrize("kind", ["the same layers", "mixed layers", "mixed layers, tied"])
@pytest.mark.parametrize(("weights", "most"), [("fp16", 0.003), ("int8", 0.06), ("int4", 0.06), ("int4-g64", 0.06)])
def test_llama_cpp_generates_from_rounded_weights_what_torch_does(
    weights: str, most: float, kind: str, small_parent: Path, tmp_path: Path
) -> None:
    model = KINDS[kind]
    if weights == "int4-g64":
        model = replace(model, layers=tuple(replace(b, ffn=ffn_of(128)) for b in model.layers))
    child = write_gguf(model, parse_format(weights), small_parent, tmp_path)
    plain = load_child(tmp_path / "child", model)
    short, (off_by, off_plain) = _off_by(tmp_path / "out" / "model.gguf", child, plain)
    assert off_by < most  # llama.cpp rounds what is multiplied to 8 bits too, and to 16 beside fp16
    assert short < 3 * most
    assert off_by < off_plain / (5 if "int4" in weights else 1)


def test_the_attention_of_a_layer_without_an_ffn_is_refused_by_name(small_parent: Path, tmp_path: Path) -> None:
    model = gguf_model(*SAME, (attention_of(), NoOp()))
    with pytest.raises(InputError, match="layer 2: the attention of a layer with a no-op ffn is dropped"):
        write_gguf(model, FP32, small_parent, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "weights", "words"),
    [
        (
            gguf_model(MIXED[0], (attention_of(), ffn_of(40))),
            "int4",
            "layer 1: 40 channels are no multiple of the group of 32",
        ),
        (gguf_model(*SAME), "int4-g16", "layer 0: groups of 16 do not fill the blocks of 32"),
        (gguf_model(*SAME), "bf16", "layer 0: bf16 is not written, only fp32, fp16, int8, int4"),
        (gguf_model(*SAME, has_qk_norm=True), "fp32", "norms on queries and keys"),
    ],
)
def test_what_llama_cpp_cannot_hold_is_refused_before_anything_is_written(
    model: Model, weights: str, words: str, tmp_path: Path
) -> None:
    order = ExportOrder(
        model=with_format(model, parse_format(weights)), target="llama.cpp", is_child=True, built_from=""
    )
    with pytest.raises(InputError, match=words):
        write_export(order, tmp_path / "nowhere", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_only_layers_of_one_shape_are_a_llama() -> None:
    assert [architecture(KINDS[kind]) for kind in ("the same layers", "mixed layers")] == ["llama", "deci"]
    nothing = (NoOp(), NoOp())
    assert architecture(gguf_model(nothing, *SAME, nothing)) == "llama"
    assert architecture(gguf_model((LinearMixer(), ffn_of()))) == "deci"


@pytest.mark.parametrize("text", ["int4", "int8", "int4-g128"])
def test_our_codes_are_read_back_exactly_but_for_the_scale(text: str) -> None:
    weights = parse_format(text)
    weight_NK = np.random.default_rng(0).normal(size=(8, 256)).astype(np.float32)
    blocks, error = pack_matrix(weight_NK, weights)
    from_ggml = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType["Q8_0" if weights.name == "int8" else "Q4_0"])
    assert np.array_equal(unpack_matrix(blocks, weights), from_ggml)
    ours = rounded(weight_NK.T, weights).T
    off_by = np.sqrt(np.mean(np.square(from_ggml - ours)) / np.mean(np.square(ours)))
    assert off_by == pytest.approx(error, rel=1e-3)
    assert 0 < error < 2**-11


def test_a_file_cut_short_is_noticed(small_parent: Path, tmp_path: Path) -> None:
    write_gguf(KINDS["mixed layers"], FP32, small_parent, tmp_path)
    assert read_export(tmp_path / "out").format == "fp32"
    file = tmp_path / "out" / "model.gguf"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"model\.gguf: got .* bytes"):
        read_export(tmp_path / "out")


def test_each_layer_is_stored_as_a_plan_says(small_parent: Path, tmp_path: Path) -> None:
    int4, fp16 = parse_format("int4"), Format(name="fp16")
    plain = gguf_model(*SAME)
    first, second = plain.layers
    layers = (
        Block(mixer=stored_as(first.mixer, int4), ffn=first.ffn),
        replace(second, ffn=stored_as(second.ffn, fp16)),
    )
    source = tmp_path / "child"
    source.mkdir()
    save_child(child_of_kind(plain), plain, PreTrainedTokenizerFast.from_pretrained(small_parent), source, {})
    order = ExportOrder(model=replace(plain, layers=layers), target="llama.cpp", is_child=True, built_from="")
    assert write_export(order, source, tmp_path / "out").format == "mixed"
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert types["blk.0.attn_q.weight"] == "Q4_0"
    assert types["blk.0.ffn_up.weight"] == types["token_embd.weight"] == types["blk.1.attn_norm.weight"] == "F32"
    assert types["blk.1.ffn_up.weight"] == "F16"
