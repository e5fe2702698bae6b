"""First weights are what their formulas say, computed here one number at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from blockwright.model.child import build_child, layer_with, load_weights
from blockwright.model.walk import Walk
from blockwright.spec import Attention, Candidate, GatedFFN, LinearFFN, LinearMixer, Model, NoOp, with_candidate
from blockwright.train.initialise import ffn_weights, mixer_weights

MakeParent = Callable[..., tuple[PreTrainedModel, Model]]
PARENTS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"attention_bias": True}),
}
every_parent = pytest.mark.parametrize("kind", PARENTS)


@every_parent
@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_fewer_kv_heads_are_means_of_neighbouring_ones(kind: str, num_kv_heads: int, make_parent: MakeParent) -> None:
    family, changes = PARENTS[kind]
    model, parent = make_parent(family, num_key_value_heads=4, **changes)
    layer = model.model.layers[1].state_dict()
    weights = mixer_weights(parent, layer, Attention(num_kv_heads=num_kv_heads))
    merged = 4 // num_kv_heads
    for name, pooled in weights.items():
        if ".k_proj." not in name and ".v_proj." not in name:
            assert torch.equal(pooled, layer[name])
            continue
        assert len(pooled) == num_kv_heads * parent.head_dim
        for head in range(num_kv_heads):
            for row in range(parent.head_dim):
                rows = [layer[name][(head * merged + i) * parent.head_dim + row] for i in range(merged)]
                torch.testing.assert_close(pooled[head * parent.head_dim + row], sum(rows) / merged)
    assert weights.keys() == {name for name in layer if name.startswith(("self_attn.", "input_layernorm."))}


@torch.no_grad()
@every_parent
def test_pooling_heads_that_are_equal_changes_nothing(kind: str, make_parent: MakeParent) -> None:
    family, changes = PARENTS[kind]
    model, parent = make_parent(family, num_key_value_heads=4, **changes)
    for layer in model.model.layers:
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            for tensor in (projection.weight, projection.bias):
                if tensor is not None:
                    heads = tensor.unflatten(0, (2, 2, parent.head_dim))
                    heads[:, 1] = heads[:, 0]
    child, weights = parent, dict(model.state_dict())
    for index, layer in enumerate(model.model.layers):
        half = Attention(num_kv_heads=2)
        child = with_candidate(child, Candidate(layer=index, part="mixer", variant=half))
        pooled = mixer_weights(parent, layer.state_dict(), half)
        weights |= {f"model.layers.{index}.{name}": tensor for name, tensor in pooled.items()}
    ids_BT = torch.arange(20).view(2, 10)
    logits_BTV = load_weights(build_child(child, model.config), weights)(ids_BT).logits
    torch.testing.assert_close(logits_BTV, model(ids_BT).logits, atol=1e-4, rtol=1e-5)


@torch.no_grad()
@every_parent
def test_the_linear_mixer_is_attention_of_a_token_that_is_alone(kind: str, make_parent: MakeParent) -> None:
    family, changes = PARENTS[kind]
    model, parent = make_parent(family, **changes)
    walk = Walk(model)
    candidate = Candidate(layer=1, part="mixer", variant=LinearMixer())
    weights = mixer_weights(parent, model.model.layers[1].state_dict(), LinearMixer())
    layer = layer_with(model, parent, candidate, weights)
    x_BTD = torch.randn(5, 1, 32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(walk.layer(1, x_BTD, layer), walk.layer(1, x_BTD), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_linear_ffn_is_up_then_down_without_the_gate(has_bias: bool, make_parent: MakeParent) -> None:
    model, _ = make_parent("llama", mlp_bias=has_bias)
    own = model.model.layers[0]
    weights = ffn_weights(own.state_dict(), LinearFFN(), torch.zeros(48))
    x_ND = torch.randn(7, 32, generator=torch.Generator().manual_seed(3))
    y_ND = x_ND @ weights["mlp.linear_mlp.weight"].T + weights.get("mlp.linear_mlp.bias", torch.zeros(32))
    torch.testing.assert_close(y_ND, own.mlp.down_proj(own.mlp.up_proj(x_ND)))
    assert ("mlp.linear_mlp.bias" in weights) == has_bias


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_narrower_ffn_keeps_the_channels_that_contribute_most_in_their_order(
    has_bias: bool, make_parent: MakeParent
) -> None:
    model, _ = make_parent("llama", mlp_bias=has_bias)
    layer = model.model.layers[0].state_dict()
    contribution = torch.zeros(48)
    contribution[[40, 3, 17]] = torch.tensor([1.0, 3.0, 2.0])
    weights = ffn_weights(layer, GatedFFN(width=3), contribution)
    kept = [3, 17, 40]
    for name in ("gate_proj", "up_proj"):
        assert torch.equal(weights[f"mlp.{name}.weight"], layer[f"mlp.{name}.weight"][kept])
        if has_bias:
            assert torch.equal(weights[f"mlp.{name}.bias"], layer[f"mlp.{name}.bias"][kept])
    assert torch.equal(weights["mlp.down_proj.weight"], layer["mlp.down_proj.weight"][:, kept])
    assert len(weights) == (7 if has_bias else 4)


def test_the_full_width_is_the_parents_own_ffn(make_parent: MakeParent) -> None:
    model, _ = make_parent("llama", mlp_bias=True)
    layer = model.model.layers[0].state_dict()
    for name, tensor in ffn_weights(layer, GatedFFN(width=48), torch.rand(48)).items():
        assert torch.equal(tensor, layer[name])


def test_nothing_has_no_weights(make_parent: MakeParent) -> None:
    model, parent = make_parent()
    layer: dict[str, Tensor] = model.model.layers[0].state_dict()
    assert mixer_weights(parent, layer, NoOp()) == {}
    assert ffn_weights(layer, NoOp(), torch.zeros(48)) == {}
