"""Tables of cosines and sines, against those of transformers."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from blockwright.compile.rotary import rotary_tables
from blockwright.spec import Rope

YARN = {"factor": 4.0, "original_max_position_embeddings": 64.0}
LLAMA3 = {"high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 64.0}

FREQUENCY_ERROR = 4 * 2**-24
"""Powers in fp32 by numpy and by torch, whose last digits hang on the processor; an angle has it times the position."""


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("head_dim", [16, 64])
@pytest.mark.parametrize(
    ("scaling", "parameters"),
    [
        ("default", {}),
        ("linear", {"factor": 4.0}),
        ("llama3", LLAMA3 | {"factor": 8.0}),
        ("yarn", YARN),
        ("yarn", YARN | {"factor": 1.0}),
        ("yarn", YARN | {"beta_fast": 16.0, "beta_slow": 2.0}),
        ("yarn", YARN | {"attention_factor": 0.6}),
        ("yarn", YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}),
        ("yarn", YARN | {"mscale": 1.0}),
        ("yarn", YARN | {"truncate": 0.0}),
    ],
)
def test_tables_are_those_of_transformers(
    scaling: str, parameters: dict[str, float], head_dim: int, theta: float
) -> None:
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=256,
        rope_parameters={"rope_type": scaling, "rope_theta": theta, **parameters},
    )
    rotary = LlamaRotaryEmbedding(config)
    cosines_1TD, sines_1TD = rotary(torch.zeros(1, 256, 4 * head_dim), torch.arange(256)[None])
    found = rotary_tables(Rope(theta=theta, scaling=scaling, parameters=tuple(parameters.items())), head_dim, 256)
    for ours, theirs in zip(found, (cosines_1TD, sines_1TD), strict=True):
        assert np.abs(ours - theirs[0, :, : head_dim // 2].numpy()).max() < 256 * FREQUENCY_ERROR
