"""What is summed over text gives what naive measurements on all tokens at once give."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.errors import InputError
from blockwright.model.child import layer_with
from blockwright.model.walk import Walk
from blockwright.spec import Attention, Candidate, GatedFFN, LinearFFN, LinearMixer, Model, Variant
from blockwright.train.importance import Fit, LayerSums, Wanted, iterative_ranking, joint_losses, watch
from blockwright.train.initialise import InitSettings, Seen, conclude, ffn_weights, mixer_weights, seen_from

MakeParent = Callable[..., tuple[PreTrainedModel, Model]]
ALL = Wanted(moments=True, kv_shares=True, linear=True)
FITTED = InitSettings(channels="fitted", kv_heads="importance", linear="least-squares", ridge=1e-9)
BIASED = {"attention_bias": True, "mlp_bias": True}
X_NTD = torch.randn(12, 10, 32, generator=torch.Generator().manual_seed(8))


@torch.no_grad()
def _watched(model: PreTrainedModel, layer: int = 1, batches: int = 4, num_kv_heads: int = 2) -> LayerSums:
    sums, walk = LayerSums(ALL, num_kv_heads), Walk(model)
    with watch(model.model.layers[layer], sums):
        for x_BTD in X_NTD.chunk(batches):
            walk.feed(layer, walk.mix(layer, x_BTD))
    return sums


@torch.no_grad()
def _states(model: PreTrainedModel, layer: int = 1) -> dict[str, Tensor]:
    """What enters and leaves the parts of a layer, all tokens at once."""
    found: dict[str, Tensor] = {}
    own, walk = model.model.layers[layer], Walk(model)
    found["mixer_in"] = own.input_layernorm(X_NTD).flatten(0, 1)
    found["mixer_out"] = (walk.mix(layer, X_NTD) - X_NTD).flatten(0, 1)
    mid_ND = walk.mix(layer, X_NTD).flatten(0, 1)
    found["ffn_in"] = own.post_attention_layernorm(mid_ND)
    found["ffn_out"] = own.mlp(found["ffn_in"])
    found["channels"] = nn.functional.silu(own.mlp.gate_proj(found["ffn_in"])) * own.mlp.up_proj(found["ffn_in"])
    return found


def _without(model: PreTrainedModel, states: dict[str, Tensor], removed: Sequence[int], layer: int = 1) -> Tensor:
    """How far each token's ffn output is from the whole one's without some channels."""
    channels = states["channels"].clone()
    channels[:, list(removed)] = 0
    return (model.model.layers[layer].mlp.down_proj(channels) - states["ffn_out"]).double().norm(dim=1)


@torch.no_grad()
def test_a_contribution_is_the_distance_that_removing_the_channel_makes(make_parent: MakeParent) -> None:
    model, _ = make_parent(**BIASED)
    states = _states(model)
    found = _watched(model).contribution(model.model.layers[1].mlp.down_proj.weight)
    naive = torch.stack([_without(model, states, [channel]).mean() for channel in range(48)])
    torch.testing.assert_close(found, naive, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_joint_losses_are_the_squared_distances_that_removing_sets_makes(make_parent: MakeParent) -> None:
    model, _ = make_parent(**BIASED)
    states, sums = _states(model), _watched(model)
    assert sums.moments_WW is not None
    joint_WW = joint_losses(sums.moments_WW, model.model.layers[1].mlp.down_proj.weight, sums.num_tokens)
    for removed in [[3], [0, 47], [5, 6, 7, 30], list(range(48))]:
        naive = _without(model, states, removed).square().mean()
        torch.testing.assert_close(joint_WW[removed][:, removed].sum(), naive, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_removing_one_channel_at_a_time_is_what_measuring_every_next_one_removes(make_parent: MakeParent) -> None:
    model, _ = make_parent()
    states, sums = _states(model), _watched(model)
    assert sums.moments_WW is not None
    joint_WW = joint_losses(sums.moments_WW, model.model.layers[1].mlp.down_proj.weight, sums.num_tokens)
    ranks_W = iterative_ranking(joint_WW, num_rounds=48)
    removed: list[int] = []
    for place in range(12):
        left = [channel for channel in range(48) if channel not in removed]
        losses = [_without(model, states, [*removed, c]).square().mean().item() for c in left]
        removed.append(left[losses.index(min(losses))])
        assert ranks_W[removed[-1]] == place
    assert sorted(ranks_W.tolist()) == list(range(48))


def test_channels_that_cancel_each_other_out_lose_least_together() -> None:
    channels_NW = torch.randn(500, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    channels_NW[:, 1] = channels_NW[:, 0] * (1 + 1e-3)
    down_DW = torch.tensor([[3.0, -3.0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.1]], dtype=torch.float64)
    joint_WW = joint_losses(channels_NW.T @ channels_NW, down_DW, 500)
    best = min(combinations(range(4), 2), key=lambda pair: joint_WW[list(pair)][:, list(pair)].sum().item())
    assert best == (0, 1), "each by itself is the largest of all"
    sums = LayerSums(Wanted(), 1)
    sums.add_channels(channels_NW)
    assert sums.contribution(down_DW)[:2].min() > sums.contribution(down_DW)[2:].max()


def test_rounds_differ_from_one_at_a_time_only_within_a_round() -> None:
    factor = torch.randn(40, 60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    joint_WW = factor.T @ factor + torch.eye(60, dtype=torch.float64)
    first = iterative_ranking(joint_WW, num_rounds=6).argsort()[:10]
    assert set(first.tolist()) == set(joint_WW.diagonal().argsort()[:10].tolist())
    assert torch.equal(iterative_ranking(joint_WW, num_rounds=1).argsort(), joint_WW.diagonal().argsort())


@torch.no_grad()
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_a_kv_heads_share_is_what_zeroing_its_queries_takes_from_the_output(
    num_kv_heads: int, make_parent: MakeParent
) -> None:
    model, _ = make_parent(num_key_value_heads=num_kv_heads)
    shares_H = _watched(model, num_kv_heads=num_kv_heads).kv_shares()
    output = model.model.layers[1].self_attn.o_proj
    whole, weight = _states(model)["mixer_out"], output.weight.clone()
    lengths = []
    for head in range(num_kv_heads):
        columns = slice(head * 48 // num_kv_heads, (head + 1) * 48 // num_kv_heads)
        output.weight[:, columns] = 0
        lengths.append((_states(model)["mixer_out"] - whole).norm(dim=1).mean())
        output.weight.copy_(weight)
    torch.testing.assert_close(shares_H.float(), torch.stack(lengths) / sum(lengths), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, BIASED], ids=["no bias", "bias"])
@pytest.mark.parametrize("part", ["mixer", "ffn"])
def test_the_least_squares_matrix_is_that_of_all_rows_at_once(
    part: str, changes: dict[str, object], make_parent: MakeParent
) -> None:
    model, parent = make_parent(**changes)
    states = _states(model)
    seen = conclude(parent, model.model.layers[1].state_dict(), _watched(model), FITTED)
    weights = seen.linear_mixer if part == "mixer" else seen.linear_ffn
    assert weights is not None
    inputs = states[f"{part}_in"].double()
    if changes:
        inputs = nn.functional.pad(inputs, (0, 1), value=1.0)
    expected = torch.linalg.lstsq(inputs, states[f"{part}_out"].double()).solution.float()
    [weight] = [tensor for name, tensor in weights.items() if name.endswith("weight")]
    torch.testing.assert_close(weight, expected[:32].T, rtol=1e-3, atol=1e-4)
    if changes:
        [bias] = [tensor for name, tensor in weights.items() if name.endswith("bias")]
        torch.testing.assert_close(bias, expected[32], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_fitted_last_matrix_is_that_of_all_rows_at_once(make_parent: MakeParent) -> None:
    model, parent = make_parent(**BIASED)
    states, own = _states(model), model.model.layers[1].state_dict()
    seen = conclude(parent, own, _watched(model), FITTED, [16])
    kept = seen.ranking_W.topk(16).indices.sort().values
    target = states["channels"].double() @ own["mlp.down_proj.weight"].double().T
    expected = torch.linalg.lstsq(states["channels"][:, kept].double(), target).solution.T.float()
    found = ffn_weights(own, GatedFFN(width=16), seen, FITTED)
    torch.testing.assert_close(found["mlp.down_proj.weight"], expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(found["mlp.up_proj.weight"], own["mlp.up_proj.weight"][kept])


def test_ridge_pulls_towards_nothing_and_never_the_bias() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs, outputs = torch.randn(40, 6, generator=generator), torch.randn(40, 2, generator=generator) + 5
    fit = Fit()
    fit.add(inputs, outputs)
    near, far = fit.solve(1e-9, has_bias=True), fit.solve(0.999, has_bias=True)
    assert far[0].norm() < 0.7 * near[0].norm()
    assert far[1] is not None
    assert far[1].mean().item() == pytest.approx(5, abs=0.5)


def test_fewer_tokens_than_inputs_still_give_a_matrix() -> None:
    fit = Fit()
    fit.add(torch.randn(3, 8, generator=torch.Generator().manual_seed(4)), torch.ones(3, 2))
    weight, _ = fit.solve(1e-4, has_bias=False)
    assert weight.isfinite().all()


def test_batches_of_any_size_sum_up_to_the_same(make_parent: MakeParent) -> None:
    model, parent = make_parent(**BIASED)
    own = model.model.layers[1].state_dict()
    once, often = (conclude(parent, own, _watched(model, batches=n), FITTED, [16, 40]).tensors() for n in (1, 6))
    assert once.keys() == often.keys()
    for name, tensor in once.items():
        torch.testing.assert_close(often[name], tensor, rtol=1e-4, atol=1e-5)


def test_what_was_seen_comes_back_from_its_tensors(make_parent: MakeParent) -> None:
    model, parent = make_parent(**BIASED)
    tensors = conclude(parent, model.model.layers[1].state_dict(), _watched(model), FITTED, [16, 48]).tensors()
    again = seen_from(tensors).tensors()
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert seen_from({"ranking": torch.ones(3)}).tensors().keys() == {"ranking"}


@torch.no_grad()
@pytest.mark.parametrize(
    ("variant", "better", "worse"),
    [
        (LinearMixer(), {"linear": "least-squares"}, {"linear": "product"}),
        (LinearFFN(), {"linear": "least-squares"}, {"linear": "product"}),
        (GatedFFN(width=16), {"channels": "fitted"}, {"channels": "iterative"}),
    ],
)
def test_fitting_comes_nearer_on_the_text_that_it_saw(
    variant: Variant, better: dict[str, str], worse: dict[str, str], make_parent: MakeParent
) -> None:
    model, parent = make_parent()
    own, walk, sums = model.model.layers[1].state_dict(), Walk(model), _watched(model)
    part = "mixer" if isinstance(variant, LinearMixer) else "ffn"
    distances = []
    for changes in (better, worse):
        init = InitSettings(**changes)  # pyright: ignore[reportArgumentType]
        seen = conclude(parent, own, sums, init, [16])
        weights = (
            mixer_weights(parent, own, variant, seen, init)
            if isinstance(variant, LinearMixer)
            else ffn_weights(own, variant, seen, init)  # pyright: ignore[reportArgumentType]
        )
        layer: Any = layer_with(model, parent, Candidate(layer=1, part=part, variant=variant), weights)
        mid = walk.mix(1, X_NTD)
        whole = walk.feed(1, mid) if part == "ffn" else mid
        found = mid + layer.mlp(layer.post_attention_layernorm(mid))
        if part == "mixer":
            found = X_NTD + layer.self_attn(layer.input_layernorm(X_NTD))[0]
        distances.append((found - whole).square().sum().item())
    assert distances[0] < distances[1]


@pytest.mark.parametrize(("way", "head"), [("first", 0), ("importance", 1)])
def test_a_group_of_kv_heads_is_replaced_by_one_of_them(way: str, head: int, make_parent: MakeParent) -> None:
    model, parent = make_parent(num_key_value_heads=4, attention_bias=True)
    layer = model.model.layers[0].state_dict()
    seen = Seen(ranking_W=torch.zeros(48), kv_shares_H=torch.tensor([0.1, 0.5, 0.1, 0.3]))
    init = InitSettings(kv_heads=way)  # pyright: ignore[reportArgumentType]
    weights = mixer_weights(parent, layer, Attention(num_kv_heads=2), seen, init)
    for name in ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias"):
        heads = layer[f"self_attn.{name}"].unflatten(0, (4, parent.head_dim))
        assert torch.equal(weights[f"self_attn.{name}"], heads[[head, 2 + head]].flatten(0, 1))
    assert torch.equal(weights["self_attn.q_proj.weight"], layer["self_attn.q_proj.weight"])


def test_only_what_is_wanted_is_summed(make_parent: MakeParent) -> None:
    model, _ = make_parent()
    sums, walk = LayerSums(Wanted(), 2), Walk(model)
    with watch(model.model.layers[1], sums):
        walk.layer(1, X_NTD)
    walk.layer(1, X_NTD)  # no longer watched
    assert sums.num_tokens == X_NTD.shape[0] * X_NTD.shape[1]
    assert (sums.moments_WW, sums.lengths_H, sums.mixer.inputs_UU) == (None, None, None)


@pytest.mark.parametrize("changes", [{"channels": "best"}, {"kv_heads": "last"}, {"linear": ""}, {"ridge": 0.0}])
def test_an_unknown_way_to_begin_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match=rf"init\.{next(iter(changes))}"):
        InitSettings(**changes)  # pyright: ignore[reportArgumentType]
