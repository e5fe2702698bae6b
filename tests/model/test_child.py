"""A child computes what its spec says, alone and after a journey through a file."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedConfig, PreTrainedModel

from blockwright.errors import InputError
from blockwright.model.child import (
    build_child,
    layer_with,
    load_weights,
    part_weights,
)
from blockwright.model.parent import spec_of
from blockwright.model.walk import Walk
from blockwright.spec import Attention, Block, Candidate, Full, GatedFFN, LinearFFN, LinearMixer, Model, NoOp, Window
from children import (
    IDS_BT,
    PARENTS,
    SLIDING,
    Config,
    generate_greedily,
    heterogeneous,
    random_child,
    with_blocks,
    with_windows,
)

Build = Callable[[PreTrainedConfig], PreTrainedModel]
every_parent = pytest.mark.parametrize("kind", PARENTS)


@torch.no_grad()
@every_parent
def test_a_child_equal_to_its_parent_gives_its_logits_bit_for_bit(
    kind: str, tiny_config: Config, random_model: Build
) -> None:
    family, changes = PARENTS[kind]
    parent = random_model(tiny_config(family, **changes))
    child = load_weights(build_child(spec_of(parent.config), parent.config), parent.state_dict())
    assert torch.equal(child(IDS_BT).logits, parent(IDS_BT).logits)


@torch.no_grad()
@every_parent
def test_walking_through_the_layers_is_the_model_itself(kind: str, tiny_config: Config) -> None:
    family, changes = PARENTS[kind]
    config = tiny_config(family, **changes)
    for spec in (spec_of(config), heterogeneous(spec_of(config)), with_windows(spec_of(config))):
        child = random_child(spec, config)
        walk = Walk(child)
        x_BTD = y_BTD = walk.embed(IDS_BT)
        for layer in range(4):
            x_BTD = walk.layer(layer, x_BTD)
            y_BTD = walk.feed(layer, walk.mix(layer, y_BTD))
        assert torch.equal(walk.logits(x_BTD), child(IDS_BT).logits)
        assert torch.equal(y_BTD, x_BTD)


@torch.no_grad()
@every_parent
@pytest.mark.parametrize("make", [heterogeneous, with_windows])
def test_documents_packed_into_a_window_are_to_a_child_as_each_alone(
    make: Callable[[Model], Model], kind: str, tiny_config: Config
) -> None:
    family, changes = PARENTS[kind]
    config = tiny_config(family, **changes)
    child = random_child(make(spec_of(config)), config)
    walk = Walk(child, torch.tensor([[0] * 4 + [1] * 5, [0] * 9]))
    x_BTD = walk.embed(IDS_BT)
    for layer in range(4):
        x_BTD = walk.layer(layer, x_BTD)
    packed = walk.logits(x_BTD)
    for row, part in ((0, slice(0, 4)), (0, slice(4, 9)), (1, slice(0, 9))):
        alone = child(IDS_BT[row : row + 1, part], use_cache=False).logits[0]
        torch.testing.assert_close(packed[row, part], alone, atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_generation_with_and_without_cache_agrees_for_any_child(data: st.DataObject, tiny_config: Config) -> None:
    family, changes = PARENTS[data.draw(st.sampled_from(sorted(PARENTS)))]
    config = tiny_config(family, **changes)
    mixers = st.sampled_from([Attention(num_kv_heads=heads) for heads in (1, 2, 4)] + [LinearMixer(), NoOp()])
    ffns = st.sampled_from([GatedFFN(width=width) for width in (1, 20, 48)] + [LinearFFN(), NoOp()])
    blocks = [Block(mixer=data.draw(mixers), ffn=data.draw(ffns)) for _ in range(4)]
    child = random_child(with_blocks(spec_of(config), *blocks), config)
    cached = generate_greedily(child, IDS_BT, use_cache=True)
    assert cached.shape == (2, 17)
    assert torch.equal(cached, generate_greedily(child, IDS_BT, use_cache=False))


@torch.no_grad()
@every_parent
@pytest.mark.parametrize("make", [heterogeneous, with_windows])
def test_cached_logits_are_those_of_a_whole_forward_at_every_step(
    make: Callable[[Model], Model], kind: str, tiny_config: Config
) -> None:
    family, changes = PARENTS[kind]
    config = tiny_config(family, **changes)
    child = random_child(make(spec_of(config)), config)
    whole_BTV = child(IDS_BT, use_cache=False).logits
    out = child(IDS_BT[:, :5], use_cache=True)
    steps = [out.logits]
    for position in range(5, 9):
        out = child(IDS_BT[:, position : position + 1], use_cache=True, past_key_values=out.past_key_values)
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole_BTV, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@every_parent
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_layer_with_a_window_of_its_own_sees_no_further(implementation: str, kind: str, tiny_config: Config) -> None:
    family, changes = PARENTS[kind]
    config = tiny_config(family, **changes)
    child = random_child(with_windows(spec_of(config)), config)
    child.set_attn_implementation(implementation)
    naive_BTV = child(IDS_BT, use_cache=False).logits.clone()
    for position in range(9):  # two layers reach 2 and 1 tokens back, so no more than 3 in all
        near = max(0, position - 3)
        changed = IDS_BT.clone()
        changed[:, :near] = 1 + (changed[:, :near] + 7) % 63
        logits_BTV = child(changed, use_cache=False).logits
        assert torch.equal(logits_BTV[:, position], naive_BTV[:, position])
        if near:
            changed[:, near] = 1 + (changed[:, near] + 7) % 63
            assert not torch.equal(child(changed, use_cache=False).logits[:, position], naive_BTV[:, position])


@torch.no_grad()
@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_windows_of_ones_own_are_those_of_transformers(family: str, tiny_config: Config, random_model: Build) -> None:
    sliding = {"mistral": {}, "qwen2": SLIDING, "qwen3": SLIDING}[family] | {
        "sliding_window": 4,
        "max_window_layers": 0,
    }
    parent = random_model(tiny_config(family, **sliding))
    whole = tiny_config(family, sliding_window=None)
    child = load_weights(build_child(spec_of(parent.config), whole), parent.state_dict())
    torch.testing.assert_close(child(IDS_BT).logits, parent(IDS_BT).logits, atol=1e-5, rtol=1e-5)
    windows = [block.attention.get("window_length") for block in child.config.block_configs]
    assert windows == [4] * 4


def test_a_candidate_with_a_window_runs_in_the_parents_place(tiny_config: Config, random_model: Build) -> None:
    parent = random_model(tiny_config("llama"))
    spec, own = spec_of(parent.config), parent.model.layers[1]
    for num_tokens, is_same in ((8, False), (9, True)):
        near = Attention(num_kv_heads=2, reach=Window(num_tokens=num_tokens))
        candidate = Candidate(layer=1, part="mixer", variant=near)
        layer = layer_with(parent, spec, candidate, part_weights(own, "mixer"))
        walk = Walk(parent)
        x_BTD = walk.embed(IDS_BT)
        assert torch.allclose(walk.layer(1, x_BTD, layer), walk.layer(1, x_BTD), atol=1e-6) == is_same


def test_no_layer_may_see_further_than_the_parents(tiny_config: Config) -> None:
    config = tiny_config("mistral", sliding_window=4)
    spec = spec_of(config)
    for reach in (Full(), Window(num_tokens=5)):
        wider = Block(mixer=Attention(num_kv_heads=2, reach=reach), ffn=spec.layers[1].ffn)
        with pytest.raises(InputError, match="layer 1"):
            build_child(replace(spec, layers=(spec.layers[0], wider, *spec.layers[2:])), config)


def test_attention_that_cannot_be_narrowed_is_refused(tiny_config: Config) -> None:
    config = tiny_config("llama")
    child = random_child(with_windows(spec_of(config)), config)
    child.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="sdpa or eager"):
        child.model.layers[1].self_attn(hidden_states=torch.zeros(1, 2, 32), attention_mask=None)


@every_parent
@pytest.mark.parametrize("make", [heterogeneous, with_windows])
def test_a_prompt_padded_on_the_left_goes_on_as_it_does_alone(
    make: Callable[[Model], Model], kind: str, tiny_config: Config
) -> None:
    family, changes = PARENTS[kind]
    config = tiny_config(family, **changes)
    child = random_child(make(spec_of(config)), config)
    mask_BT = torch.ones_like(IDS_BT)
    mask_BT[0, :3] = 0
    padded = child.generate(  # pyright: ignore[reportCallIssue]
        IDS_BT, attention_mask=mask_BT, max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    assert torch.equal(padded[:1, 3:], generate_greedily(child, IDS_BT[:1, 3:], use_cache=True))
    assert torch.equal(padded[1:], generate_greedily(child, IDS_BT[1:], use_cache=True))


def test_a_layer_with_a_candidate_shares_all_else_with_the_parent(tiny_config: Config, random_model: Build) -> None:
    parent = random_model(tiny_config("llama"))
    spec = spec_of(parent.config)
    candidate = Candidate(layer=1, part="mixer", variant=LinearMixer())
    matrix = torch.randn(32, 32)
    own = parent.model.layers[1]
    weights = {"self_attn.linear_attn.weight": matrix, "input_layernorm.weight": torch.ones(32)}
    layer = layer_with(parent, spec, candidate, weights)
    assert {name: tensor.tolist() for name, tensor in part_weights(layer, "mixer").items()} == {
        name: tensor.tolist() for name, tensor in weights.items()
    }
    assert layer.mlp is own.mlp
    assert layer.post_attention_layernorm is own.post_attention_layernorm
    assert layer.input_layernorm is not own.input_layernorm
