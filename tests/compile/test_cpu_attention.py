"""Our own attention, against numpy and against ONNX Runtime's."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from blockwright.compile.cpu_attention import use_own_attention
from blockwright.compile.decoder import decoder_graph, stack_graph
from blockwright.compile.engine import EngineOrder, SessionSettings, write_engine
from blockwright.compile.flavour import Flavour, FlavourName
from blockwright.compile.runtime import ORT_ERRORS
from blockwright.compile.session import Decoder, OperatorsOf, Session, make_session
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Model, Window
from decoders import every_kind
from own_operators import own_operators  # noqa: F401

pytestmark = pytest.mark.usefixtures("own_operators")

EXACT = SessionSettings(num_threads=1, accuracy_level=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Sizes of a test."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_tokens: int
    num_slots: int


def _masked_graph(case: Case) -> bytes:
    """Attention as the standard flavour writes it."""
    node = helper.make_node("Attention", ["q", "present_k", "present_v", "mask"], ["y"], scale=case.head_dim**-0.5)
    sizes = {
        "q": (TensorProto.FLOAT, ["b", case.num_heads, "t", case.head_dim]),
        "present_k": (TensorProto.FLOAT, ["b", case.num_kv_heads, "s", case.head_dim]),
        "present_v": (TensorProto.FLOAT, ["b", case.num_kv_heads, "s", case.head_dim]),
        "mask": (TensorProto.BOOL, ["b", 1, "t", "s"]),
    }
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in sizes.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", case.num_heads, "t", case.head_dim])
    graph = helper.make_graph([node], "attention", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11).SerializeToString()


def _naive(q_BHTD: np.ndarray, k_BNSD: np.ndarray, v_BNSD: np.ndarray, mask_B1TS: np.ndarray) -> np.ndarray:
    shared, head_dim = q_BHTD.shape[1] // k_BNSD.shape[1], q_BHTD.shape[3]
    k_BHSD, v_BHSD = (np.repeat(each, shared, axis=1).astype(np.float64) for each in (k_BNSD, v_BNSD))
    scores_BHTS = q_BHTD @ k_BHSD.swapaxes(2, 3) * head_dim**-0.5
    weights_BHTS = np.exp(scores_BHTS - scores_BHTS.max(axis=3, keepdims=True)) * mask_B1TS
    return weights_BHTS / weights_BHTS.sum(axis=3, keepdims=True) @ v_BHSD


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(
    "case",
    [
        Case(num_heads=4, num_kv_heads=4, head_dim=8, num_tokens=1, num_slots=7),
        Case(num_heads=6, num_kv_heads=2, head_dim=24, num_tokens=5, num_slots=130),
        Case(num_heads=16, num_kv_heads=4, head_dim=64, num_tokens=1, num_slots=300),
        Case(num_heads=8, num_kv_heads=1, head_dim=128, num_tokens=33, num_slots=64),
    ],
    ids=str,
)
def test_attention_under_any_mask_is_the_naive_one(case: Case, num_threads: int) -> None:
    random = np.random.default_rng(0)
    batch = 2
    q_BHTD = random.standard_normal((batch, case.num_heads, case.num_tokens, case.head_dim)).astype(np.float32)
    k_BNSD, v_BNSD = (
        random.standard_normal((batch, case.num_kv_heads, case.num_slots, case.head_dim)).astype(np.float32)
        for _ in range(2)
    )
    q_BHTD *= 4  # so that some weigh next to nothing
    mask_B1TS = random.random((batch, 1, case.num_tokens, case.num_slots)) < 0.4
    mask_B1TS[..., case.num_slots // 2] = True
    fed = {"q": q_BHTD, "present_k": k_BNSD, "present_v": v_BNSD, "mask": mask_B1TS}
    session = make_session(_masked_graph(case), replace(EXACT, num_threads=num_threads))
    naive_BHTD = _naive(q_BHTD, k_BNSD, v_BNSD, mask_B1TS)
    np.testing.assert_allclose(np.asarray(session.run(None, fed)[0]), naive_BHTD, rtol=0, atol=2e-6)


def _model(**changes: Any) -> Model:
    layers = every_kind(96, 160, 32, Window(num_tokens=5))
    model = llama(layers, vocab_size=80, hidden_size=64, num_heads=4, head_dim=16, max_positions=64)
    return replace(model, **changes)


MODELS = {
    "packed": _model(),
    "with biases": _model(has_qkv_bias=True),
    "with normed heads": _model(family="qwen3", has_qk_norm=True),
    "rotated outside": _model(head_dim=24),
}


@pytest.mark.parametrize("flavour", ["standard", "contrib"])
@pytest.mark.parametrize("name", MODELS)
def test_an_engine_says_the_same_with_either_attention(name: str, flavour: FlavourName, tmp_path: Path) -> None:
    model = MODELS[name]
    order = EngineOrder(
        model=model,
        weights_format=None,
        num_positions=64,
        session=EXACT,
        built_from="random weights",
        flavour=flavour,
    )
    write_engine(order, {n: 4 * array for n, array in random_weights(model, seed=1).items()}, tmp_path)
    prompts = [list(range(3, 20)), list(range(30, 41))]
    said: dict[OperatorsOf, np.ndarray] = {}
    for operators in ("fastest", "onnxruntime"):
        sequences = Decoder.open(tmp_path, operators=operators).start(2, 32)
        steps = [sequences.prefill(prompts), *(sequences.step(np.array([i, i + 1])).copy() for i in range(5, 9))]
        said[operators] = np.stack(steps)
    spread = said["onnxruntime"].std()
    np.testing.assert_allclose(said["fastest"], said["onnxruntime"], rtol=0, atol=2e-5 * spread)


@pytest.mark.parametrize("flavour", ["standard", "contrib"])
def test_no_attention_of_either_flavour_is_left_to_onnx_runtime(flavour: FlavourName) -> None:
    graph = decoder_graph(_model(), random_weights(_model()), 64, Flavour(name=flavour)).graph
    assert use_own_attention(graph)
    kinds = {node.op_type for node in graph.node}
    assert kinds & {"CachedAttention", "MaskedAttention"}
    assert not kinds & {"Attention", "GroupQueryAttention"}


@pytest.mark.parametrize("attribute", ["softcap", "rotary_interleaved", "smooth_softmax"])
def test_attention_that_ours_does_not_know_is_left_to_onnx_runtime(attribute: str) -> None:
    graph = decoder_graph(_model(), random_weights(_model()), 64, Flavour(name="contrib")).graph
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            node.attribute.append(helper.make_attribute(attribute, 1))
    assert not use_own_attention(graph)


def test_half_precision_is_left_to_onnx_runtime() -> None:
    flavour = Flavour(name="standard", activations="float16")
    assert not use_own_attention(decoder_graph(_model(), random_weights(_model()), 64, flavour).graph)


def test_heads_that_fill_no_register_are_left_to_onnx_runtime() -> None:
    model = _model(head_dim=12)
    assert not use_own_attention(decoder_graph(model, random_weights(model), 64).graph)


def _stack_inputs(session: Session, last_slot: int, num_tokens: int, batch: int = 1) -> dict[str, np.ndarray]:
    """Random states and caches of 16 slots."""
    random = np.random.default_rng(0)
    sizes = {"batch": batch, "tokens": num_tokens, "slots": 16}
    fed: dict[str, np.ndarray] = {}
    for each in session.get_inputs():
        shape = [size if isinstance(size, int) else sizes[size] for size in each.shape]
        if each.type == "tensor(float)":
            fed[each.name] = random.standard_normal(shape).astype(np.float32)
    fed["last_slot"] = np.full(batch, last_slot, dtype=np.int32)
    return fed | {"total_length": np.array(last_slot + 1, dtype=np.int32)}


def test_a_cache_that_is_not_written_in_place_is_copied() -> None:
    model = _model()
    graph = stack_graph(model, random_weights(model), 64, Flavour(name="contrib")).SerializeToString()
    past, num_tokens = 6, 3
    outputs: list[list[np.ndarray]] = []
    for operators in ("fastest", "onnxruntime"):
        session = make_session(graph, EXACT, operators=operators)
        fed = _stack_inputs(session, past + num_tokens - 1, num_tokens)
        outputs.append([np.asarray(each)[..., : past + num_tokens, :] for each in session.run(None, fed)])
    assert any(each.ndim == 4 for each in outputs[0])
    for own, other in zip(*outputs, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("last_slot", "num_tokens"), [(16, 1), (-1, 1), (1, 3), (2**31 - 2, 1)])
def test_a_token_without_a_slot_is_an_error_and_not_a_crash(last_slot: int, num_tokens: int) -> None:
    model = _model()
    graph = stack_graph(model, random_weights(model), 64, Flavour(name="contrib")).SerializeToString()
    session = make_session(graph, EXACT)
    with pytest.raises(ORT_ERRORS, match="do not fit"):
        session.run(None, _stack_inputs(session, last_slot, num_tokens))


@pytest.mark.parametrize(("batch", "num_tokens"), [(0, 1), (1, 0)])
def test_nothing_new_leaves_the_cache_as_it_is(batch: int, num_tokens: int) -> None:
    model = _model()
    graph = stack_graph(model, random_weights(model), 64, Flavour(name="contrib")).SerializeToString()
    session = make_session(graph, EXACT)
    fed = _stack_inputs(session, 5, num_tokens, batch)
    said = dict(zip([each.name for each in session.get_outputs()], session.run(None, fed), strict=True))
    for name in [name for name in said if name.startswith("present_")]:
        np.testing.assert_array_equal(np.asarray(said[name]), fed[name.replace("present_", "past_")])


@pytest.mark.parametrize("place", ["q", "present_k", "present_v"])
def test_what_is_not_a_number_is_not_hidden(place: str) -> None:
    case = Case(num_heads=4, num_kv_heads=2, head_dim=16, num_tokens=3, num_slots=21)
    shapes = {"q": (1, 4, 3, 16), "present_k": (1, 2, 21, 16), "present_v": (1, 2, 21, 16)}
    random = np.random.default_rng(0)
    fed = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    fed["mask"] = np.ones((1, 1, 3, 21), dtype=bool)
    fed[place][0, 0, 1, 2] = np.nan
    said = np.asarray(make_session(_masked_graph(case), EXACT).run(None, fed)[0])
    assert np.isnan(said[0, 0, 1]).any()
    assert np.isfinite(said[0, 2:]).all()


def test_who_sees_nothing_says_nothing() -> None:
    case = Case(num_heads=4, num_kv_heads=2, head_dim=16, num_tokens=3, num_slots=21)
    q, kv = np.ones((1, 4, 3, 16), dtype=np.float32), np.ones((1, 2, 21, 16), dtype=np.float32)
    mask = np.ones((1, 1, 3, 21), dtype=bool)
    mask[0, 0, 1] = False
    fed = {"q": q, "present_k": kv, "present_v": kv, "mask": mask}
    said = np.asarray(make_session(_masked_graph(case), EXACT).run(None, fed)[0])
    np.testing.assert_allclose(said[:, :, ::2], 1, rtol=1e-6)
    np.testing.assert_array_equal(said[:, :, 1], 0)


def test_a_mask_of_another_size_is_an_error_and_not_a_crash() -> None:
    case = Case(num_heads=4, num_kv_heads=2, head_dim=16, num_tokens=3, num_slots=21)
    kv = np.ones((1, 2, 21, 16), dtype=np.float32)
    fed = {"q": np.ones((1, 4, 3, 16), dtype=np.float32), "present_k": kv, "present_v": kv}
    session = make_session(_masked_graph(case), EXACT)
    with pytest.raises(ORT_ERRORS, match="do not fit"):
        session.run(None, fed | {"mask": np.ones((1, 1, 3, 20), dtype=bool)})
