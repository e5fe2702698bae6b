"""An engine run in a device's memory says what it says in the host's; only a GPU's own provider was never run."""

import json
from pathlib import Path

import numpy as np
import pytest

from blockwright.compile.device_session import DeviceDecoder, room_on
from blockwright.compile.engine import ENGINE_FILE, GRAPH_FILE, EngineOrder, SessionSettings, write_engine
from blockwright.compile.flavour import FlavourName
from blockwright.compile.providers import check_runs_on, nodes_by_provider, nodes_elsewhere
from blockwright.compile.runtime import ort
from blockwright.compile.session import Decoder
from blockwright.compile.slots import FIRST_SLOTS, PREFILL_CHUNK
from blockwright.errors import InputError
from blockwright.files import read_json
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Attention, Block, GatedFFN, Model, Window, parse_format
from decoders import every_kind

LONGEST = 1024
HOMOGENEOUS = (Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=96)),) * 2
HETEROGENEOUS = every_kind(96, 160, 32, Window(num_tokens=5))
in_every_way = pytest.mark.parametrize(
    ("layers", "format_name", "flavour"),
    [
        (layers, format_name, flavour)
        for layers in (HOMOGENEOUS, HETEROGENEOUS)
        for format_name in ("fp32", "int4")
        for flavour in ("standard", "contrib")
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}-layers",
)


def _model(layers: tuple[Block, ...], head_dim: int = 16) -> Model:
    return llama(layers, vocab_size=80, hidden_size=64, num_heads=4, head_dim=head_dim, max_positions=LONGEST)


def _engine(
    folder: Path, model: Model, format_name: str = "fp32", flavour: FlavourName = "standard", positions: int = LONGEST
) -> Path:
    order = EngineOrder(
        model=model,
        weights_format=parse_format(format_name),
        num_positions=positions,
        session=SessionSettings(num_threads=1),
        built_from="random weights",
        flavour=flavour,
    )
    folder.mkdir()
    write_engine(order, {n: 4 * array for n, array in random_weights(model, seed=1).items()}, folder)
    return folder


def _said(decoder: Decoder | DeviceDecoder, lengths: tuple[int, ...], num_steps: int) -> np.ndarray:
    """The logits after random prompts and after each of some random tokens."""
    generator = np.random.default_rng(0)
    sequences = decoder.start(len(lengths), max(lengths) + num_steps)
    said = [sequences.prefill([generator.integers(80, size=n).tolist() for n in lengths])]
    said += [sequences.step(generator.integers(80, size=len(lengths))).copy() for _ in range(num_steps)]
    assert sequences.lengths_B.tolist() == [n + num_steps for n in lengths]
    return np.stack(said)


def _check_same(engine: Path, lengths: tuple[int, ...], num_steps: int) -> None:
    expected = _said(Decoder.open(engine, operators="onnxruntime"), lengths, num_steps)
    found = _said(DeviceDecoder.open(engine, "cpu"), lengths, num_steps)
    assert expected.std() > 0.1
    np.testing.assert_array_equal(found, expected)


@in_every_way
def test_a_batch_says_the_same(
    layers: tuple[Block, ...], format_name: str, flavour: FlavourName, tmp_path: Path
) -> None:
    _check_same(_engine(tmp_path / "engine", _model(layers), format_name, flavour), lengths=(13, 1, 8), num_steps=6)


@in_every_way
def test_prompts_of_several_chunks_say_the_same(
    layers: tuple[Block, ...], format_name: str, flavour: FlavourName, tmp_path: Path
) -> None:
    engine = _engine(tmp_path / "engine", _model(layers), format_name, flavour)
    _check_same(engine, lengths=(PREFILL_CHUNK + 70, 9, PREFILL_CHUNK), num_steps=2)


@pytest.mark.parametrize("flavour", ["standard", "contrib"])
def test_a_cache_that_grows_keeps_what_it_holds(flavour: FlavourName, tmp_path: Path) -> None:
    engine = _engine(tmp_path / "engine", _model(HETEROGENEOUS), flavour=flavour)
    _check_same(engine, lengths=(FIRST_SLOTS - 2, 5), num_steps=5)


def test_heads_that_are_rotated_outside_say_the_same(tmp_path: Path) -> None:
    model = _model(HETEROGENEOUS, head_dim=24)
    _check_same(_engine(tmp_path / "engine", model, flavour="contrib"), lengths=(7, 4), num_steps=3)


