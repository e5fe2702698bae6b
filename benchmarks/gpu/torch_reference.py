"""What engines are held against on a GPU: transformers in fp16, with weights rounded as the engine has them."""

import numpy as np
import torch
from transformers import PreTrainedModel

from blockwright.compile.blocked import rounded
from blockwright.model.child import build_child, load_weights
from blockwright.profiler.torch_blocks import hf_config
from blockwright.spec import Model, NoOp


def reference_of(model: Model, weights: dict[str, np.ndarray]) -> PreTrainedModel:
    """The model in torch, in fp16, with the matrices of its layers rounded to their format."""
    given: dict[str, torch.Tensor] = {}
    for name, array in weights.items():
        if name.startswith("model.layers.") and array.ndim == 2:
            block = model.layers[int(name.split(".")[2])]
            part = block.ffn if ".mlp." in name else block.mixer
            assert not isinstance(part, NoOp), "it has no matrices"
            array = rounded(array.T, part.weights).T
        given[name] = torch.from_numpy(np.ascontiguousarray(array))
    child = load_weights(build_child(model, hf_config(model)), given)
    for parameter in child.parameters():  # buffers stay: angles of rotations are none in fp16
        parameter.data = parameter.data.half()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return child.eval().to(device)  # pyright: ignore[reportArgumentType]
