"""How much of the parent a child keeps, on text that no training saw.

Shapes: B windows of a batch, T tokens, M tokens of a batch with a next one, C tokens of a chunk, D hidden size,
V vocabulary, N windows.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from blockwright.measured import Quality
from blockwright.model.divergence import kl_divergence
from blockwright.statistics import estimate_mean, estimate_ratio
from blockwright.train.chunked_kl import CHUNK_TOKENS
from blockwright.train.windows import Windows

JUDGED_WINDOWS = 8
"""Of a batch, whose states are there at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerWindow:
    """What a child and its parent make of each window; means over its tokens."""

    kl_N: np.ndarray
    child_nats_N: np.ndarray
    parent_nats_N: np.ndarray
    agreement_N: np.ndarray


def compare(child: PreTrainedModel, parent: PreTrainedModel, windows: Windows) -> Quality:
    """Compares a child with its parent; intervals are over documents."""
    found, documents_N = compare_windows(child, parent, windows), windows.document_N
    bits = 1 / math.log(2) / windows.bytes_per_token
    return Quality(
        kl=estimate_mean(found.kl_N, documents_N),
        bits_per_byte=estimate_mean(found.child_nats_N * bits, documents_N),
        parent_bits_per_byte=estimate_mean(found.parent_nats_N * bits, documents_N),
        bits_per_byte_ratio=estimate_ratio(found.child_nats_N, found.parent_nats_N, documents_N),
        agreement=estimate_mean(found.agreement_N, documents_N),
    )


@torch.no_grad()
def compare_windows(child: PreTrainedModel, parent: PreTrainedModel, windows: Windows) -> PerWindow:
    """Compares a child with its parent, window by window; logits are made for some tokens at a time."""
    columns: list[Tensor] = []
    for ids_BT in windows.ids_NT.to(child.device).split(JUDGED_WINDOWS):
        next_BT = ids_BT[:, 1:]
        h_MD, g_MD = (_states(model, ids_BT)[:, :-1].flatten(0, 1) for model in (child, parent))
        chunks = zip(*(x.split(CHUNK_TOKENS) for x in (h_MD, g_MD, next_BT.flatten())), strict=True)
        found = [_compare(child.lm_head(h_CD), parent.lm_head(g_CD), next_C) for h_CD, g_CD, next_C in chunks]
        columns.append(torch.cat(found, dim=1).unflatten(1, next_BT.shape).mean(dim=-1))
    kl_N, child_N, parent_N, agreement_N = torch.cat(columns, dim=1).double().cpu().numpy()
    return PerWindow(kl_N=kl_N, child_nats_N=child_N, parent_nats_N=parent_N, agreement_N=agreement_N)


def _states(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """What enters the head, h_BTD."""
    return model.model(ids_BT, use_cache=False).last_hidden_state


def _compare(child_CV: Tensor, parent_CV: Tensor, next_C: Tensor) -> Tensor:
    """KL, the child's nats, the parent's and agreement, token by token."""
    return torch.stack(
        [
            kl_divergence(parent_CV, child_CV),
            cross_entropy(child_CV.float(), next_C, reduction="none"),
            cross_entropy(parent_CV.float(), next_C, reduction="none"),
            (child_CV.argmax(-1) == parent_CV.argmax(-1)).float(),
        ]
    )
