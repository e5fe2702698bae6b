"""Tries our own operators once, against the same in numpy: `python -m blockwright.compile.cpu_trial LIBRARY`.

In a process of its own, for what calls functions by their place in a table may crash in an ONNX Runtime that has
another table. Small, but of several pieces each that run side by side, none of which is full.

Shapes: M rows, K inputs, N outputs, G groups, T tokens, H heads, V heads of keys and values, S slots, D numbers.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from blockwright.compile.cpu_products import DOMAIN, weave_codes, weave_scales
from blockwright.compile.runtime import ort

_KINDS = {
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}
_ROWS, _INPUTS, _OUTPUTS, _GROUP = 5, 96, 100, 32
"""Of the product: a piece has 64 outputs, in eights, and four rows."""
_TOKENS, _HEADS, _KV_HEADS, _SLOTS, _HEAD_DIM = 3, 4, 2, 11, 24
"""Of attention: a piece has four queries of the six that share a head of keys."""
_LAST, _WINDOW, _SCALE = 8, 4, 0.3
"""Where the last token stands, and how many each sees, itself included."""


def works(library: str) -> bool:
    """Whether all operators say what they should."""
    random = np.random.default_rng(0)
    return all(
        np.allclose(said, expected, rtol=1e-4, atol=1e-3)
        for try_one in (_product, _cached_attention, _masked_attention)
        for said, expected in zip(*try_one(library, random), strict=True)
    )


_Answers = tuple[Sequence[np.ndarray], Sequence[np.ndarray]]
"""What an operator says and what it should."""


def _product(library: str, random: np.random.Generator) -> _Answers:
    """Of inputs that are rounded to themselves, for the largest of each group is 127."""
    num_groups = _INPUTS // _GROUP
    x_MK = random.integers(-126, 127, (_ROWS, _INPUTS)).astype(np.float32)
    x_MK[:, ::_GROUP] = 127
    codes_NK = random.integers(0, 16, (_OUTPUTS, _INPUTS)).astype(np.uint8)
    scales_NG = random.uniform(0.01, 0.1, (_OUTPUTS, num_groups)).astype(np.float32)
    bias_N = random.standard_normal(_OUTPUTS).astype(np.float32)
    fed = {"x": x_MK, "codes": weave_codes(codes_NK), "scales": weave_scales(scales_NG), "bias": bias_N}
    said = _run(library, "Int4Product", fed, 1, {"K": _INPUTS, "N": _OUTPUTS, "block_size": _GROUP})
    weights_NK = (codes_NK - 8.0) * np.repeat(scales_NG, _GROUP, axis=1)
    return said, [x_MK @ weights_NK.T + bias_N]


def _cached_attention(library: str, random: np.random.Generator) -> _Answers:
    """Of new tokens that are rotated and written behind others, of which each sees the last few."""
    q_THD, k_TVD, v_TVD = (_numbers(random, _TOKENS, heads, _HEAD_DIM) for heads in (_HEADS, _KV_HEADS, _KV_HEADS))
    keys_VSD, values_VSD = (_numbers(random, _KV_HEADS, _SLOTS, _HEAD_DIM) for _ in range(2))
    angles = random.uniform(0, 6, (_SLOTS, _HEAD_DIM // 2)).astype(np.float32)
    fed = {name: each.reshape(1, _TOKENS, -1) for name, each in (("q", q_THD), ("k", k_TVD), ("v", v_TVD))}
    fed |= {"past_k": keys_VSD[None], "past_v": values_VSD[None], "last": np.array([_LAST], np.int32)}
    fed |= {"cosines": np.cos(angles), "sines": np.sin(angles)}
    told = {"scale": _SCALE, "num_heads": _HEADS, "kv_num_heads": _KV_HEADS, "local_window_size": _WINDOW}
    said = _run(library, "CachedAttention", fed, 3, told)
    slot_T = np.arange(_LAST + 1 - _TOKENS, _LAST + 1)
    keys_VSD, values_VSD = keys_VSD.copy(), values_VSD.copy()
    keys_VSD[:, slot_T] = _rotated(k_TVD, angles[slot_T]).swapaxes(0, 1)
    values_VSD[:, slot_T] = v_TVD.swapaxes(0, 1)
    behind_TS = slot_T[:, None] - np.arange(_SLOTS)
    q_HTD = _rotated(q_THD, angles[slot_T]).swapaxes(0, 1)
    attended_HTD = _attended(q_HTD, keys_VSD, values_VSD, (behind_TS >= 0) & (behind_TS < _WINDOW))
    return said, [attended_HTD.swapaxes(0, 1).reshape(1, _TOKENS, -1), keys_VSD[None], values_VSD[None]]


def _masked_attention(library: str, random: np.random.Generator) -> _Answers:
    q_HTD = _numbers(random, _HEADS, _TOKENS, _HEAD_DIM)
    keys_VSD, values_VSD = (_numbers(random, _KV_HEADS, _SLOTS, _HEAD_DIM) for _ in range(2))
    seen_TS = random.random((_TOKENS, _SLOTS)) < 0.5
    seen_TS[:, 4] = True
    fed = {"q": q_HTD[None], "k": keys_VSD[None], "v": values_VSD[None], "mask": seen_TS[None, None]}
    said = _run(library, "MaskedAttention", fed, 1, {"scale": _SCALE})
    return said, [_attended(q_HTD, keys_VSD, values_VSD, seen_TS)[None]]


def _numbers(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


def _rotated(x_THD: np.ndarray, angles_TD: np.ndarray) -> np.ndarray:
    """Each head's halves, turned by its token's angles."""
    low, high = np.split(x_THD, 2, axis=-1)
    cosines, sines = np.cos(angles_TD)[:, None], np.sin(angles_TD)[:, None]
    return np.concatenate([low * cosines - high * sines, high * cosines + low * sines], axis=-1)


def _attended(q_HTD: np.ndarray, keys_VSD: np.ndarray, values_VSD: np.ndarray, seen_TS: np.ndarray) -> np.ndarray:
    keys_HSD, values_HSD = (np.repeat(each, _HEADS // _KV_HEADS, axis=0) for each in (keys_VSD, values_VSD))
    weights_HTS = np.where(seen_TS, np.exp(_SCALE * q_HTD @ keys_HSD.swapaxes(1, 2)), 0)
    return weights_HTS / weights_HTS.sum(axis=-1, keepdims=True) @ values_HSD


def _run(
    library: str, kind: str, fed: Mapping[str, np.ndarray], num_outputs: int, told: Mapping[str, Any]
) -> list[np.ndarray]:
    names = [f"y{index}" for index in range(num_outputs)]
    node = helper.make_node(kind, list(fed), names, domain=DOMAIN, **told)
    inputs = [helper.make_tensor_value_info(name, _KINDS[str(a.dtype)], a.shape) for name, a in fed.items()]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    imports = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(helper.make_graph([node], kind, inputs, outputs), opset_imports=imports, ir_version=11)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(library)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, dict(fed))]


if __name__ == "__main__":
    sys.exit(None if works(sys.argv[1]) else "error: they say other numbers than numpy does")
