"""Tries our own operators once, on numbers whose answers are known: `python -m blockwright.compile.cpu_trial LIBRARY`.

In a process of its own, for what calls functions by their place in a table may crash in an ONNX Runtime that has
another table.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from blockwright.compile.cpu_products import DOMAIN
from blockwright.compile.runtime import ort

_KINDS = {
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}


def works(library: str) -> bool:
    """Whether all operators say what they should."""
    random = np.random.default_rng(0)
    q, k, v, past = (random.standard_normal((1, 1, 1, 8)).astype(np.float32) for _ in range(4))
    x, codes, scales = np.full((1, 32), 2, np.float32), np.full((1, 4, 8, 4), 0x99, np.uint8), np.ones((1, 1, 8))
    product = _run(library, "Int4Product", {"x": x, "codes": codes, "scales": scales.astype(np.float32)}, 1, _SIZES)
    new = {"q": q[0], "k": k[0], "v": v[0], "past_k": past, "past_v": past, "last": np.zeros(1, np.int32)}
    cached = _run(library, "CachedAttention", new, 3, _HEADS)
    masked = _run(library, "MaskedAttention", {"q": q, "k": k, "v": v, "mask": np.ones((1, 1, 1, 1), bool)}, 1, _HEAD)
    expected = [np.full((1, 8), 64, np.float32), v[0], k, v, v]  # who sees one token says its value
    return all(np.allclose(a, b, atol=1e-4) for a, b in zip([*product, *cached, *masked], expected, strict=True))


_SIZES = {"K": 32, "N": 8, "block_size": 32}
_HEAD = {"scale": 1.0}
_HEADS = _HEAD | {"num_heads": 1, "kv_num_heads": 1, "local_window_size": -1}


def _run(
    library: str, kind: str, fed: Mapping[str, np.ndarray], num_outputs: int, told: Mapping[str, Any]
) -> list[Any]:
    names = [f"y{index}" for index in range(num_outputs)]
    node = helper.make_node(kind, list(fed), names, domain=DOMAIN, **told)
    inputs = [helper.make_tensor_value_info(name, _KINDS[str(a.dtype)], a.shape) for name, a in fed.items()]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    imports = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(helper.make_graph([node], kind, inputs, outputs), opset_imports=imports, ir_version=11)
    options = ort.SessionOptions()
    options.register_custom_ops_library(library)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(fed)))


if __name__ == "__main__":
    sys.exit(not works(sys.argv[1]))
