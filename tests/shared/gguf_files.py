"""GGUF files of small children, and llama.cpp to load them."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from blockwright.compile.export import ExportOrder, write_export
from blockwright.compile.ggml import pack_matrix, unpack_matrix
from blockwright.llama import llama
from blockwright.model.child import build_child, load_weights, save_child
from blockwright.spec import (
    FFN,
    Attention,
    Block,
    Format,
    GatedFFN,
    Mixer,
    Model,
    with_format,
)

VOCAB = 300


def gguf_model(*layers: tuple[Mixer, FFN], **changes: Any) -> Model:
    model = llama(
        tuple(Block(mixer=mixer, ffn=ffn) for mixer, ffn in layers),
        vocab_size=VOCAB,
        hidden_size=64,
        num_heads=4,
        head_dim=16,
        max_positions=256,
        has_tied_embeddings=False,
    )
    return replace(model, **changes)


def attention_of(num_kv_heads: int = 2) -> Attention:
    return Attention(num_kv_heads=num_kv_heads)


def ffn_of(width: int = 64) -> GatedFFN:
    return GatedFFN(width=width)


SAME = ((attention_of(), ffn_of()),) * 2
LENGTH = ("original_max_position_embeddings", 32.0)


def child_of_kind(model: Model) -> PreTrainedModel:
    """A random child: norms and biases are not left at 1 and 0."""
    rope = {"rope_type": model.rope.scaling, "rope_theta": model.rope.theta} | dict(model.rope.parameters)
    rope |= {name: int(value) for name, value in rope.items() if name == LENGTH[0]}
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_heads,
        num_key_value_heads=2,
        head_dim=model.head_dim,
        max_position_embeddings=model.max_positions,
        rms_norm_eps=model.norm_eps,
        tie_word_embeddings=model.has_tied_embeddings,
        rope_parameters=rope,
        attention_bias=model.has_qkv_bias,
        mlp_bias=model.has_ffn_bias,
        bos_token_id=0,
        eos_token_id=0,
    )
    child = build_child(model, config)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * (0.15 if tensor.ndim > 1 else 0.2)
        + (1.0 if "norm" in name else 0.0)
        for name, tensor in child.state_dict().items()
    }
    if model.has_tied_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return load_weights(child, weights)


def write_gguf(model: Model, weights: Format, small_parent: Path, folder: Path) -> PreTrainedModel:
    """Writes a child and its GGUF file; returns the child as the file holds it."""
    child, tokenizer = child_of_kind(model), PreTrainedTokenizerFast.from_pretrained(small_parent)
    partial = ["\ufffd" in str(tokenizer.decode([index])) for index in range(VOCAB)]
    for matrix in (child.model.embed_tokens.weight, child.lm_head.weight):
        matrix.data[torch.tensor(partial)] = 0  # the server holds bytes back that are no whole character
    source = folder / "child"
    source.mkdir()
    save_child(child, model, tokenizer, source, {})
    stored = with_format(model, weights)
    order = ExportOrder(model=stored, target="llama.cpp", is_child=True, built_from="")
    write_export(order, source, folder / "out")
    with torch.no_grad():
        for name, parameter in child.named_parameters():
            own = stored.embedding_weights if "embed" in name or "head" in name else weights
            if parameter.ndim == 2:
                parameter.copy_(torch.from_numpy(as_stored(parameter.numpy(), own)))
    return child


def as_stored(weight: np.ndarray, weights: Format) -> np.ndarray:
    if weights.group_size is not None:
        return unpack_matrix(pack_matrix(weight, weights)[0], weights)
    return weight.astype(np.float16).astype(np.float32) if weights.name == "fp16" else weight


@contextmanager
def server_of(file: Path) -> Iterator[Any]:
    """llama.cpp with the file, in one thread, with a cache in fp32."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp runs in the package xllamacpp (the extra clients)")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_parallel, settings.n_ctx, settings.warmup = 1, 256, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    yield xllamacpp.Server(settings)


def post(server: Any, path: str, data: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"{server.listening_address}/{path}", data=json.dumps(data).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)
