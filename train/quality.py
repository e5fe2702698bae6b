"""How much of the parent a child keeps, on text that no training saw.

Shapes: B windows of a batch, T tokens, V vocabulary, N windows.
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
from blockwright.train.windows import Windows

_BATCH_WINDOWS = 8


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
    """Compares a child with its parent, window by window."""
    columns: list[Tensor] = []
    for ids_BT in windows.ids_NT.to(child.device).split(_BATCH_WINDOWS):
        child_BTV = child(ids_BT, use_cache=False).logits[:, :-1]
        parent_BTV = parent(ids_BT, use_cache=False).logits[:, :-1]
        next_BT = ids_BT[:, 1:]
        columns.append(
            torch.stack(
                [
                    kl_divergence(parent_BTV, child_BTV).mean(dim=1),
                    _nats(child_BTV, next_BT),
                    _nats(parent_BTV, next_BT),
                    (child_BTV.argmax(-1) == parent_BTV.argmax(-1)).float().mean(dim=1),
                ]
            )
        )
    kl_N, child_N, parent_N, agreement_N = torch.cat(columns, dim=1).double().cpu().numpy()
    return PerWindow(kl_N=kl_N, child_nats_N=child_N, parent_nats_N=parent_N, agreement_N=agreement_N)


def _nats(logits_BTV: Tensor, next_BT: Tensor) -> Tensor:
    return cross_entropy(logits_BTV.flatten(0, 1).float(), next_BT.flatten(), reduction="none").view_as(next_BT).mean(1)
