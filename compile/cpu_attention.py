"""Puts our own attention (`cpu_attention.c`) in the place of ONNX Runtime's, in a graph that is being opened.

GroupQueryAttention of the contrib flavour becomes CachedAttention, and Attention under a mask, of the standard one,
MaskedAttention: the same numbers from the same inputs. Both read a key once for four queries, and only where they look.
"""

from typing import Any

from onnx import GraphProto, NodeProto, TensorProto, helper

from blockwright.compile.cpu_library import attends
from blockwright.compile.cpu_products import DOMAIN

_TOTAL_LENGTH = 6
"""Which input of GroupQueryAttention says what the slots of the last tokens say already."""
_NUM_INPUTS = (7, 9)
"""Without angles and with them; further ones are nothing that ours knows, and so are further attributes."""
_TOLD = ("num_heads", "kv_num_heads", "local_window_size", "scale")


def use_own_attention(graph: GraphProto) -> bool:
    """Replaces all attention that can be replaced, in place; whether there was any."""
    caches = {each.name: each.type.tensor_type for each in (*graph.input, *graph.output)}
    suiting = {
        name
        for name, tensor in caches.items()
        if tensor.elem_type == TensorProto.FLOAT
        and len(tensor.shape.dim) == 4
        and attends(tensor.shape.dim[3].dim_value)
    }
    own = [(node, _own(node, suiting)) for node in graph.node]
    for node, replacement in own:
        if replacement is not None:
            node.CopyFrom(replacement)
    return any(replacement is not None for _, replacement in own)


def _own(node: NodeProto, suiting: set[str]) -> NodeProto | None:
    told: dict[str, Any] = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    inputs, outputs = list(node.input), list(node.output)
    if node.op_type == "GroupQueryAttention" and _is_plain(inputs, told) and inputs[3] in suiting:
        read = [name for index, name in enumerate(inputs) if index != _TOTAL_LENGTH]
        attributes = {name: told[name] for name in _TOLD}
        return helper.make_node("CachedAttention", read, outputs, name=node.name, domain=DOMAIN, **attributes)
    is_masked = node.op_type == "Attention" and node.domain == "" and len(inputs) == 4 and told.keys() == {"scale"}
    if is_masked and inputs[1] in suiting:
        return helper.make_node("MaskedAttention", inputs, outputs, name=node.name, domain=DOMAIN, scale=told["scale"])
    return None


def _is_plain(inputs: list[str], told: dict[str, Any]) -> bool:
    """Whether GroupQueryAttention does nothing that CachedAttention does not."""
    has_angles = len(inputs) == max(_NUM_INPUTS)
    return len(inputs) in _NUM_INPUTS and told.keys() == {*_TOLD, "do_rotary"} and told["do_rotary"] == has_angles
