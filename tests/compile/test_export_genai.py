"""onnxruntime-genai itself serves what is written for it, and computes and writes what our own session does."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from blockwright.cli.main import main
from blockwright.compile.checkpoint import read_weights
from blockwright.compile.engine import DATA_FILE, GRAPH_FILE, EngineOrder, SessionSettings, write_engine
from blockwright.compile.export import ExportOrder, read_export, write_export
from blockwright.compile.export_genai import CONFIG_FILE, genai_config
from blockwright.compile.flavour import FlavourName
from blockwright.compile.session import Decoder
from blockwright.errors import InputError
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import (
    FP32,
    Attention,
    Block,
    Format,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    Rope,
    Window,
    parse_format,
    with_format,
)
from decoders import every_kind

VOCAB, LONGEST, NEW_TOKENS = 80, 64, 16
PAD, STOP = 0, 79
HOMOGENEOUS = (Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=96)),) * 3
MIXED = every_kind(96, 160, 32)
WINDOWS = (
    Block(mixer=Attention(num_kv_heads=2, reach=Window(num_tokens=3)), ffn=GatedFFN(width=96)),
    Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=96)),
)
NO_ATTENTION = (Block(mixer=NoOp(), ffn=GatedFFN(width=64)), Block(mixer=LinearMixer(), ffn=LinearFFN()))


def _model(layers: tuple[Block, ...], head_dim: int = 16, **changes: Any) -> Model:
    model = llama(layers, vocab_size=VOCAB, hidden_size=64, num_heads=4, head_dim=head_dim, max_positions=LONGEST)
    return replace(model, **changes)


CHILDREN = {
    "the same layers": _model(HOMOGENEOUS),
    "mixed layers": _model(MIXED),
    "mixed layers, a head of its own": _model(MIXED, has_tied_embeddings=False),
    "mixed layers, biases": _model(MIXED, has_qkv_bias=True, has_output_bias=True, has_ffn_bias=True),
    "mixed layers, heads rotated outside": _model(MIXED, head_dim=24),
    "mixed layers, normed heads": _model(MIXED, has_qk_norm=True),
    "windows": _model(WINDOWS),
    "no attention": _model(NO_ATTENTION),
}


def _checkpoint(model: Model, folder: Path, **config: Any) -> Path:
    folder.mkdir()
    # Wider than a new model's, so that the likeliest token is not always the same.
    weights = {name: (8 if value.ndim == 2 else 1) * value for name, value in random_weights(model).items()}
    for name in weights.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
        weights[name][STOP] = 0  # texts go on
    save_file(weights, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    ids = {"eos_token_id": STOP, "pad_token_id": PAD}
    (folder / "config.json").write_text(json.dumps(ids | config))
    return folder


def _export(model: Model, weights: Format, folder: Path) -> tuple[Path, Path]:
    """The checkpoint, and what is written of it."""
    checkpoint = _checkpoint(model, folder / "checkpoint")
    order = ExportOrder(
        model=with_format(model, weights), target="onnxruntime-genai", is_child=True, built_from="digest"
    )
    assert write_export(order, checkpoint, folder / "served") == read_export(folder / "served")
    return checkpoint, folder / "served"


def _ours(
    model: Model, weights: Format, checkpoint: Path, flavour: FlavourName, prompts: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Our session's likeliest tokens and the logits before each, ids_SB and logits_SBV."""
    order = EngineOrder(
        model=model,
        weights_format=weights,
        num_positions=LONGEST,
        session=SessionSettings(num_threads=1),
        built_from="digest",
        flavour=flavour,
    )
    folder = checkpoint.parent / flavour
    folder.mkdir()
    write_engine(order, read_weights(checkpoint), folder)
    sequences = Decoder.open(folder).start(len(prompts), LONGEST)
    logits = [sequences.prefill(prompts).copy()]
    while len(logits) < NEW_TOKENS:
        logits.append(sequences.step(logits[-1].argmax(-1)).copy())
    return np.stack(logits).argmax(-1), np.stack(logits)


