"""Weights streamed into a file: the same graph as in memory, in little memory, and refused where a byte is another."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from blockwright.compile import blocked, weight_file
from blockwright.compile.checkpoint import read_weights
from blockwright.compile.decoder import decoder_graph
from blockwright.compile.engine import (
    DATA_FILE,
    ENGINE_FILE,
    GRAPH_FILE,
    TOKENIZER_FILE,
    EngineOrder,
    SessionSettings,
    read_engine,
    read_whole_engine,
    write_engine,
)
from blockwright.compile.flavour import Flavour, FlavourName
from blockwright.compile.session import Decoder
from blockwright.compile.weight_file import WeightFile
from blockwright.errors import InputError
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Attention, Block, GatedFFN, Model, parse_format, with_format
from blockwright.strict import to_data

MODEL = llama(
    (Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=96)),) * 2,
    vocab_size=80,
    hidden_size=64,
    num_heads=4,
    head_dim=16,
    max_positions=64,
)
FORMATS = ("fp32", "fp16", "int8", "int4-g64")


def _order(model: Model, text: str, flavour: FlavourName) -> EngineOrder:
    return EngineOrder(
        model=model,
        weights_format=parse_format(text),
        num_positions=64,
        session=SessionSettings(num_threads=1),
        built_from="random weights",
        flavour=flavour,
    )


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    folder = tmp_path / "engine"
    folder.mkdir()
    write_engine(_order(MODEL, "int4", "standard"), random_weights(MODEL), folder)
    return folder


def _parts(graph: onnx.ModelProto) -> dict[str, Any]:
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    described = {name: (str(array.dtype), array.astype(np.float64).tolist()) for name, array in arrays.items()}
    return {"nodes": [node.SerializeToString() for node in graph.graph.node], "constants": described}


@pytest.mark.parametrize("flavour", ["standard", "contrib"])
@pytest.mark.parametrize("text", FORMATS)
def test_a_streamed_graph_is_the_one_built_in_memory(text: str, flavour: FlavourName, tmp_path: Path) -> None:
    weights = random_weights(MODEL)
    write_engine(_order(MODEL, text, flavour), weights, tmp_path)
    model = with_format(MODEL, parse_format(text))
    expected = decoder_graph(model, weights, 64, Flavour(name=flavour))
    assert _parts(onnx.load(tmp_path / GRAPH_FILE)) == _parts(expected)
    without_weights = onnx.load(tmp_path / GRAPH_FILE, load_external_data=False)
    assert max(len(tensor.raw_data) for tensor in without_weights.graph.initializer) < 1024
    onnx.checker.check_model(str(tmp_path / GRAPH_FILE))


_CHILD = """
import json, sys
from pathlib import Path
from blockwright.compile.engine import EngineOrder, build_engine
from blockwright.profiler.memory import _peak_resident_bytes
from blockwright.strict import from_data
order = from_data(EngineOrder, json.loads(sys.argv[1]))
before = _peak_resident_bytes()
build_engine(order, Path(sys.argv[2]), Path(sys.argv[3]))
print(_peak_resident_bytes() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A checkpoint of 287 MB in fp32, none of its tensors larger than 16 MB."""
    layers = (Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=2816)),) * 6
    model = llama(layers, vocab_size=4000, hidden_size=1024, num_heads=16, head_dim=64, max_positions=256)
    folder = tmp_path_factory.mktemp("large")
    save_file(random_weights(model), folder / "model.safetensors")
    (folder / TOKENIZER_FILE).write_text("{}")
    (folder / "config.json").write_text("{}")
    return model, folder


@pytest.mark.parametrize(("text", "flavour"), [("fp32", "contrib"), ("fp16", "standard"), ("int4", "contrib")])
def test_building_takes_at_most_three_tenths_of_the_checkpoint(
    text: str, flavour: FlavourName, large: tuple[Model, Path], tmp_path: Path
) -> None:
    model, checkpoint = large
    words = [json.dumps(to_data(_order(model, text, flavour))), str(checkpoint), str(tmp_path / "engine")]
    done = subprocess.run([sys.executable, "-c", _CHILD, *words], capture_output=True, text=True, check=True)
    size = (checkpoint / "model.safetensors").stat().st_size
    assert 0 < int(done.stdout) < 0.3 * size
    assert read_whole_engine(tmp_path / "engine").graph_bytes > {"fp32": 0.99, "fp16": 0.49, "int4": 0.15}[text] * size
    assert Decoder.open(tmp_path / "engine").start(1, 8).prefill([[1, 2, 3]]).shape == (1, 4000)


def test_a_matrix_is_quantised_slice_by_slice_as_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight_KN = np.random.default_rng(0).standard_normal((70, 51)).astype(np.float32)
    for text in ("int4", "int8-g64"):
        whole = blocked.quantise_blocks(weight_KN, parse_format(text))
        with monkeypatch.context() as patch:
            patch.setattr(blocked, "_MOST_VALUES", 70 * 8)
            sliced = blocked.quantise_blocks(weight_KN, parse_format(text))
        assert all(np.array_equal(a, b) for a, b in zip(whole, sliced, strict=True))


@pytest.mark.parametrize("num_codes", [2500, 2501])
def test_codes_of_four_bits_are_packed_piece_by_piece_as_whole(num_codes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(0).integers(-8, 8, num_codes).astype(ml_dtypes.int4)
    monkeypatch.setattr(weight_file, "_MOST_CODES", 1000)
    stream = BytesIO()
    store = WeightFile(stream, "data")
    store.add("codes", codes)
    assert stream.getvalue() == onnx.numpy_helper.from_array(codes, "codes").raw_data
    assert store.sha256 == hashlib.sha256(stream.getvalue()).hexdigest()


def test_a_failed_build_leaves_no_file(tmp_path: Path) -> None:
    weights = {name: array for name, array in random_weights(MODEL).items() if "layers.1.mlp.down" not in name}
    with pytest.raises(KeyError):
        write_engine(_order(MODEL, "fp32", "standard"), weights, tmp_path)
    assert list(tmp_path.iterdir()) == []


def _cut(folder: Path) -> None:
    data = (folder / DATA_FILE).read_bytes()
    (folder / DATA_FILE).write_bytes(data[:-64])


def _cut_and_made_up_for_in_the_graph(folder: Path) -> None:
    _cut(folder)
    (folder / GRAPH_FILE).write_bytes((folder / GRAPH_FILE).read_bytes() + bytes(64))


@pytest.mark.parametrize("harm", [_cut, _cut_and_made_up_for_in_the_graph, lambda f: (f / DATA_FILE).unlink()])
def test_a_truncated_file_of_weights_is_refused_when_it_is_opened(harm: Callable[[Path], None], engine: Path) -> None:
    harm(engine)
    with pytest.raises(InputError, match="incomplete"):
        Decoder.open(engine)


@pytest.mark.parametrize("name", [DATA_FILE, GRAPH_FILE])
def test_one_bit_that_differs_is_found_by_the_checksum(name: str, engine: Path) -> None:
    assert read_whole_engine(engine) == read_engine(engine)
    data = bytearray((engine / name).read_bytes())
    data[len(data) // 2] ^= 1
    (engine / name).write_bytes(data)
    with pytest.raises(InputError, match="SHA-256"):
        read_whole_engine(engine)


def test_an_engine_from_before_there_were_checksums_is_read(engine: Path) -> None:
    data = json.loads((engine / ENGINE_FILE).read_text())
    (engine / ENGINE_FILE).write_text(json.dumps({key: value for key, value in data.items() if key != "files"}))
    assert read_whole_engine(engine) == replace(Decoder.open(engine).engine, files={})
    _cut(engine)
    with pytest.raises(InputError, match="incomplete"):
        read_engine(engine)


def test_tensors_are_read_one_by_one_as_they_stand_in_the_files(tmp_path: Path) -> None:
    first = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    second = {"b": np.array([1.5, -2.0], dtype=ml_dtypes.bfloat16), "c": np.array([0.25], dtype=np.float16)}
    save_file(first, tmp_path / "model-1.safetensors")
    save_file(second, tmp_path / "model-2.safetensors")
    weights = read_weights(tmp_path)
    assert list(weights) == ["a", "b", "c"] and len(weights) == 3
    assert {str(array.dtype) for array in weights.values()} == {"float32"}
    for name, array in (first | second).items():
        assert np.array_equal(weights[name], array.astype(np.float32))
    assert "d" not in weights and weights.get("d") is None and weights.get("c") is not None
    with pytest.raises(InputError, match="no tensor d"):
        weights["d"]
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(InputError, match="model-2"):
        weights["b"]
