"""Tiny random decoders of every family."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., PreTrainedConfig]:
    """Makes a configuration, with settings changed: `tiny_config("qwen3", tie_word_embeddings=True)`."""

    def make(family: str, **changes: object) -> PreTrainedConfig:
        settings: dict[str, object] = {
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,  # not hidden_size / num_attention_heads
            "max_position_embeddings": 64,
            "tie_word_embeddings": False,
            "architectures": [f"{family.capitalize()}ForCausalLM"],
            "bos_token_id": 0,
            "eos_token_id": None,
        }
        return AutoConfig.for_model(family, **settings | changes)

    return make


@pytest.fixture(scope="session")
def random_model() -> Callable[[PreTrainedConfig], PreTrainedModel]:
    """Builds a configuration's model with every parameter random: norms and biases are not left at 1 and 0."""

    def build(config: PreTrainedConfig) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.ndim == 1))
        return model.eval()

    return build


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the tiny decoders: 64 characters."""
    vocabulary = {chr(index + 64): index for index in range(64)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="@"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="@")
