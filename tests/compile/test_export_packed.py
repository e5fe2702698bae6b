"""Checkpoints written for others: their own clients load them and compute what the codes stand for."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, PreTrainedTokenizerFast

from blockwright.compile import export_packed
from blockwright.compile.blocked import dequantise_blocks, quantise_blocks
from blockwright.compile.export import ExportOrder, Target, read_export, write_export
from blockwright.compile.export_packed import packed
from blockwright.errors import InputError
from blockwright.model.child import build_child, load_weights, save_child
from blockwright.model.parent import open_parent
from blockwright.servable import FFN_MULTIPLE, round_up
from blockwright.spec import (
    Attention,
    Block,
    GatedFFN,
    LinearMixer,
    Model,
    NoOp,
    Rope,
    parse_format,
    stored_as,
    with_format,
)

IDS = list(range(1, 12))
LLAMA3 = (
    ("factor", 8.0),
    ("high_freq_factor", 4.0),
    ("low_freq_factor", 1.0),
    ("original_max_position_embeddings", 32.0),
)


@pytest.fixture(scope="module")
def spec(small_parent: Path) -> Model:
    """A child that every reader of nemotron-nas loads."""
    layers = (
        Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=256)),
        Block(mixer=NoOp(), ffn=GatedFFN(width=512)),
        Block(mixer=Attention(num_kv_heads=1), ffn=NoOp()),
    )
    return replace(open_parent(str(small_parent)).spec, layers=layers)


@pytest.fixture(scope="module")
def child(spec: Model, small_parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(spec, small_parent, tmp_path_factory.mktemp("packed") / "child")


def _save(spec: Model, small_parent: Path, folder: Path) -> Path:
    config = open_parent(str(small_parent)).config
    rope = {"rope_type": spec.rope.scaling, "rope_theta": spec.rope.theta} | dict(spec.rope.parameters)
    config.rope_parameters = rope | {name: int(v) for name, v in rope.items() if name.startswith("original")}
    model = build_child(spec, config)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.2 + ("norm" in name)
        for name, tensor in model.state_dict().items()
    }
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    folder.mkdir()
    save_child(load_weights(model, weights), spec, PreTrainedTokenizerFast.from_pretrained(small_parent), folder, {})
    return folder


def _export(spec: Model, source: Path, folder: Path, weights: str = "fp32", target: Target = "transformers") -> Path:
    model = with_format(spec, parse_format(weights))
    write_export(ExportOrder(model=model, target=target, is_child=True, built_from=""), source, folder)
    return folder


CLEAN_LOADER = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "blockwright":
            raise ImportError("Blockwright is not installed here")

sys.meta_path.insert(0, Blocker())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
answers = []
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        answers.append(model(torch.tensor([json.loads(sys.argv[1])])).logits[0].float().tolist())
print(json.dumps(answers))
"""


