"""Replace-one-block scores, against a whole model with the one block swapped."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from blockwright.model.child import layer_with, part_weights
from blockwright.model.parent import spec_of
from blockwright.search.scoring import replace_one_kl
from blockwright.spec import Candidate, GatedFFN, LinearFFN, LinearMixer, Model, NoOp, Part, Variant

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


@dataclass(frozen=True)
class Case:
    model: PreTrainedModel
    spec: Model
    ids_BT: Tensor


@pytest.fixture(params=["llama", "mistral", "qwen2", "qwen3"])
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    match request.param:
        case "llama":
            model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**SIZES))
        case "mistral":
            model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8))
        case "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
        case _:
            model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16))
    return Case(model=model.eval(), spec=spec_of(model.config), ids_BT=torch.randint(0, 40, (3, 20)))


def _layers(case: Case) -> dict[Candidate, torch.nn.Module]:
    """A narrower ffn, one matrix for each part, and nothing for each part, in every layer."""
    layers: dict[Candidate, torch.nn.Module] = {}
    for index in range(3):
        own = case.model.model.layers[index]
        narrow = {f"mlp.{name}_proj.weight": getattr(own.mlp, f"{name}_proj").weight[:16] for name in ("gate", "up")}
        narrow |= {"mlp.down_proj.weight": own.mlp.down_proj.weight[:, :16].contiguous()}
        ffn_norm = {"post_attention_layernorm.weight": own.post_attention_layernorm.weight}
        mixer_norm = {"input_layernorm.weight": own.input_layernorm.weight}
        matrix = 0.3 * torch.randn(32, 32)
        linear = {"self_attn.linear_attn.weight": matrix}
        if case.spec.has_qkv_bias:
            linear["self_attn.linear_attn.bias"] = torch.randn(32)
        offered: list[tuple[Part, Variant, dict[str, Tensor]]] = [
            ("ffn", GatedFFN(width=16), narrow | ffn_norm),
            ("ffn", LinearFFN(), {"mlp.linear_mlp.weight": matrix} | ffn_norm),
            ("ffn", NoOp(), {}),
            ("mixer", LinearMixer(), linear | mixer_norm),
            ("mixer", NoOp(), {}),
        ]
        for part, variant, weights in offered:
            candidate = Candidate(layer=index, part=part, variant=variant)
            layers[candidate] = layer_with(case.model, case.spec, candidate, weights)
    return layers


@torch.no_grad()
def _kl_of_whole_model(case: Case, index: int, layer: torch.nn.Module) -> list[float]:
    swapped = copy.deepcopy(case.model)
    swapped.model.layers[index] = layer
    p_BTV = case.model(case.ids_BT, use_cache=False).logits.double().softmax(-1)
    q_BTV = swapped(case.ids_BT, use_cache=False).logits.double().softmax(-1)
    kl_B = []
    for p_TV, q_TV in zip(p_BTV, q_BTV, strict=True):
        kl_T = [
            sum(p * (p / q).log() for p, q in zip(p_V, q_V, strict=True)) for p_V, q_V in zip(p_TV, q_TV, strict=True)
        ]
        kl_B.append(float(sum(kl_T)) / len(kl_T))
    return kl_B


def test_a_score_is_the_divergence_of_a_whole_model_with_one_block_swapped(case: Case) -> None:
    layers = _layers(case)
    scores = replace_one_kl(case.model, layers, case.ids_BT)
    assert list(scores) == list(layers)
    for candidate, kl_B in scores.items():
        assert kl_B.tolist() == pytest.approx(_kl_of_whole_model(case, candidate.layer, layers[candidate]), rel=1e-5)
        assert (kl_B > 1e-4).all()


@pytest.mark.parametrize("part", ["mixer", "ffn"])
def test_the_parents_own_part_loses_nothing(case: Case, part: Part) -> None:
    for index, block in enumerate(case.spec.layers):
        candidate = Candidate(layer=index, part=part, variant=getattr(block, part))
        own = part_weights(case.model.model.layers[index], part)
        layer = layer_with(case.model, case.spec, candidate, own)
        assert replace_one_kl(case.model, {candidate: layer}, case.ids_BT)[candidate].tolist() == [0.0, 0.0, 0.0]


def test_progress_is_told_after_every_candidate(case: Case) -> None:
    layers = _layers(case)
    calls: list[None] = []
    replace_one_kl(case.model, layers, case.ids_BT[:1, :4], on_candidate=lambda: calls.append(None))
    assert len(calls) == len(layers)
