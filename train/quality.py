"""How much of the parent a child keeps, on text that no training saw.

Shapes: B windows of a batch, T tokens, V vocabulary, N windows.
"""

import math

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


@torch.no_grad()
def compare(child: PreTrainedModel, parent: PreTrainedModel, windows: Windows) -> Quality:
    """Compares a child with its parent, window by window."""
    columns: list[Tensor] = []
    for ids_BT in windows.ids_NT.split(_BATCH_WINDOWS):
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
    bits = 1 / math.log(2) / windows.bytes_per_token
    return Quality(
        kl=estimate_mean(kl_N),
        bits_per_byte=estimate_mean(child_N * bits),
        parent_bits_per_byte=estimate_mean(parent_N * bits),
        bits_per_byte_ratio=estimate_ratio(child_N, parent_N),
        agreement=estimate_mean(np.asarray(agreement_N)),
    )


def _nats(logits_BTV: Tensor, next_BT: Tensor) -> Tensor:
    return cross_entropy(logits_BTV.flatten(0, 1).float(), next_BT.flatten(), reduction="none").view_as(next_BT).mean(1)
