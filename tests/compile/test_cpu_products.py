"""Our own int4 product, against the same arithmetic in numpy and against ONNX Runtime's."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from blockwright.compile import session
from blockwright.compile.blocked import pack_codes, quantise_blocks
from blockwright.compile.cpu_library import _WIDE, SOURCES, _processor_flags, compiled
from blockwright.compile.cpu_products import use_own_products, weave_codes, weave_scales
from blockwright.compile.decoder import decoder_graph
from blockwright.compile.engine import EngineOrder, SessionSettings, write_engine
from blockwright.compile.flavour import Flavour, FlavourName
from blockwright.compile.session import Decoder, OperatorsOf, make_session
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Model, parse_format, with_format
from decoders import every_kind
from own_operators import own_operators  # noqa: F401

ROUNDED = SessionSettings(num_threads=1, accuracy_level=4)


pytestmark = pytest.mark.usefixtures("own_operators")


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A matrix of the test."""

    num_inputs: int
    num_outputs: int
    group_size: int
    has_bias: bool = False


def _graph(product: Product, codes_KN: np.ndarray, scales_GN: np.ndarray, bias_N: np.ndarray) -> onnx.ModelProto:
    """x times the matrix, as the contrib flavour writes it."""
    weights = parse_format(f"int4-g{product.group_size}")
    stored = {"codes": pack_codes(codes_KN, weights), "scales": np.ascontiguousarray(scales_GN.T), "bias": bias_N}
    inputs = ["x", "codes", "scales", *(["", "", "bias"] if product.has_bias else [])]
    told: dict[str, Any] = {"K": product.num_inputs, "N": product.num_outputs, "block_size": product.group_size}
    told |= {"bits": 4, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", **told)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", product.num_inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", product.num_outputs])],
        [numpy_helper.from_array(array, name) for name, array in stored.items() if name in inputs],
    )
    imports = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=11)


def _run(graph: bytes, settings: SessionSettings, x_MK: np.ndarray, operators: OperatorsOf = "fastest") -> np.ndarray:
    return np.asarray(make_session(graph, settings, operators=operators).run(None, {"x": x_MK})[0])


def _naive(x_MK: np.ndarray, codes_KN: np.ndarray, scales_GN: np.ndarray, group_size: int) -> np.ndarray:
    """Activations rounded to int8, a step per row and group; whole numbers multiplied group by group."""
    y_MN = np.zeros((len(x_MK), codes_KN.shape[1]), dtype=np.float64)
    for group, scales_N in enumerate(scales_GN):
        part = slice(group * group_size, (group + 1) * group_size)
        step_M = np.abs(x_MK[:, part]).max(axis=1) / np.float32(127)
        inverse_M = np.divide(np.float32(1), step_M, out=np.zeros_like(step_M), where=step_M > 0)
        rounded_MK = np.round(x_MK[:, part] * inverse_M[:, None]).astype(np.int32)
        y_MN += (rounded_MK @ codes_KN[part].astype(np.int32)) * step_M[:, None].astype(np.float64) * scales_N
    return y_MN


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_rows", [1, 3, 4, 70])
@pytest.mark.parametrize(
    "product",
    [
        Product(num_inputs=256, num_outputs=96, group_size=32),
        Product(num_inputs=320, num_outputs=131, group_size=32, has_bias=True),
        Product(num_inputs=72, num_outputs=3, group_size=32),
        Product(num_inputs=352, num_outputs=64, group_size=64, has_bias=True),
        Product(num_inputs=960, num_outputs=33, group_size=128),
        Product(num_inputs=512, num_outputs=16, group_size=256),
    ],
    ids=str,
)
def test_the_product_is_the_naive_one(product: Product, num_rows: int, num_threads: int) -> None:
    random = np.random.default_rng(0)
    weight_KN = random.standard_normal((product.num_inputs, product.num_outputs)).astype(np.float32)
    codes_KN, scales_GN = quantise_blocks(weight_KN, parse_format(f"int4-g{product.group_size}"))
    bias_N = random.standard_normal(product.num_outputs).astype(np.float32)
    x_MK = random.standard_normal((num_rows, product.num_inputs)).astype(np.float32)
    x_MK[0, : product.group_size] = 0  # a group whose step is 0
    settings = replace(ROUNDED, num_threads=num_threads)
    graph = _graph(product, codes_KN, scales_GN, bias_N).SerializeToString()
    own_MN = _run(graph, settings, x_MK)
    naive_MN = _naive(x_MK, codes_KN, scales_GN, product.group_size) + (bias_N if product.has_bias else 0)
    np.testing.assert_allclose(own_MN, naive_MN, rtol=0, atol=3e-6 * np.abs(naive_MN).max())
    other_MN = _run(graph, settings, x_MK, "onnxruntime")
    np.testing.assert_allclose(own_MN, other_MN, rtol=0, atol=3e-6 * np.abs(naive_MN).max())


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("num_outputs", [3, 8, 16, 17, 31, 33, 57, 131])
def test_wide_products_are_the_others_to_the_last_bit(
    num_outputs: int, group_size: int, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if not _processor_flags() >= _WIDE:
        pytest.skip("this processor has no AVX-512 with VNNI")
    random, product = (
        np.random.default_rng(num_outputs),
        Product(num_inputs=160, num_outputs=num_outputs, group_size=group_size, has_bias=True),
    )
    weight_KN = random.standard_normal((160, num_outputs)).astype(np.float32)
    codes_KN, scales_GN = quantise_blocks(weight_KN, parse_format(f"int4-g{group_size}"))
    bias_N = random.standard_normal(num_outputs).astype(np.float32)
    x_MK = (100 * random.standard_normal((71, 160))).astype(np.float32)
    x_MK[5] = np.nan
    graph = _graph(product, codes_KN, scales_GN, bias_N).SerializeToString()
    wide_MN = _run(graph, ROUNDED, x_MK)
    narrow = compiled(SOURCES, tmp_path_factory.getbasetemp() / "library", "-DNARROW")
    monkeypatch.setattr(session, "own_library", lambda: narrow)
    np.testing.assert_array_equal(wide_MN, _run(graph, ROUNDED, x_MK))
    assert np.isfinite(np.delete(wide_MN, 5, axis=0)).all()


def test_the_largest_codes_and_activations_stay_within_their_bits() -> None:
    product = Product(num_inputs=256, num_outputs=8, group_size=256)
    codes_KN = np.full((256, 8), 7, dtype=np.int8)
    codes_KN[:, 1::2] = -8
    scales_GN, x_MK = np.ones((1, 8), dtype=np.float32), np.full((4, 256), 127, dtype=np.float32)
    x_MK[1::2] = -127
    graph = _graph(product, codes_KN, scales_GN, np.zeros(8, dtype=np.float32)).SerializeToString()
    own_MN = _run(graph, ROUNDED, x_MK)
    np.testing.assert_array_equal(own_MN, x_MK @ codes_KN.astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 37, 63])
