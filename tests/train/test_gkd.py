"""What the settings of distillation change, and what they must not."""

from copy import deepcopy
from dataclasses import replace
from math import nan
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from blockwright.errors import InputError
from blockwright.model.divergence import kl_divergence
from blockwright.train.distill import GkdStep, best_of, distill
from blockwright.train.losses import kl_and_cosine, parse_losses
from blockwright.train.objective import Objective, counts_of, labels_of, objective_loss, parts_of
from blockwright.train.windows import Batch
from gkd import BATCHES, HELD_OUT, SEGMENTED, SETTINGS, Pair


def _gradients(pair: Pair, objective: Objective, batches: list[Batch], counts: tuple[int, int]) -> list[Tensor]:
    child, parent = pair()
    child.requires_grad_(True)
    for batch in batches:
        objective_loss(child, parent, objective, batch, counts)[0].backward()
    return [p.grad if p.grad is not None else torch.zeros_like(p) for p in child.parameters()]


def _nearly(found: list[Tensor], wanted: list[Tensor], bound: float) -> bool:
    return all((a - b).norm() <= bound * b.norm() + 1e-9 for a, b in zip(found, wanted, strict=True))


def test_labels_stay_within_documents_and_padding_does_not_count() -> None:
    labels_BT = labels_of(SEGMENTED)
    assert (labels_BT != -100).sum(1).tolist() == [11, 4 + 6, 3, 10]
    assert labels_BT[1, 3] == SEGMENTED.ids_BT[1, 4] and labels_BT[1, 4] == -100
    assert counts_of(SEGMENTED).tolist() == [12 + 12 + 4 + 12, 34]


def test_every_term_is_that_of_whole_forwards_of_the_layers_mapped(pair: Pair) -> None:
    child, parent = pair()
    batch, losses = BATCHES[0], parse_losses("kl+cosine+mse+lm")
    objective = Objective(losses=losses, layer_map=(0, 2))
    _, values = objective_loss(child, parent, objective, batch, (48, 44))
    outputs: list[Tensor] = []
    layers = [*child.model.layers, parent.model.layers[0], parent.model.layers[2]]
    hooks = [layer.register_forward_hook(lambda _, __, output: outputs.append(output)) for layer in layers]
    with torch.no_grad():
        child_BTV, parent_BTV = child(batch.ids_BT).logits, parent(batch.ids_BT).logits
    for hook in hooks:
        hook.remove()
    states = list(zip(outputs[:2], outputs[2:], strict=True))
    expected = {
        "kl": kl_divergence(parent_BTV, child_BTV).mean(),
        "lm": cross_entropy(child_BTV[:, :-1].flatten(0, 1), batch.ids_BT[:, 1:].flatten()),
        "cosine": sum((1 - cosine_similarity(x, y, dim=-1)).mean() for x, y in states),
        "mse": sum((x - y).square().mean() for x, y in states),
    }
    for name, value in zip(losses.names, values, strict=True):
        assert value.item() == pytest.approx(float(expected[name]), rel=1e-5), name


@pytest.mark.parametrize("batch", [BATCHES[0], SEGMENTED])
def test_parts_of_a_batch_add_up_to_its_gradient(batch: Batch, pair: Pair) -> None:
    objective = Objective(losses=parse_losses("kl+cosine+0.1*lm"))
    num_tokens, num_labels = counts_of(batch).tolist()
    whole = _gradients(pair, objective, [batch], (num_tokens, num_labels))
    for num_parts in (3, 4, 9):
        parts = _gradients(pair, objective, parts_of(batch, num_parts), (num_tokens, num_labels))
        assert _nearly(parts, whole, 1e-5)


def test_layers_run_again_give_the_same_gradient(pair: Pair) -> None:
    objective = Objective(losses=parse_losses("kl+cosine"))
    again = replace(objective, recomputes_activations=True)
    wanted = _gradients(pair, objective, [SEGMENTED], (40, 34))
    assert all(map(torch.equal, _gradients(pair, again, [SEGMENTED], (40, 34)), wanted))


def test_bf16_stays_near_fp32_with_gradients_in_fp32(pair: Pair) -> None:
    exact = _gradients(pair, Objective(losses=kl_and_cosine()), [BATCHES[0]], (48, 44))
    rounded = _gradients(pair, Objective(losses=kl_and_cosine(), precision="bf16"), [BATCHES[0]], (48, 44))
    assert all(gradient.dtype == torch.float32 for gradient in rounded)
    assert _nearly(rounded, exact, 0.1) and not _nearly(rounded, exact, 1e-5)