def _generator(folder: Path, batch: int = 1, longest: int = LONGEST) -> Any:
    genai = pytest.importorskip("onnxruntime_genai", reason="the extra genai serves what is written for it")
    model = genai.Model(str(folder))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=longest, batch_size=batch)
    return genai.Generator(model, settings)


def _theirs(folder: Path, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """As `_ours`, by onnxruntime-genai."""
    generator = _generator(folder, len(prompts))
    longest = max(map(len, prompts))
    generator.append_tokens(np.array([[*p, *[PAD] * (longest - len(p))] for p in prompts], dtype=np.int32))
    ids, logits = [], []
    for _ in range(NEW_TOKENS):
        logits.append(generator.get_logits().reshape(len(prompts), VOCAB).copy())
        generator.generate_next_token()
        ids.append(generator.get_next_tokens().copy())
    return np.array(ids), np.stack(logits)


@pytest.mark.parametrize("weights", ["fp32", "fp16", "int4-g32"])
@pytest.mark.parametrize("name", CHILDREN)
def test_it_writes_the_tokens_of_our_own_session_from_the_same_logits(name: str, weights: str, tmp_path: Path) -> None:
    model, stored = CHILDREN[name], parse_format(weights)
    checkpoint, served = _export(model, stored, tmp_path)
    prompts = [[5, 9, 33, 2, 41]]
    ids, logits = _ours(model, stored, checkpoint, "contrib", prompts)
    their_ids, their_logits = _theirs(served, prompts)
    assert ids[:, 0].tolist() == their_ids[:, 0].tolist()
    # Our own kernels for integers add up in another order.
    assert np.abs(their_logits - logits).max() < (1e-5 if stored.group_size is None else 1e-2) * logits.std()


def test_it_writes_what_the_default_flavour_does(tmp_path: Path) -> None:
    checkpoint, served = _export(CHILDREN["mixed layers"], FP32, tmp_path)
    ids, logits = _ours(CHILDREN["mixed layers"], FP32, checkpoint, "standard", [[5, 9, 33, 2]])
    their_ids, their_logits = _theirs(served, [[5, 9, 33, 2]])
    assert len(set(ids[:, 0].tolist())) > 3, "a text that says something"
    assert ids.tolist() == their_ids.tolist()
    assert np.abs(their_logits - logits).max() < 1e-4 * logits.std()


@pytest.mark.parametrize("name", ["mixed layers", "mixed layers, heads rotated outside", "no attention"])
def test_shorter_prompts_of_a_batch_are_filled_up_on_the_right(name: str, tmp_path: Path) -> None:
    checkpoint, served = _export(CHILDREN[name], FP32, tmp_path)
    prompts = [[5, 9, 33, 2], [7, 8], [3, 4, 6]]
    _, logits = _ours(CHILDREN[name], FP32, checkpoint, "contrib", prompts)
    _, their_logits = _theirs(served, prompts)
    assert np.abs(their_logits - logits).max() < 1e-5 * logits.std()


def test_a_text_may_come_in_pieces_with_the_padding_token_in_it(tmp_path: Path) -> None:
    checkpoint, served = _export(CHILDREN["mixed layers"], FP32, tmp_path)
    _, logits = _ours(CHILDREN["mixed layers"], FP32, checkpoint, "contrib", [[5, PAD, 33, 2, 41, PAD]])
    generator = _generator(served)
    for piece in ([5, PAD, 33], [2, 41, PAD]):
        generator.append_tokens(np.array(piece, dtype=np.int32))
    assert np.abs(generator.get_logits().reshape(VOCAB) - logits[0, 0]).max() < 1e-5 * logits.std()


def test_a_batch_comes_in_one_piece(tmp_path: Path) -> None:
    """Of a second one, filled up on the right, the mask would not tell which token of a row is its last."""
    generator = _generator(_export(CHILDREN["no attention"], FP32, tmp_path)[1], batch=2)
    generator.append_tokens(np.array([[5, 9], [7, PAD]], dtype=np.int32))
    with pytest.raises(RuntimeError, match="only be called once for batch_size > 1"):
        generator.append_tokens(np.array([[4, 6], [3, PAD]], dtype=np.int32))


def test_a_text_ends_at_a_stop_token_and_at_the_context(tmp_path: Path) -> None:
    checkpoint, served = _export(CHILDREN["the same layers"], FP32, tmp_path)
    config = json.loads((served / CONFIG_FILE).read_text())
    prompt = [5, 9, 33, 2]
    ids, _ = _ours(CHILDREN["the same layers"], FP32, checkpoint, "contrib", [prompt])

    def length(stop: int) -> int:
        config["model"]["eos_token_id"] = [stop]
        (served / CONFIG_FILE).write_text(json.dumps(config))
        generator = _generator(served)
        generator.append_tokens(np.array(prompt, dtype=np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return len(generator.get_sequence(0)) - len(prompt)

    written = ids[:, 0].tolist()
    stop = next(token for index, token in enumerate(written) if index > 1 and token not in written[:index])
    assert length(stop) == written.index(stop), "which itself is no part of the text"
    unwritten = next(i for i in range(VOCAB) if i not in written)
    assert NEW_TOKENS <= length(unwritten) <= LONGEST - len(prompt)


def test_the_configuration_says_how_texts_begin_and_end(tmp_path: Path) -> None:
    model = CHILDREN["mixed layers"]
    checkpoint = _checkpoint(model, tmp_path / "a", bos_token_id=1, eos_token_id=[7, 5], pad_token_id=None)
    config = genai_config(model, checkpoint, 32)
    assert config["model"]["eos_token_id"] == [1, 5, 7] and config["model"]["bos_token_id"] == 1
    assert config["model"]["pad_token_id"] == 1
    assert config["model"]["context_length"] == config["search"]["max_length"] == 32
    assert config["model"]["decoder"]["num_hidden_layers"] == len(MIXED)


def test_a_model_that_ends_no_text_is_refused(tmp_path: Path) -> None:
    model = CHILDREN["mixed layers"]
    checkpoint = _checkpoint(model, tmp_path / "checkpoint", eos_token_id=None)
    order = ExportOrder(model=model, target="onnxruntime-genai", is_child=True, built_from="")
    with pytest.raises(InputError, match="ends it at the padding token"):
        write_export(order, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_stands_in_the_way_is_told_by_layer_before_anything_is_written(tmp_path: Path) -> None:
    unread = Rope(theta=1e4, scaling="dynamic", parameters=(("factor", 2.0),))
    for model, said in (
        (_model(MIXED, head_dim=12), "layer 1: heads of 12 are no multiple of 8.*layer 3: heads of 12"),
        (_model(MIXED, rope=unread), "layer 1: a rotary embedding scaled by dynamic"),
        (_model(MIXED, activation="gelu"), "no other activation than SiLU"),
        (with_format(_model(MIXED), Format(name="bf16")), "layer 0: bf16 is not written"),
    ):
        order = ExportOrder(model=model, target="onnxruntime-genai", is_child=True, built_from="")
        with pytest.raises(InputError, match=said):
            write_export(order, tmp_path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    no_heads = ExportOrder(
        model=_model(NO_ATTENTION, head_dim=12), target="onnxruntime-genai", is_child=True, built_from=""
    )
    write_export(no_heads, _checkpoint(no_heads.model, tmp_path / "checkpoint"), tmp_path / "out")


def test_the_command_writes_it_with_a_context(
    small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["compile", str(small_parent), "--target", "onnxruntime-genai", "--format", "int4", "--out", str(out)]
    assert main([*words, "--context", "32"]) == 0
    assert "int4-g32 for onnxruntime-genai" in capsys.readouterr().out
    assert {GRAPH_FILE, DATA_FILE, CONFIG_FILE, "tokenizer.json", "tokenizer_config.json"} <= set(
        read_export(out).files
    )
    assert json.loads((out / CONFIG_FILE).read_text())["model"]["context_length"] == 32
    graph = onnx.load(out / GRAPH_FILE, load_external_data=False).graph
    assert next(each for each in graph.initializer if each.name == "cosines").dims[0] == 32
    generator = _generator(out, longest=32)
    generator.append_tokens(np.array([1, 2, 3], dtype=np.int32))
    generator.generate_next_token()
    assert main([*words, "--context", "100000"]) == 2
    assert "at most the checkpoint's own" in capsys.readouterr().err
