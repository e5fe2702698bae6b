"""Engines as folders: written, read, and refused where something is missing or broken."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from blockwright.compile.engine import (
    DATA_FILE,
    ENGINE_FILE,
    GRAPH_FILE,
    TOKENIZER_FILE,
    EngineOrder,
    SessionSettings,
    build_engine,
    read_engine,
)
from blockwright.compile.session import Decoder
from blockwright.compile.slots import PREFILL_CHUNK, chunks_of, slots_for
from blockwright.errors import InputError
from blockwright.files import write_json
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FP32, Attention, Block, Format, GatedFFN, NoOp, with_format
from blockwright.strict import to_data

MODEL = llama(
    (Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=96)), Block(mixer=NoOp(), ffn=NoOp())),
    hidden_size=64,
    num_heads=4,
    head_dim=16,
    vocab_size=80,
    max_positions=64,
)
ORDER = EngineOrder(
    model=MODEL,
    weights_format=FP32,
    num_positions=40,
    session=SessionSettings(num_threads=1),
    built_from="digest",
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(random_weights(MODEL), folder / "model.safetensors")
    (folder / TOKENIZER_FILE).write_text("{}")
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [2, 7]}))
    return folder


@pytest.fixture
def engine(checkpoint: Path, tmp_path: Path) -> Path:
    build_engine(ORDER, checkpoint, tmp_path / "engine")
    return tmp_path / "engine"


@pytest.mark.parametrize("weights", [FP32, Format(name="int4", group_size=32)], ids=str)
def test_an_engine_comes_back_as_it_was_built(checkpoint: Path, tmp_path: Path, weights: Format) -> None:
    built = build_engine(replace(ORDER, weights_format=weights), checkpoint, tmp_path / "engine")
    assert read_engine(tmp_path / "engine") == built
    assert built.model == with_format(MODEL, weights)
    assert (built.format, built.num_positions, built.built_from) == (str(weights), 40, "digest")
    assert Decoder.open(tmp_path / "engine").engine == built


@pytest.mark.parametrize(
    ("config", "stop_ids", "start_id"),
    [
        ({"bos_token_id": 1, "eos_token_id": [2, 7]}, (1, 2, 7), 1),
        ({"bos_token_id": None, "eos_token_id": 2}, (2,), None),
        ({}, (), None),
    ],
)
def test_stop_tokens_are_those_of_the_configuration(
    checkpoint: Path, tmp_path: Path, config: dict[str, object], stop_ids: tuple[int, ...], start_id: int | None
) -> None:
    (checkpoint / "config.json").write_text(json.dumps(config))
    built = build_engine(ORDER, checkpoint, tmp_path / "engine")
    assert (built.stop_ids, built.start_id) == (stop_ids, start_id)


def test_weights_may_lie_in_several_files(checkpoint: Path, tmp_path: Path) -> None:
    weights = random_weights(MODEL)
    (checkpoint / "model.safetensors").unlink()
    names = sorted(weights)
    save_file({name: weights[name] for name in names[:3]}, checkpoint / "model-1.safetensors")
    save_file({name: weights[name] for name in names[3:]}, checkpoint / "model-2.safetensors")
    build_engine(ORDER, checkpoint, tmp_path / "engine")
    assert Decoder.open(tmp_path / "engine").start(1, 8).prefill([[1, 2]]).shape == (1, 80)


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [(TOKENIZER_FILE, "tokenizer"), ("model.safetensors", "no safetensors"), ("config.json", "No such file")],
)
def test_a_checkpoint_without_one_of_its_files_is_refused(
    checkpoint: Path, tmp_path: Path, missing: str, complaint: str
) -> None:
    (checkpoint / missing).unlink()
    with pytest.raises(InputError, match=complaint):
        build_engine(ORDER, checkpoint, tmp_path / "engine")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"], "nothing half-written"


def test_weights_cut_short_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="whole safetensors file"):
        build_engine(ORDER, checkpoint, tmp_path / "engine")


def test_a_checkpoint_of_other_blocks_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    layers = (*MODEL.layers, Block(mixer=Attention(num_kv_heads=2), ffn=NoOp()))
    with pytest.raises(InputError, match=r"model\.layers\.2"):
        build_engine(replace(ORDER, model=replace(MODEL, layers=layers)), checkpoint, tmp_path / "engine")


def test_a_failed_build_leaves_the_engine_that_stood_there(checkpoint: Path, engine: Path) -> None:
    before = {path.name: path.read_bytes() for path in engine.iterdir()}
    (checkpoint / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError):
        build_engine(ORDER, checkpoint, engine)
    assert {path.name: path.read_bytes() for path in engine.iterdir()} == before


@pytest.mark.parametrize("name", [GRAPH_FILE, DATA_FILE])
def test_a_graph_cut_short_or_gone_is_refused(engine: Path, name: str) -> None:
    (engine / name).write_bytes((engine / name).read_bytes()[:-10])
    with pytest.raises(InputError, match="incomplete"):
        Decoder.open(engine)
    (engine / name).unlink()
    with pytest.raises(InputError, match="incomplete"):
        Decoder.open(engine)


def test_a_graph_of_the_right_size_that_is_none_is_refused(engine: Path) -> None:
    size = (engine / GRAPH_FILE).stat().st_size
    (engine / GRAPH_FILE).write_bytes(b"\xff" * size)
    with pytest.raises(InputError, match="other bytes than were written"):
        Decoder.open(engine)
    with pytest.raises(InputError, match="ONNX Runtime opens"):
        Decoder.open(engine, is_fresh=True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"target": "tensorrt"}, "target"), ({"surplus": 1}, "surplus"), ({"schema_version": 2}, "schema_version")],
)
def test_a_description_with_a_wrong_field_is_refused_by_its_name(
    engine: Path, change: dict[str, object], complaint: str
) -> None:
    data = json.loads((engine / ENGINE_FILE).read_text())
    (engine / ENGINE_FILE).write_text(json.dumps(data | change))
    with pytest.raises(InputError, match=complaint):
        read_engine(engine)


def test_a_folder_that_is_no_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=ENGINE_FILE):
        Decoder.open(tmp_path)


def test_an_engine_can_be_moved(engine: Path, tmp_path: Path) -> None:
    expected = Decoder.open(engine).start(1, 8).prefill([[1, 2, 3]]).tolist()
    shutil.move(engine, tmp_path / "elsewhere")
    assert Decoder.open(tmp_path / "elsewhere").start(1, 8).prefill([[1, 2, 3]]).tolist() == expected


def test_sequences_longer_than_the_engine_are_refused(engine: Path) -> None:
    decoder = Decoder.open(engine)
    decoder.start(1, 40)
    with pytest.raises(InputError, match="at most 40"):
        decoder.start(1, 41)


@pytest.mark.parametrize(("num_tokens", "slots"), [(1, 64), (64, 64), (65, 128), (1000, 1024)])
def test_caches_come_in_whole_buckets(num_tokens: int, slots: int) -> None:
    assert slots_for(num_tokens) == slots


@pytest.mark.parametrize("num_tokens", [1, PREFILL_CHUNK, PREFILL_CHUNK + 1, 5 * PREFILL_CHUNK - 1])
def test_chunks_make_up_the_prompt(num_tokens: int) -> None:
    chunks = chunks_of(num_tokens)
    assert sum(chunks) == num_tokens
    assert set(chunks[:-1]) <= {PREFILL_CHUNK}
    assert 0 < chunks[-1] <= PREFILL_CHUNK


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head_dim": 8}, r"past_key_0 of \(2, 8\); expected \(2, 16\)"),
        ({"vocab_size": 96}, r"logits of \(96,\); expected \(80,\)"),
        ({"layers": MODEL.layers[1:]}, r"past_key_0 of no size; expected \(2, 16\)"),
        ({"layers": MODEL.layers[:1] * 2}, r"past_key_1 of \(2, 16\); expected none"),
    ],
)
def test_a_description_of_another_model_than_the_graph_is_refused(
    changes: dict[str, Any], said: str, checkpoint: Path, tmp_path: Path
) -> None:
    engine = build_engine(ORDER, checkpoint, tmp_path / "engine")
    Decoder.open(tmp_path / "engine")
    changed = replace(engine, model=replace(engine.model, **changes))
    write_json(tmp_path / "engine" / ENGINE_FILE, to_data(changed))
    with pytest.raises(InputError, match=said):
        Decoder.open(tmp_path / "engine")