def test_what_is_not_finite_shows_in_its_row_and_in_no_other(value: float, at: int) -> None:
    product = Product(num_inputs=64, num_outputs=11, group_size=32)
    weight_KN = np.random.default_rng(0).standard_normal((64, 11)).astype(np.float32)
    codes_KN, scales_GN = quantise_blocks(weight_KN, parse_format("int4-g32"))
    x_MK = np.ones((5, 64), dtype=np.float32)
    x_MK[1, at] = value
    own_MN = _run(_graph(product, codes_KN, scales_GN, np.zeros(0)).SerializeToString(), ROUNDED, x_MK)
    assert np.isnan(own_MN[1]).all()
    assert np.isfinite(own_MN[[0, 2, 3, 4]]).all()


def test_codes_that_something_else_reads_too_are_kept() -> None:
    product = Product(num_inputs=64, num_outputs=11, group_size=32)
    weight_KN = np.random.default_rng(0).standard_normal((64, 11)).astype(np.float32)
    codes_KN, scales_GN = quantise_blocks(weight_KN, parse_format("int4-g32"))
    model = _graph(product, codes_KN, scales_GN, np.zeros(0))
    model.graph.node.append(helper.make_node("Identity", ["scales"], ["as_stored"]))
    model.graph.output.append(helper.make_tensor_value_info("as_stored", TensorProto.FLOAT, None))
    session = make_session(model.SerializeToString(), ROUNDED)
    assert session.given
    as_stored = session.run(["as_stored"], {"x": np.ones((1, 64), dtype=np.float32)})[0]
    np.testing.assert_array_equal(as_stored, scales_GN.T)


def test_activations_too_small_for_a_step_are_next_to_nothing() -> None:
    product = Product(num_inputs=64, num_outputs=11, group_size=32)
    codes_KN, scales_GN = np.full((64, 11), 7, dtype=np.int8), np.ones((2, 11), dtype=np.float32)
    x_MK = np.full((1, 64), 1e-40, dtype=np.float32)
    own_MN = _run(_graph(product, codes_KN, scales_GN, np.zeros(0)).SerializeToString(), ROUNDED, x_MK)
    assert np.abs(own_MN).max() < 1e-36


