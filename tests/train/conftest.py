"""A tiny random parent of any family, with its spec."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from blockwright.model.child import build_child, load_weights
from blockwright.model.parent import spec_of
from blockwright.spec import Model
from gkd import BLOCKS, MakeParent


@pytest.fixture(scope="session")
def make_parent() -> Callable[..., tuple[PreTrainedModel, Model]]:
    """Builds a parent whose norms and biases are random too: `make_parent("llama", mlp_bias=True)`."""

    def make(family: str = "llama", **changes: object) -> tuple[PreTrainedModel, Model]:
        settings: dict[str, object] = {
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "max_position_embeddings": 64,
            "tie_word_embeddings": False,
        }
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(family, **settings | changes), attn_implementation="sdpa"
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.ndim == 1))
        return model.eval().requires_grad_(False), spec_of(model.config)

    return make


@pytest.fixture
def pair(make_parent: MakeParent) -> Callable[[], tuple[PreTrainedModel, PreTrainedModel]]:
    """Builds a parent of three layers and a child of two, the same ones every time."""

    def make() -> tuple[PreTrainedModel, PreTrainedModel]:
        parent, spec = make_parent()
        child = build_child(replace(spec, layers=BLOCKS), parent.config)
        generator = torch.Generator().manual_seed(1)
        weights = {
            name: torch.randn(tensor.shape, generator=generator) * 0.2 + (tensor.ndim == 1)
            for name, tensor in child.state_dict().items()
        }
        return load_weights(child, weights), parent

    return make