def _logits(*folders: Path) -> list[np.ndarray]:
    """Of plain transformers in a process of its own that finds no Blockwright."""
    environment = {"HF_HOME": str(folders[0].parent / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", CLEAN_LOADER, json.dumps(IDS), *map(str, folders)]
    done = subprocess.run(command, cwd=folders[0].parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = next(line for line in done.stdout.splitlines() if line.startswith("[[["))
    return [np.array(logits) for logits in json.loads(answers)]


def _dequantised(spec: Model, child: Path, weights: str, folder: Path) -> Path:
    """The child with each matrix as its codes and fp16 scales stand for it."""
    stored = parse_format(weights)
    tensors = load_file(child / "model.safetensors")
    for name, tensor in tensors.items():
        if ".layers." in name and tensor.ndim == 2:
            codes_KN, scales_GN = quantise_blocks(tensor.T, stored)
            short_GN = scales_GN.astype(np.float16).astype(np.float32)
            tensors[name] = np.ascontiguousarray(dequantise_blocks(codes_KN, short_GN, stored.group_size or 1).T)
        else:
            tensors[name] = tensor.astype(np.float16).astype(np.float32)
    _export(spec, child, folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
def test_plain_transformers_loads_every_format_where_blockwright_is_not(
    spec: Model, child: Path, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors", reason="integers are read by compressed-tensors (the extra clients)")
    formats: tuple[str, ...] = ("fp32", "fp16", "bf16", "int4", "int8")
    folders = [_export(spec, child, tmp_path / name, name) for name in formats]
    exact = [_dequantised(spec, child, name, tmp_path / f"exact-{name}") for name in ("int4", "int8")]
    own, *others = _logits(child, *folders, *exact)
    found: dict[str, np.ndarray] = dict(zip((*formats, "exact int4", "exact int8"), others, strict=True))
    spread = own.std()
    assert np.array_equal(found["fp32"], own)
    for name, most in (("fp16", 0.02), ("bf16", 0.16)):
        assert 0 < np.abs(found[name] - own).max() / spread < most
    for name in ("int4", "int8"):
        near, far = (np.abs(found[name] - other).max() / spread for other in (found[f"exact {name}"], own))
        assert near < 0.02  # activations in fp16
        assert near < far


def test_words_are_packed_as_compressed_tensors_does() -> None:
    helpers = pytest.importorskip(
        "compressed_tensors.compressors.pack_quantized.helpers", reason="the extra clients is not installed"
    )
    generator = np.random.default_rng(0)
    for bits in (4, 8):
        codes_NK = generator.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (6, 40)).astype(np.int8)
        words = packed(codes_NK, bits)
        assert np.array_equal(words, helpers.pack_to_int32(torch.from_numpy(codes_NK), bits).numpy())
        back = helpers.unpack_from_int32(torch.from_numpy(words), bits, torch.Size(codes_NK.shape))
        assert np.array_equal(back.numpy(), codes_NK)


def test_formats_of_a_plan_become_groups(spec: Model, child: Path, tmp_path: Path) -> None:
    int4, int8 = parse_format("int4"), parse_format("int8")
    first, second, third = spec.layers
    layers = (
        Block(mixer=stored_as(first.mixer, int4), ffn=stored_as(first.ffn, int8)),
        replace(second, ffn=stored_as(second.ffn, int4)),
        third,
    )
    order = ExportOrder(model=replace(spec, layers=layers), target="vllm", is_child=True, built_from="")
    export = write_export(order, child, tmp_path / "out")
    assert export.format == "mixed"
    assert str(export.model.embedding_weights) == "fp16"
    assert str(export.model.layers[2].mixer.weights) == "fp16"  # pyright: ignore[reportAttributeAccessIssue]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    section = config["quantization_config"]
    targets = {group["weights"]["num_bits"]: group["targets"] for group in section["config_groups"].values()}
    assert targets[4] == [r"re:model\.layers\.0\.self_attn\..*", r"re:model\.layers\.1\.mlp\..*"]
    assert targets[8] == [r"re:model\.layers\.0\.mlp\..*"]
    assert section["ignore"] == ["lm_head", r"re:model\.layers\.2\.self_attn\..*"]
    assert config["dtype"] == "float16"
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert "model.layers.0.mlp.up_proj.weight_packed" in names
    assert "model.layers.2.self_attn.q_proj.weight" in names


def _read_as_nemotron_nas(config: dict[str, Any]) -> list[tuple[int | None, int | None]]:
    """KV heads and widths as vLLM, SGLang and TensorRT-LLM find them; the rules of their loaders, by hand."""
    assert (config["architectures"], config["model_type"]) == (["DeciLMForCausalLM"], "nemotron-nas")
    found: list[tuple[int | None, int | None]] = []
    for block in config["block_configs"]:
        attention, ffn = block["attention"], block["ffn"]
        assert not attention["replace_with_linear"] and not ffn["replace_with_linear"]
        heads = None if attention["no_op"] else config["num_attention_heads"] // attention["n_heads_in_group"]
        width = None
        if not ffn["no_op"]:
            width = round_up(int(2 * ffn["ffn_mult"] * config["hidden_size"] / 3), FFN_MULTIPLE)
        found.append((heads, width))
    return found


@pytest.mark.parametrize("target", ["vllm", "sglang", "tensorrt-llm"])
def test_readers_of_nemotron_nas_find_every_block(target: Target, spec: Model, child: Path, tmp_path: Path) -> None:
    folder = _export(spec, child, tmp_path / "out", "fp16", target)
    config = json.loads((folder / "config.json").read_text())
    assert _read_as_nemotron_nas(config) == [(2, 256), (None, 512), (1, None)]
    shapes = {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}
    assert shapes["model.layers.1.mlp.up_proj.weight"] == (512, 32)
    assert not any(name.startswith(("model.layers.1.self_attn", "model.layers.2.mlp")) for name in shapes)
    assert read_export(folder).target == target


def test_readers_of_before_rope_parameters_find_the_rotary_embedding(
    spec: Model, small_parent: Path, tmp_path: Path
) -> None:
    scaled = replace(spec, rope=Rope(theta=5e5, scaling="llama3", parameters=LLAMA3))
    source = _save(scaled, small_parent, tmp_path / "child")
    config = json.loads((_export(scaled, source, tmp_path / "out", target="vllm") / "config.json").read_text())
    assert config["rope_theta"] == 5e5
    assert config["rope_scaling"] == {"rope_type": "llama3"} | dict(LLAMA3)
    again = AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert again.rope_parameters == {"rope_theta": 5e5} | config["rope_scaling"]


def test_vllm_builds_its_own_model_from_the_configuration(spec: Model, child: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed; its rules are checked by hand above")
    from vllm.config import ModelConfig  # pyright: ignore[reportMissingImports]

    folder = _export(spec, child, tmp_path / "out", "fp16", "vllm")
    config = ModelConfig(model=str(folder), trust_remote_code=True)
    assert config.registry.resolve_model_cls(config.architectures, config)[1] == "DeciLMForCausalLM"


@pytest.mark.parametrize(
    ("target", "weights", "layer", "words"),
    [
        ("vllm", "fp16", Block(mixer=LinearMixer(), ffn=NoOp()), "layer 3: linear replacements are not read"),
        ("sglang", "fp16", Block(mixer=NoOp(), ffn=GatedFFN(width=100)), "layer 3: an ffn width of 100 is no multiple"),
        ("tensorrt-llm", "int4", Block(mixer=NoOp(), ffn=NoOp()), "layer 0: int4-g32 is not written, only fp32, fp16"),
        ("vllm", "int4-g128", Block(mixer=NoOp(), ffn=NoOp()), "layer 0: 32 channels are no multiple of the group"),
    ],
)
def test_what_a_reader_cannot_load_is_refused_by_layer(
    target: Target, weights: str, layer: Block, words: str, spec: Model, tmp_path: Path
) -> None:
    model = replace(spec, layers=(*spec.layers, layer))
    with pytest.raises(InputError, match=words):
        _export(model, tmp_path / "nowhere", tmp_path / "out", weights, target)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_fp16_does_not_hold_are_refused_and_nothing_is_left(
    spec: Model, child: Path, tmp_path: Path
) -> None:
    source = tmp_path / "child"
    shutil.copytree(child, source)
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"weights: model\.norm\.weight: got 1e\+06; expected .* float16"):
        _export(spec, source, tmp_path / "out", "fp16")
    assert not (tmp_path / "out").exists()
    _export(spec, source, tmp_path / "out", "bf16")


def test_shards_hold_together_what_one_file_would(
    spec: Model, child: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_packed, "SHARD_BYTES", 100_000)
    folder = _export(spec, child, tmp_path / "out")
    files = sorted(folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    held = {name: file.name for file in files for name in load_file(file)}
    assert held == index["weight_map"]
    whole, parted = _logits(child, folder)
    assert np.array_equal(whole, parted)


def test_a_parent_is_written_under_its_own_name(small_parent: Path, tmp_path: Path) -> None:
    spec = with_format(open_parent(str(small_parent)).spec, parse_format("fp16"))
    order = ExportOrder(model=spec, target="vllm", is_child=False, built_from="")
    write_export(order, small_parent, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "float16")
    near, own = _logits(tmp_path / "out", small_parent)
    assert 0 < np.abs(near - own).max() < 0.01
