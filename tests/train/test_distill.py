"""Distillation brings the child to the parent, and goes on after a kill as if there had been none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from blockwright.errors import InputError
from blockwright.model.child import build_child, load_weights
from blockwright.spec import Attention, Block, GatedFFN, LinearMixer, Model, NoOp
from blockwright.train import state as state_module
from blockwright.train.distill import GkdSettings, GkdStep, distill
from blockwright.train.losses import KL_AND_COSINE
from blockwright.train.objective import Objective, objective_loss
from blockwright.train.windows import Batch

MakeParent = Callable[..., tuple[PreTrainedModel, Model]]
BATCHES = list(torch.randint(0, 64, (10, 4, 12), generator=torch.Generator().manual_seed(5)))
SETTINGS = GkdSettings(learning_rate=3e-3, checkpoint_steps=3)


@pytest.fixture
def make_pair(make_parent: MakeParent) -> Callable[..., tuple[PreTrainedModel, PreTrainedModel]]:
    """Builds a heterogeneous child with random weights, and its parent; the same ones every time."""

    def make(**changes: object) -> tuple[PreTrainedModel, PreTrainedModel]:
        parent, spec = make_parent(**changes)
        blocks = (
            Block(mixer=NoOp(), ffn=GatedFFN(width=16)),
            Block(mixer=Attention(num_kv_heads=1), ffn=NoOp()),
            Block(mixer=LinearMixer(), ffn=GatedFFN(width=48)),
        )
        child = build_child(replace(spec, layers=blocks), parent.config)
        generator = torch.Generator().manual_seed(1)
        weights = {
            name: torch.randn(tensor.shape, generator=generator) * 0.2 + (tensor.ndim == 1)
            for name, tensor in child.state_dict().items()
            if not (name == "lm_head.weight" and spec.has_tied_embeddings)
        }
        return load_weights(child, weights), parent

    return make


Pair = Callable[..., tuple[PreTrainedModel, PreTrainedModel]]


def _layer_outputs(model: PreTrainedModel, ids_BT: Tensor) -> tuple[Tensor, list[Tensor]]:
    outputs: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, output: outputs.append(output)) for layer in model.model.layers]
    logits_BTV = model(ids_BT, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits_BTV, outputs


def _kl_and_cosine(child: PreTrainedModel, parent: PreTrainedModel, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    counts = (ids_BT.numel(), 1)
    _, values = objective_loss(child, parent, Objective(losses=KL_AND_COSINE), Batch(ids_BT=ids_BT), counts)
    return values[0], values[1]


def test_the_loss_is_that_of_two_whole_forwards(make_pair: Pair) -> None:
    child, parent = make_pair()
    kl, cosine = _kl_and_cosine(child, parent, BATCHES[0])
    (child_BTV, mine), (parent_BTV, theirs) = (_layer_outputs(model, BATCHES[0]) for model in (child, parent))
    p_BTV, q_BTV = parent_BTV.double().softmax(-1), child_BTV.double().softmax(-1)
    assert kl.item() == pytest.approx((p_BTV * (p_BTV / q_BTV).log()).sum(-1).mean().item(), rel=1e-5)
    naive = sum((1 - cosine_similarity(x, y, dim=-1)).mean().item() for x, y in zip(mine, theirs, strict=True))
    assert cosine.item() == pytest.approx(naive, rel=1e-5)


def test_the_parent_is_no_distance_from_itself(make_parent: MakeParent) -> None:
    parent, _ = make_parent()
    kl, cosine = _kl_and_cosine(parent, parent, BATCHES[0])
    assert kl.item() == pytest.approx(0, abs=1e-6)
    assert cosine.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("is_tied", [False, True])
def test_distillation_lowers_both_losses_and_leaves_the_parent_alone(
    is_tied: bool, make_pair: Pair, tmp_path: Path
) -> None:
    child, parent = make_pair(tie_word_embeddings=is_tied)
    before = {name: tensor.clone() for name, tensor in parent.state_dict().items()}
    history = distill(child, parent, [BATCHES[0]] * 20, SETTINGS, tmp_path / "state.safetensors")
    assert [step.step for step in history] == list(range(20))
    assert history[-1].kl < 0.7 * history[0].kl
    assert history[-1].cosine < 0.9 * history[0].cosine
    assert not child.training
    assert (child.lm_head.weight is child.model.embed_tokens.weight) == is_tied
    assert all(torch.equal(tensor, before[name]) for name, tensor in parent.state_dict().items())


def _stop_at(step: int) -> Callable[[GkdStep], None]:
    def on_step(seen: GkdStep) -> None:
        if seen.step == step:
            raise KeyboardInterrupt

    return on_step


@pytest.mark.parametrize("killed_at", [1, 3, 7, 9])
@pytest.mark.parametrize("is_tied", [False, True])
def test_a_killed_distillation_ends_with_the_weights_of_one_that_was_not(
    killed_at: int, is_tied: bool, make_pair: Pair, tmp_path: Path
) -> None:
    whole, parent = make_pair(tie_word_embeddings=is_tied)
    history = distill(whole, parent, BATCHES, SETTINGS, tmp_path / "whole.safetensors")
    state = tmp_path / "state.safetensors"
    killed, _ = make_pair(tie_word_embeddings=is_tied)
    with pytest.raises(KeyboardInterrupt):
        distill(killed, parent, BATCHES, SETTINGS, state, on_step=_stop_at(killed_at))
    resumed, _ = make_pair(tie_word_embeddings=is_tied)
    steps: list[int] = []
    again = distill(resumed, parent, BATCHES, SETTINGS, state, on_step=lambda step: steps.append(step.step))
    assert steps == list(range(killed_at // 3 * 3, 10))
    assert again == history
    expected = whole.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.state_dict().items())


def test_a_kill_while_the_state_is_written_leaves_the_state_before(
    make_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parent = make_pair()
    history = distill(whole, parent, BATCHES, SETTINGS, tmp_path / "whole.safetensors")
    state = tmp_path / "run" / "state.safetensors"
    stream_tensors, num_saved = state_module.stream_tensors, 0

    def save_half(path: Path, *what: Any) -> None:
        nonlocal num_saved
        num_saved += 1
        stream_tensors(path, *what)
        if num_saved == 2:
            path.write_bytes(path.read_bytes()[:500])
            raise KeyboardInterrupt

    killed, _ = make_pair()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(state_module, "stream_tensors", save_half)
        distill(killed, parent, BATCHES, SETTINGS, state)
    assert [path.name for path in state.parent.iterdir()] == [state.name]
    resumed, _ = make_pair()
    assert distill(resumed, parent, BATCHES, SETTINGS, state) == history
    expected = whole.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.state_dict().items())


def test_a_loss_that_is_no_number_stops_with_advice(make_pair: Pair, tmp_path: Path) -> None:
    child, parent = make_pair()
    with torch.no_grad():
        child.model.norm.weight.fill_(float("inf"))
    with pytest.raises(InputError, match="Lower the learning rate"):
        distill(child, parent, BATCHES, SETTINGS, tmp_path / "state.safetensors")
