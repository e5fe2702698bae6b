"""What TensorRT would drop or refuse of a network is refused with its place."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from blockwright.compile.tensorrt_build import BuildRequest, build, build_apart
from blockwright.compile.tensorrt_checks import expected_of
from blockwright.compile.tensorrt_package import Form
from blockwright.errors import InputError
from tensorrt_requests import PACKAGE, SMALL, request_of


def _edited(request: BuildRequest, edit: Callable[[onnx.GraphProto], None]) -> BuildRequest:
    model = onnx.load(request.graph)
    edit(model.graph)
    onnx.save_model(model, request.graph)
    return request


def _without_mask(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.op_type == "Attention":
            node.input[3] = ""
            node.attribute.append(helper.make_attribute("is_causal", 1))


def _with_surplus(graph: onnx.GraphProto) -> None:
    graph.input.append(helper.make_tensor_value_info("surplus", TensorProto.INT64, ["batch"]))


def _with_a_stranger(graph: onnx.GraphProto) -> None:
    graph.node.insert(0, helper.make_node("Stranger", ["ids"], ["strange"], name="stranger"))


def _in_uint4(graph: onnx.GraphProto) -> None:
    for index, each in enumerate(graph.initializer):
        if each.name == "model.layers.0.mlp.up_proj.weight.codes":
            codes = numpy_helper.to_array(each).astype(np.int8).clip(0)
            graph.initializer[index].CopyFrom(helper.make_tensor(each.name, TensorProto.UINT4, codes.shape, codes))


@pytest.mark.parametrize(
    ("edit", "field", "complaint"),
    [
        (_without_mask, "network", "model.layers.0.self_attn.attended_AttentionInput without a mask"),
        (_with_surplus, "network", "an input surplus that no layer reads"),
        (_in_uint4, "graph", "UNSUPPORTED_NODE"),
        (_in_uint4, "graph", "model.layers.0.mlp.up_proj.weight.codes"),
        (_with_a_stranger, "graph: stranger (Stranger)", "Plugin not found"),
    ],
)
def test_what_tensorrt_would_drop_or_refuse_is_refused_with_its_place(
    edit: Callable[[onnx.GraphProto], None], field: str, complaint: str, tmp_path: Path
) -> None:
    request = _edited(request_of(tmp_path, SMALL, "int4-g32"), edit)
    with pytest.raises(InputError) as refused:
        build_apart(request, PACKAGE)
    assert refused.value.field == field
    assert complaint in str(refused.value.got)
    assert not Path(request.plan).exists()


def test_a_network_with_fewer_layers_than_its_model_is_refused(tmp_path: Path) -> None:
    request = request_of(tmp_path, SMALL)
    more = replace(request.expected, num_integer_matrices=1)
    with pytest.raises(InputError, match=r"0 layers of DEQUANTIZE.*expected 1"):
        build(replace(request, expected=more), PACKAGE)


def test_a_network_of_the_other_form_is_refused(tmp_path: Path) -> None:
    request = request_of(tmp_path, SMALL, form="decomposed")
    with pytest.raises(InputError, match=r"0 layers of ATTENTION_INPUT.*expected 2"):
        build(replace(request, expected=expected_of(SMALL)), PACKAGE)
    request = request_of(tmp_path, SMALL)
    with pytest.raises(InputError, match=r"2 layers of ATTENTION_INPUT.*expected 0"):
        build(replace(request, expected=expected_of(SMALL, "decomposed")), PACKAGE)


@pytest.mark.parametrize(
    ("operator", "form", "complaint"),
    [
        ("Attention", "fused", "1 layers of ATTENTION_INPUT.*expected 2"),
        ("TensorScatter", "fused", "3 layers of KV_CACHE_UPDATE.*expected 4"),
        ("RotaryEmbedding", "fused", "3 layers of ROTARY_EMBEDDING.*expected 4"),
        ("Softmax", "decomposed", "1 layers of SOFTMAX.*expected 2"),
    ],
)
def test_a_network_that_lost_one_operator_is_refused(operator: str, form: Form, complaint: str, tmp_path: Path) -> None:
    def lose(graph: onnx.GraphProto) -> None:
        last = [node for node in graph.node if node.op_type == operator][-1]
        last.op_type = "Identity"
        del last.attribute[:], last.input[1:]

    request = _edited(request_of(tmp_path, SMALL, form=form), lose)
    with pytest.raises(InputError, match=complaint):
        build(request, PACKAGE)