def test_one_opened_engine_serves_batches_apart(tmp_path: Path) -> None:
    decoder = DeviceDecoder.open(_engine(tmp_path / "engine", _model(HETEROGENEOUS)), "cpu")
    first, second = decoder.start(1, 16), decoder.start(1, 16)
    alone = decoder.start(1, 16)
    alone.prefill([[1, 2, 3]])
    expected = alone.step(np.array([4])).copy()
    first.prefill([[1, 2, 3]])
    second.prefill([[50, 60]])
    np.testing.assert_array_equal(first.step(np.array([4])), expected)


@pytest.mark.parametrize("flavour", ["standard", "contrib"])
def test_every_node_is_told_with_its_provider(flavour: FlavourName, tmp_path: Path) -> None:
    decoder = DeviceDecoder.open(_engine(tmp_path / "engine", _model(HETEROGENEOUS), flavour=flavour), "cpu")
    found = nodes_by_provider(decoder.session)
    assert set(found) == {"CPUExecutionProvider"}
    attention = {"standard": "Attention", "contrib": "GroupQueryAttention"}[flavour]
    assert found["CPUExecutionProvider"][attention] == 3
    assert not nodes_elsewhere(decoder.session, "cpu")
    # As it would be if a GPU's provider had been asked for and had left all of it to the CPU.
    assert nodes_elsewhere(decoder.session, "cuda") == found["CPUExecutionProvider"]


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="ONNX Runtime for GPUs is here")
def test_without_a_build_for_gpus_it_is_told_which_to_install(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"CUDAExecutionProvider.*pip install 'blockwright\[cuda\]' in place of"):
        DeviceDecoder.open(_engine(tmp_path / "engine", _model(HOMOGENEOUS)), "cuda")


def test_a_session_that_came_without_its_gpu_is_refused() -> None:
    check_runs_on("cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(InputError, match=r"could not use: it took CPUExecutionProvider.*nvidia-smi"):
        check_runs_on("cuda", ["CPUExecutionProvider"])


def test_more_tokens_than_the_engine_has_room_for_are_refused(tmp_path: Path) -> None:
    engine = _engine(tmp_path / "engine", _model(HOMOGENEOUS), positions=64)
    with pytest.raises(InputError, match=r"65 tokens.*at most 64.*compile with a longer --context"):
        DeviceDecoder.open(engine, "cpu").start(1, 65)


def test_an_engine_of_another_model_is_refused(tmp_path: Path) -> None:
    engine = _engine(tmp_path / "engine", _model(HOMOGENEOUS))
    stored = read_json(engine / ENGINE_FILE)
    stored["model"]["vocab_size"] = 90
    (engine / ENGINE_FILE).write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"model.*compile the engine again"):
        DeviceDecoder.open(engine, "cpu")


def test_a_graph_that_is_none_is_refused_in_words(tmp_path: Path) -> None:
    engine = _engine(tmp_path / "engine", _model(HOMOGENEOUS))
    stored = read_json(engine / ENGINE_FILE)
    del stored["files"]  # as of an engine from before there were sums
    (engine / ENGINE_FILE).write_text(json.dumps(stored))
    graph = engine / GRAPH_FILE
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    with pytest.raises(InputError, match=r"opens on cpu.*Compile the engine again"):
        DeviceDecoder.open(engine, "cpu")


@pytest.mark.parametrize("flavour", ["standard", "contrib"])
@pytest.mark.parametrize("kind", [Decoder, DeviceDecoder])
def test_what_fails_while_it_runs_is_refused_in_words(
    kind: type[Decoder] | type[DeviceDecoder], flavour: FlavourName, tmp_path: Path
) -> None:
    engine = _engine(tmp_path / "engine", _model(HOMOGENEOUS), flavour=flavour)
    decoder = Decoder.open(engine) if kind is Decoder else DeviceDecoder.open(engine, "cpu")
    sequences = decoder.start(1, 64)
    sequences.prefill([[1, 2, 3]])
    sequences.lengths_B = np.array([2 * LONGEST])  # where neither a slot nor a position is
    with pytest.raises(InputError, match="a graph that ONNX Runtime runs"):
        sequences.step(np.array([1]))


def test_a_cache_that_no_memory_holds_is_refused_in_words() -> None:
    with pytest.raises(InputError, match=r"memory of cpu.*ask for fewer or shorter sequences"):
        room_on("cpu", (2**30, 2**20), np.float32)