CHANGES = {
    "muon": replace(SETTINGS, optimizer="muon"),
    "linear": replace(SETTINGS, schedule="linear", parts=2),
    "early stop": replace(SETTINGS, eval_steps=2, patience=2),
    "reverse, hot": replace(SETTINGS, losses=parse_losses("reverse-kl+js+mse", temperature=2.0)),
    "recomputed bf16": replace(SETTINGS, recomputes_activations=True, precision="bf16", schedule="constant"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("killed_at", [2, 4, 7])
def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(
    name: str, killed_at: int, pair: Pair, tmp_path: Path
) -> None:
    settings = CHANGES[name]
    whole, parent = pair()
    history = distill(whole, parent, BATCHES, settings, tmp_path / "whole.safetensors", held_out=HELD_OUT)

    def kill(step: GkdStep) -> None:
        if step.step == killed_at:
            raise KeyboardInterrupt

    state = tmp_path / "run" / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        distill(pair()[0], parent, BATCHES, settings, state, on_step=kill, held_out=HELD_OUT)
    resumed, _ = pair()
    assert distill(resumed, parent, BATCHES, settings, state, held_out=HELD_OUT) == history
    expected = whole.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in resumed.state_dict().items())


def test_it_stops_when_the_held_out_kl_falls_no_more_and_leaves_the_best_child(pair: Pair, tmp_path: Path) -> None:
    child, parent = pair()
    settings = replace(SETTINGS, learning_rate=0.3, schedule="constant", eval_steps=1, patience=2)
    history = distill(child, parent, BATCHES, settings, tmp_path / "state.safetensors", held_out=HELD_OUT)
    best, kl = best_of(history)
    assert best is not None and len(history) == best + 3 < len(BATCHES)
    ids_BT = HELD_OUT[0].ids_BT
    with torch.no_grad():
        assert kl_divergence(parent(ids_BT).logits, child(ids_BT).logits).mean().item() == pytest.approx(kl, rel=1e-4)
    untrained, _ = pair()
    distill(untrained, parent, BATCHES[: best + 1], replace(settings, eval_steps=0, patience=0), tmp_path / "other")
    assert all(map(torch.equal, untrained.state_dict().values(), child.state_dict().values()))


def test_a_child_that_no_step_makes_better_is_left_as_it_was(pair: Pair, tmp_path: Path) -> None:
    _, parent = pair()
    child = deepcopy(parent)
    settings = replace(SETTINGS, learning_rate=0.3, schedule="constant", eval_steps=1, patience=2)
    history = distill(child, parent, BATCHES, settings, tmp_path / "state.safetensors", held_out=HELD_OUT)
    assert best_of(history)[0] == -1 and len(history) == 2
    assert best_of(history)[1] == history[0].initial_held_out_kl == pytest.approx(0.0, abs=1e-6)
    assert all(map(torch.equal, child.state_dict().values(), parent.state_dict().values()))


def test_a_loss_that_is_no_number_keeps_the_state_before_that_batch(pair: Pair, tmp_path: Path) -> None:
    child, parent = pair()
    state = tmp_path / "state.safetensors"

    def poison(step: GkdStep) -> None:
        if step.step == 4:
            parent.model.norm.weight.data.fill_(float("nan"))

    good, _ = pair()
    distill(good, parent, BATCHES[:5], replace(SETTINGS, schedule="constant"), tmp_path / "good")
    with pytest.raises(InputError, match=r"at batch 6 of 8.*last good state is kept in .*state\.safetensors"):
        distill(child, parent, BATCHES, replace(SETTINGS, schedule="constant"), state, on_step=poison)
    parent.model.norm.weight.data.fill_(1.0)
    kept, _ = pair()
    history = distill(kept, parent, BATCHES[:5], replace(SETTINGS, schedule="constant"), state)
    assert len(history) == 5
    assert all(map(torch.equal, kept.state_dict().values(), good.state_dict().values()))


def test_a_held_out_kl_that_is_no_number_ends_the_training_and_is_no_best_child(pair: Pair, tmp_path: Path) -> None:
    child, parent = pair()
    state, settings = tmp_path / "state.safetensors", replace(SETTINGS, eval_steps=1)

    def poison(_: GkdStep) -> None:
        child.model.norm.register_forward_hook(lambda *seen: None if torch.is_grad_enabled() else nan * seen[-1])

    with pytest.raises(InputError, match=r"a held-out KL of nan at batch 2 of 8"):
        distill(child, parent, BATCHES, settings, state, on_step=poison, held_out=HELD_OUT)


def test_a_broken_state_is_refused(pair: Pair, tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    state.write_bytes(b"no state")
    with pytest.raises(InputError, match="a whole state of training"):
        distill(*pair(), BATCHES, SETTINGS, state)


def test_the_lm_loss_passes_over_tokens_whose_next_is_anothers(pair: Pair) -> None:
    child, _ = pair()
    batch = Batch(ids_BT=SEGMENTED.ids_BT[1:2], segments_BT=torch.tensor([[1] * 5 + [2] * 7]))
    _, values = objective_loss(child, None, Objective(losses=parse_losses("lm")), batch, (12, 10))
    with torch.no_grad():
        alone = [child(ids_BT).logits[0, :-1] for ids_BT in (batch.ids_BT[:, :5], batch.ids_BT[:, 5:])]
    wanted = cross_entropy(torch.cat(alone), torch.cat([batch.ids_BT[0, 1:5], batch.ids_BT[0, 6:]]))
    assert values[0].item() == pytest.approx(wanted.item(), rel=1e-5)