def test_no_rows_are_no_products() -> None:
    product = Product(num_inputs=64, num_outputs=11, group_size=32)
    codes_KN, scales_GN = np.full((64, 11), 7, dtype=np.int8), np.ones((2, 11), dtype=np.float32)
    graph = _graph(product, codes_KN, scales_GN, np.zeros(0)).SerializeToString()
    assert _run(graph, ROUNDED, np.zeros((0, 64), dtype=np.float32)).shape == (0, 11)


def test_codes_are_woven_eight_inputs_of_eight_outputs_at_a_time() -> None:
    unsigned_NP = np.random.default_rng(0).integers(0, 16, (11, 32)).astype(np.uint8)
    woven = weave_codes(unsigned_NP)
    assert woven.shape == (2, 4, 8, 4)
    for output in range(16):
        for k in range(32):
            byte = woven[output // 8, k // 8, output % 8, k % 4]
            code = byte & 15 if k % 8 < 4 else byte >> 4
            assert code == (unsigned_NP[output, k] if output < 11 else 8)


def test_scales_are_woven_eight_outputs_at_a_time() -> None:
    scales_NG = np.arange(33, dtype=np.float32).reshape(11, 3)
    woven = weave_scales(scales_NG)
    for output in range(16):
        np.testing.assert_array_equal(woven[output // 8, :, output % 8], scales_NG[output] if output < 11 else 0)


def _opened(model: Model, flavour: FlavourName) -> tuple[set[str], set[str]]:
    """The operators of a graph before and after."""
    graph = decoder_graph(model, random_weights(model), 64, Flavour(name=flavour)).graph
    before = {node.op_type for node in graph.node}
    use_own_products(graph, None)
    return before, {node.op_type for node in graph.node}


@pytest.mark.parametrize("flavour", ["standard", "contrib"])
def test_no_int4_product_of_either_flavour_is_left_to_onnx_runtime(flavour: FlavourName) -> None:
    before, after = _opened(_model("int4-g32"), flavour)
    assert before & {"MatMulNBits", "DequantizeLinear"}
    assert "Int4Product" in after
    assert not after & {"MatMulNBits", "DequantizeLinear"}


@pytest.mark.parametrize("text", ["int8-g32", "int4-g16", "fp32"])
@pytest.mark.parametrize("flavour", ["standard", "contrib"])
def test_other_formats_are_left_to_onnx_runtime(text: str, flavour: FlavourName) -> None:
    before, after = _opened(_model(text), flavour)
    assert before == after


@pytest.mark.parametrize("flavour", ["standard", "contrib"])
def test_an_engine_says_the_same_with_either_products(flavour: FlavourName, tmp_path: Path) -> None:
    model = _model("int4-g32")
    order = EngineOrder(
        model=model,
        weights_format=None,
        num_positions=64,
        session=ROUNDED,
        built_from="random weights",
        flavour=flavour,
    )
    write_engine(order, random_weights(model), tmp_path)
    prompt = list(range(3, 20))
    logits = []
    both: tuple[OperatorsOf, ...] = ("fastest", "onnxruntime")
    for operators in both:
        decoder = Decoder.open(tmp_path, operators=operators)
        assert bool(decoder.session.given) == (operators == "fastest")
        sequences = decoder.start(1, 32)
        logits.append([sequences.prefill([prompt]), *(sequences.step(np.array([id_])).copy() for id_ in (5, 6, 7))])
    own, other = np.concatenate(logits[0]), np.concatenate(logits[1])
    # Sums in another order now and then round an activation to its neighbour: two of the 127 steps, not one bit.
    assert np.abs(own - other).max() < 0.05 * other.std()


def test_an_engine_at_level_0_is_left_to_onnx_runtime() -> None:
    graph = decoder_graph(_model("int4-g32"), random_weights(_model("int4-g32")), 64).SerializeToString()
    assert not make_session(graph, SessionSettings(num_threads=1, accuracy_level=0)).given
    assert make_session(graph, ROUNDED).given


def test_an_engine_at_another_level_runs_on_the_operators_that_were_asked_for(tmp_path: Path) -> None:
    model = _model("int4-g32")
    order = EngineOrder(
        model=model,
        weights_format=None,
        num_positions=64,
        session=replace(ROUNDED, accuracy_level=0),
        built_from="random weights",
        flavour="contrib",
    )
    write_engine(order, random_weights(model), tmp_path)
    assert Decoder.open(tmp_path, ROUNDED).session.given
    assert not Decoder.open(tmp_path, ROUNDED, operators="onnxruntime").session.given


def _model(text: str) -> Model:
    """Layers of every kind, all matrices in one format, the head too."""
    model = llama(every_kind(96, 160, 32), vocab_size=80, hidden_size=64, num_heads=4, head_dim=16, max_positions=64)
    weights = parse_format(text)
    return replace(with_format(model, weights), embedding_weights=weights)
