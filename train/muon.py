"""Muon: momentum whose direction is made orthogonal (Jordan et al. 2024; scale of Liu et al., arXiv 2502.16982).

For a matrix parameter W with gradient G, momentum b and learning rate η:

    M ← b·M + G,    U = G + b·M (Nesterov),    W ← (1 − η·λ)·W − η · 0.2·√max(rows, columns) · NS₅(U)

NS₅ is five steps of the quintic Newton-Schulz iteration X ← aX + (bA + cA²)X with A = XXᵀ, which
drives every singular value of X towards 1. The factor 0.2·√max(rows, columns) gives the update the
root mean square of an AdamW update, so learning rates carry over.

Of a matrix that ranks have shares of, each rank makes the whole direction and keeps its own share of it. Left out: low
precision, and spreading the iteration over ranks. Matrices of one shape are iterated together in fp32: on a CPU without
bf16 units this is more than ten times as fast as one at a time in bf16.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from blockwright.train.sharded import share_like, whole

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""Coefficients (a, b, c) of Jordan et al. 2024, tuned for slope at zero rather than for convergence."""


def orthogonalise(x_NRC: Tensor, steps: int = 5) -> Tensor:
    """Replaces the singular values of N matrices of R rows and C columns by values near 1 (0.7 to 1.2)."""
    a, b, c = NEWTON_SCHULZ
    x_NRC = x_NRC / (x_NRC.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    is_tall = x_NRC.size(-2) > x_NRC.size(-1)
    x = x_NRC.mT if is_tall else x_NRC
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Muon for matrix parameters only; give embeddings, heads, norms and biases to AdamW.

    Args:
        params: parameters of exactly two dimensions.
        lr: learning rate η on AdamW's scale.
        momentum: b, in [0, 1).
        weight_decay: λ, decoupled.

    Raises:
        ValueError: a parameter is not a matrix.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices; got a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                gradients = [whole(self._nesterov(p, group["momentum"])) for p in parameters]
                directions = orthogonalise(torch.stack(gradients))
                scale = -group["lr"] * 0.2 * max(rows, columns) ** 0.5
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(share_like(direction, parameter), alpha=scale)

    def _nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].mul_(momentum).add_(gradient)
        return gradient.add(state["momentum"], alpha=momentum)
