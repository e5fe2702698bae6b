"""Embedding and head in formats of their own: the same numbers as their rounded tables, and kept by TensorRT."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from blockwright.cli.main import main
from blockwright.compile.blocked import rounded
from blockwright.compile.checkpoint import Weights
from blockwright.compile.decoder import decoder_graph
from blockwright.compile.embedding import CodesIn, integer_rows
from blockwright.compile.engine import read_engine
from blockwright.compile.export import ExportOrder, check_exportable
from blockwright.compile.flavour import Flavour, FlavourName
from blockwright.compile.graph import Graph
from blockwright.compile.tensorrt_build import BuildRequest, build
from blockwright.compile.tensorrt_checks import check_groups, expected_of
from blockwright.compile.tensorrt_engine import PLAN_FILE, read_tensorrt_engine
from blockwright.compile.tensorrt_package import Package, PackageName
from blockwright.compile.tensorrt_stored import stored_for_tensorrt
from blockwright.errors import InputError
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FP16, FP32, Format, Model, parse_format, with_format
from decoders import every_kind
from tensorrt_here import needs_rtx

INT4, INT8 = parse_format("int4-g32"), parse_format("int8-g32")
SLOTS = 16
CHILD = llama(every_kind(96, 64, 32), hidden_size=64, num_heads=4, head_dim=16, vocab_size=80, max_positions=SLOTS)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _rows(table_VD: np.ndarray, weights: Format, codes_in: CodesIn, ids: np.ndarray, is_signed: bool) -> np.ndarray:
    graph = Graph()
    graph.input("ids", "int64", ["batch", "tokens"])
    graph.output(integer_rows(graph, table_VD, weights, "ids", codes_in), "float32", ["batch", "tokens", "channels"])
    model = graph.model()
    if is_signed:
        for node in model.graph.node:
            if node.op_type == "Mod":
                node.attribute.append(onnx.helper.make_attribute("fmod", 1))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"ids": ids})[0])


@pytest.mark.parametrize("num_channels", [64, 33])
@pytest.mark.parametrize("text", ["int4-g16", "int4-g32", "int8-g32", "int8-g128"])
@pytest.mark.parametrize("codes_in", ["bytes", "words"])
@pytest.mark.parametrize("is_signed", [False, True], ids=["", "remainders with a sign"])
def test_rows_of_integers_are_those_of_the_rounded_table(
    is_signed: bool, codes_in: CodesIn, text: str, num_channels: int
) -> None:
    generator = np.random.default_rng(0)
    table_VD = generator.normal(size=(50, num_channels)).astype(np.float32)
    table_VD[0], table_VD[1], table_VD[2] = 3.0, -3.0, 0.0  # the highest code, the lowest and none
    ids = generator.permutation(50).reshape(2, 25)
    rows = _rows(table_VD, parse_format(text), codes_in, ids, is_signed)
    expected = rounded(table_VD.T, parse_format(text)).T[ids]
    np.testing.assert_array_equal(rows, expected)


def test_words_have_every_sign_and_take_no_more_bytes_than_codes() -> None:
    graph, table_VD = Graph(), np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    integer_rows(graph, table_VD, INT4, "ids", "words")
    words = onnx.numpy_helper.to_array(graph.initializers["embedding.words"])
    assert words.dtype == np.int32 and words.nbytes == 50 * 64 // 2
    assert (words < 0).any() and (words > 0).any()


def _logits(model: Model, weights: Weights, flavour: Flavour, ids: np.ndarray) -> np.ndarray:
    graph, options = decoder_graph(model, weights, SLOTS, flavour).SerializeToString(), onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")  # activations are not rounded
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    num_tokens, feeds = ids.shape[1], dict[str, np.ndarray]()
    places = np.arange(num_tokens)
    for each in session.get_inputs():
        match each.name.split("_")[0]:
            case "ids" | "last" | "positions" | "write":
                feeds[each.name] = {
                    "ids": ids,
                    "last": np.array([num_tokens - 1]),
                    "positions": places[None],
                    "write_index": np.array([0]),
                    "write": np.array([0]),
                }[each.name]
            case "mask":
                length = num_tokens if each.name.startswith("mask_new") else SLOTS
                sees_TS = np.arange(length)[None] <= places[:, None]
                feeds[each.name] = sees_TS[None, None] & (not each.name.startswith("mask_past"))
            case _:
                shape = [size if isinstance(size, int) else 1 for size in each.shape]
                feeds[each.name] = np.zeros(shape, dtype=np.float32)
    return np.asarray(session.run(["logits"], feeds)[0])


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("embedding", "head"), [(FP32, INT4), (INT8, FP32), (INT4, INT4), (INT8, INT4), (INT4, FP32)], ids=str
)
@pytest.mark.parametrize("name", ["standard", "decomposed"])
def test_logits_are_those_of_the_rounded_tables(
    name: FlavourName, embedding: Format, head: Format, is_tied: bool
) -> None:
    model = replace(CHILD, has_tied_embeddings=is_tied, embedding_weights=embedding, head_weights=head)
    weights = {key: 8 * array if array.ndim == 2 else array for key, array in random_weights(model, seed=1).items()}
    ids = np.random.default_rng(0).integers(0, 80, size=(1, 9))
    flavour = Flavour(name=name, slots=SLOTS, codes_in="words")
    found = _logits(model, weights, flavour, ids)
    plain = replace(model, has_tied_embeddings=False, embedding_weights=FP32, head_weights=None)
    tables = {EMBEDDING: (EMBEDDING, embedding), HEAD: (EMBEDDING if is_tied else HEAD, head)}
    stored = dict(weights) | {
        key: np.ascontiguousarray(rounded(weights[source].T, each).T) for key, (source, each) in tables.items()
    }
    expected = _logits(plain, stored, flavour, ids)
    assert np.abs(found - expected).max() < 1e-4 * expected.std()
    assert np.abs(expected - _logits(plain, dict(weights) | {HEAD: weights[tables[HEAD][0]]}, flavour, ids)).max() > (
        1e-3 * expected.std()
    ), "and rounding can be told from none"


@pytest.mark.parametrize("text", ["fp16", "int4-g32", "bf16"])
def test_what_is_not_asked_for_is_in_what_the_layers_compute_in(text: str) -> None:
    plain = parse_format("bf16") if text == "bf16" else FP16
    weights = parse_format(text)
    assert stored_for_tensorrt(CHILD, weights).model == replace(with_format(CHILD, weights), embedding_weights=plain)
    assert stored_for_tensorrt(CHILD, weights, plain, plain) == stored_for_tensorrt(CHILD, weights)
    both = stored_for_tensorrt(CHILD, weights, INT4, INT4).model
    assert both == replace(with_format(CHILD, weights), embedding_weights=INT4), "one format, whoever says it"
    only_head = stored_for_tensorrt(CHILD, weights, head=INT4)
    assert (only_head.model.embedding_weights, only_head.model.head_format) == (plain, INT4)
    only_rows = stored_for_tensorrt(CHILD, weights, embedding=INT8)
    assert (only_rows.model.embedding_weights, only_rows.model.head_format) == (INT8, plain)
    assert "int4" in only_head.narrow and ("int4" in only_rows.narrow) == (text == "int4-g32")


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize(
    ("layers", "head", "complaint"),
    [
        ("int4-g64", None, None),
        ("int4-g32", None, "int4-g32 for TensorRT 11.4"),
        ("int4-g64", INT4, "int4-g32"),
        ("fp16", parse_format("int4-g16"), "int4-g16"),
        ("fp16", None, None),
    ],
)
def test_tensorrt_is_given_the_groups_that_it_is_documented_to_keep(
    layers: str, head: Format | None, complaint: str | None, name: PackageName
) -> None:
    model = replace(CHILD, layers=every_kind(128, 64, 64))
    expected = expected_of(stored_for_tensorrt(model, parse_format(layers), head, embedding=INT8).model)
    package = Package(name=name, version="11.4", trt=None)
    if complaint is None or name == "tensorrt_rtx":
        check_groups(expected, package)
        return
    with pytest.raises(InputError, match=complaint):
        check_groups(expected, package)
    with pytest.raises(InputError, match=complaint):  # before any of its interface is asked
        build(BuildRequest(**BUILD | {"package": name, "expected": expected}), package)


BUILD: dict[str, Any] = {
    "graph": "model.onnx",
    "plan": "model.plan",
    "capabilities": (),
    "profiles": (),
    "most_sequences": 1,
    "timing_cache": None,
}


@pytest.mark.parametrize(
    ("asked", "is_refused"),
    [
        (("--format", "int4"), True),
        (("--format", "int4", "--form", "decomposed", "--profile", "jetson_agx_orin"), True),
        (("--format", "int4", "--profile", "rtx_4090"), False),
        (("--format", "int4", "--for", "sm86"), False),
        (("--format", "int4-g64"), False),
        (("--format", "fp16", "--head", "int4-g32"), True),
    ],
)
def test_a_kit_whose_device_may_not_take_its_groups_is_refused(
    asked: tuple[str, ...], is_refused: bool, wide_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compile", str(wide_parent), "--target", "tensorrt", "--kit", "--out", str(tmp_path / "kit.zip"), *asked]
    assert main(words) == (2 if is_refused else 0)
    told = capsys.readouterr().err
    assert ("int4-g32 for a kit that TensorRT may build" in told) == is_refused
    assert ("int4-g64 or int4-g128, or name GPUs of TensorRT-RTX with --for" in told) == is_refused


@pytest.mark.parametrize("option", ["head", "embedding"])
def test_a_group_that_does_not_divide_the_channels_is_refused(option: str) -> None:
    with pytest.raises(InputError, match=f"--{option}: got int4-g128, for 64 channels"):
        stored_for_tensorrt(CHILD, FP16, **{option: parse_format("int4-g128")})


def test_exports_write_no_head_beside_another_embedding() -> None:
    order = ExportOrder(
        model=replace(CHILD, layers=(), head_weights=INT8), target="transformers", is_child=True, built_from=""
    )
    with pytest.raises(InputError, match="the head in int8-g32 is not written beside the embedding in fp32"):
        check_exportable(order)


HIDDEN, VOCABULARY = 256, 32000
TABLE_BYTES = HIDDEN * VOCABULARY // 2
"""In int4, its scales aside; in fp16 it takes four times that, and more than kernels do."""


@pytest.fixture(scope="module")
def wide_parent(tmp_path_factory: pytest.TempPathFactory, small_parent: Path) -> Path:
    """Of one layer and many words."""
    folder = tmp_path_factory.mktemp("wide") / "parent"
    config = LlamaConfig(
        hidden_size=HIDDEN,
        vocab_size=VOCABULARY,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in small_parent.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    return folder


@needs_rtx
@pytest.mark.parametrize("form", ["fused", "decomposed"])
@pytest.mark.parametrize("layers", ["fp16", "int4-g32"])
def test_tensorrt_keeps_tables_as_they_are_asked_for(
    layers: str, form: str, wide_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes: dict[tuple[str, ...], int] = {}
    for index, asked in enumerate(((), ("--head", "int4-g32"), ("--head", "int4-g32", "--embedding", "int4-g32"))):
        out = tmp_path / str(index)
        words = ["compile", str(wide_parent), "--target", "tensorrt", "--for", "sm86", "--form", form]
        assert main([*words, "--format", layers, *asked, "--out", str(out)]) == 0
        engine = read_tensorrt_engine(out)
        sizes[asked] = engine.files[PLAN_FILE].size_bytes
        assert sizes[asked] < engine.weight_bytes + 12_000_000, "no table is there in fp16 beside its integers"
        told = capsys.readouterr().out
        assert ("head in int4-g32" in told, "embedding in int4-g32" in told) == ("--head" in asked, len(asked) == 4)
    tied, own_head, both = sizes.values()
    scales = TABLE_BYTES // 8  # fp16, one for 32 values
    assert own_head - tied == pytest.approx(TABLE_BYTES + scales, abs=3_000_000)
    assert own_head - both == pytest.approx(3 * TABLE_BYTES - scales, abs=3_000_000)


def test_onnxruntimes_tables_are_told_as_they_were_asked_for(
    small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "compile",
        str(small_parent),
        "--format",
        "int4",
        "--embedding",
        "int4-g32",
        "--out",
        str(tmp_path / "engine"),
    ]
    assert main(words) == 0
    assert "engine: int4-g32, embedding in int4-g32, standard" in capsys.readouterr().out
    model = read_engine(tmp_path / "engine").model
    assert (str(model.embedding_weights), str(model.head_format)) == ("int4-g32", "int8-g32")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--head", "int8-g32"), ("--head", "int8-g32, for 256 channels", "fp16, or int4 in groups")),
        (("--head", "bf16"), ("--head", "got       bf16")),
        (("--head", "int4-g256"), ("--head", "int4-g256, for 256 channels")),
        (("--head", "four"), ("--head", "'four'", "int4")),
        (("--embedding", "bf16"), ("--embedding", "bf16, for 256 channels", "fp16, or int8 or int4 in groups")),
        (("--embedding", "int4-g96"), ("--embedding", "int4-g96")),
        (("--target", "onnxruntime", "--embedding", "int3"), ("--embedding", "int3")),
        (("--target", "llama.cpp", "--embedding", "int4-g32"), ("--embedding", "int4-g32 for llama.cpp")),
    ],
)
def test_tables_that_no_engine_keeps_are_refused(
    asked: tuple[str, ...], said: tuple[str, ...], wide_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compile", str(wide_parent), "--target", "tensorrt", "--out", str(tmp_path / "engine"), *asked]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert [words for words in said if words not in told] == []
    assert not (tmp_path / "engine").exists()
