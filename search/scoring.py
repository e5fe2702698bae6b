"""Replace-one-block scores: what the whole parent loses when one candidate stands in one of its layers.

The score of a candidate is how much worse the parent is with that candidate (Puzzle, section 4.2), by any number of
metrics from the same pass. What is the same for many candidates is computed once per batch: the state that enters each
layer, the state between its mixer and its ffn, and what the metrics need of the parent. So a mixer costs its layer and
those after it, an ffn half a layer less. Candidates of one layer go through the layers after it side by side. What the
states that enter and leave a layer tell of the layer itself, its influence, comes along.

Shapes: B windows of a batch, T tokens, D hidden size.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from blockwright.model.divergence import kl_divergence
from blockwright.model.walk import Walk
from blockwright.search.metrics import JudgeOf, head_of
from blockwright.spec import Candidate

TOKENS_AT_ONCE = 4096
"""Tokens that go through the layers at once, those of several candidates together. Measured with the demo's parent on
two cores of a Zen 3, per candidate and 512 tokens: 19.0 ms one by one, 17.1 at 2,048 tokens, 16.1 at 4,096, 18.1 at
8,192; batches of 2,048 tokens gain nothing."""


@torch.no_grad()
def replace_one(
    model: PreTrainedModel,
    layers: Mapping[Candidate, nn.Module],
    ids_BT: Tensor,
    judge_of: JudgeOf,
    on_candidate: Callable[[], None] = lambda: None,
    on_states: Callable[[Sequence[Tensor]], None] = lambda states: None,
) -> dict[Candidate, dict[str, Tensor]]:
    """What each candidate loses on each window of a batch.

    Args:
        model: the parent.
        layers: for every candidate the parent's layer with it in place.
        ids_BT: token windows, on the model's device.
        judge_of: makes what judges the states that leave the last layer.
        on_candidate: called after each candidate.
        on_states: called with the parent's states x_BTD: what enters each layer, then what leaves the last.

    Returns:
        For each candidate, in the order of `layers`, what the judge says of it: by metric, a value per window.
    """
    walk = Walk(model)
    enter, middle = [walk.embed(ids_BT)], list[Tensor]()
    for index in range(len(walk.layers)):
        middle.append(walk.mix(index, enter[-1]))
        enter.append(walk.feed(index, middle[-1]))
    on_states(enter)
    judge = judge_of(head_of(model), enter[-1])
    values: dict[Candidate, dict[str, Tensor]] = {}
    for index, group in _groups(layers, max(1, TOKENS_AT_ONCE // ids_BT.numel())):
        states = [
            walk.layer(index, enter[index], layers[candidate])
            if candidate.part == "mixer"
            else walk.feed(index, middle[index], layers[candidate])
            for candidate in group
        ]
        x_GTD = torch.cat(states) if len(states) > 1 else states[0]
        for later in range(index + 1, len(walk.layers)):
            x_GTD = walk.layer(later, x_GTD)
        for candidate, x_BTD in zip(group, x_GTD.split(len(ids_BT)), strict=True):
            values[candidate] = judge(x_BTD)
            on_candidate()
    return {candidate: values[candidate] for candidate in layers}


def influence_of(states: Sequence[Tensor]) -> list[float]:
    """Of each layer, one less the cosine between the states that enter and leave it, summed over the tokens.

    Its mean is ShortGPT's block influence (arXiv 2403.03853).

    Args:
        states: x_BTD, what enters each layer, then what leaves the last.
    """
    pairs = ((before.double(), after.double()) for before, after in itertools.pairwise(states))
    return [(1 - cosine_similarity(before, after, dim=-1)).sum().item() for before, after in pairs]


@torch.no_grad()
def reference_kl(model: PreTrainedModel, candidate: Candidate, layer: nn.Module, ids_BT: Tensor) -> Tensor:
    """The plain twin of `replace_one` for ``kl``: runs the whole model with the candidate in place, kl_B."""
    parent_BTV = model(ids_BT, use_cache=False).logits
    with in_place(model, candidate, layer):
        child_BTV = model(ids_BT, use_cache=False).logits
    return kl_divergence(parent_BTV, child_BTV).mean(dim=1)


@contextlib.contextmanager
def in_place(model: PreTrainedModel, candidate: Candidate, layer: nn.Module) -> Iterator[None]:
    """Puts a layer into the model, and the model's own back afterwards."""
    layers: nn.ModuleList = model.model.layers
    own = layers[candidate.layer]
    layers[candidate.layer] = layer
    try:
        yield
    finally:
        layers[candidate.layer] = own


def _groups(layers: Mapping[Candidate, nn.Module], at_once: int) -> Iterator[tuple[int, list[Candidate]]]:
    """Candidates of one layer, at most so many together, with the layer."""
    by_layer: dict[int, list[Candidate]] = {}
    for candidate in layers:
        by_layer.setdefault(candidate.layer, []).append(candidate)
    for index, group in by_layer.items():
        for start in range(0, len(group), at_once):
            yield index, group[start : start + at_once]
