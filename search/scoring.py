"""Replace-one-block scores: what the whole parent loses when one candidate stands in one of its layers.

The score of a candidate is the mean KL(parent ‖ parent with that candidate) of next-token distributions
(Puzzle, section 4.2). The hidden state that enters each layer is computed once per batch and shared by all
candidates of that layer, so a candidate costs only the layers from its own on.

Shapes: B windows of a batch, T tokens, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.model.divergence import kl_divergence
from blockwright.model.walk import Walk
from blockwright.spec import Candidate


@torch.no_grad()
def replace_one_kl(
    model: PreTrainedModel,
    layers: Mapping[Candidate, nn.Module],
    ids_BT: Tensor,
    on_candidate: Callable[[], None] = lambda: None,
) -> dict[Candidate, Tensor]:
    """The KL divergence that each candidate causes on each window of a batch.

    Args:
        model: the parent.
        layers: for every candidate the parent's layer with it in place.
        ids_BT: token windows.
        on_candidate: called after each candidate.

    Returns:
        Nats per token and window, kl_B, for each candidate.
    """
    walk = Walk(model)
    states = [walk.embed(ids_BT)]
    for index in range(len(walk.layers)):
        states.append(walk.layer(index, states[-1]))
    parent_BTV = walk.logits(states[-1])
    kl: dict[Candidate, Tensor] = {}
    for candidate, layer in layers.items():
        x_BTD = walk.layer(candidate.layer, states[candidate.layer], layer)
        for later in range(candidate.layer + 1, len(walk.layers)):
            x_BTD = walk.layer(later, x_BTD)
        kl[candidate] = kl_divergence(parent_BTV, walk.logits(x_BTD)).mean(dim=1)
        on_candidate()
    return kl
