"""The optimisers of a whole child."""

from typing import Literal

import torch
from torch.optim import Optimizer
from transformers import PreTrainedModel

from blockwright.train.muon import Muon

OptimizerName = Literal["adamw", "muon"]


def make_optimizers(name: OptimizerName, model: PreTrainedModel, learning_rate: float) -> list[Optimizer]:
    """AdamW for all, or Muon for the layers' matrices and AdamW for the rest; on one scale of learning rates."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2] if name == "muon" else []
    taken = set(matrices)
    rest = [parameter for parameter in model.parameters() if parameter not in taken]
    adamw = torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [adamw, *([Muon(matrices, lr=learning_rate)] if matrices else [])]
