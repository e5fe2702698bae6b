"""Muon: momentum whose direction is made orthogonal (Jordan et al. 2024; scale of Liu et al., arXiv 2502.16982).

For a matrix parameter W with gradient G, momentum b and learning rate η:

    M ← b·M + G,    U = G + b·M (Nesterov),    W ← (1 − η·λ)·W − η · 0.2·√max(rows, columns) · NS₅(U)

NS₅ is five steps of the quintic Newton-Schulz iteration X ← aX + (bA + cA²)X with A = XXᵀ, which
drives every singular value of X towards 1. The factor 0.2·√max(rows, columns) gives the update the
root mean square of an AdamW update, so learning rates carry over.

Of a matrix that ranks have shares of, each rank makes the whole direction and keeps its own share of it. Left out: low
precision, and spreading the iteration over ranks. Matrices of one shape are iterated together in fp32: on a CPU without
bf16 units this is more than ten times as fast as one at a time in bf16. Stacks are bounded, and with them what a step
takes beside gradients and momentum, however many matrices there are: see `workspace_bytes`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from blockwright.train.sharded import share_like, whole

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""Coefficients (a, b, c) of Jordan et al. 2024, tuned for slope at zero rather than for convergence."""
_STACK_NUMBERS = 2**24
"""Of the matrices that are iterated together, unless one alone has more: 64 MiB."""


def workspace_bytes(shapes: Iterable[tuple[int, int]]) -> int:
    """What a step takes beside weights, gradients and momentum, for matrices of these rows and columns.

    The iteration holds two arrays of a stack's size, X before and after, and two of its Gram matrices, A and bA + cA².
    """
    most = 0
    for (rows, columns), count in Counter(shapes).items():
        stack = min(count, _stack_matrices(rows, columns))
        most = max(most, 4 * stack * (2 * rows * columns + 2 * min(rows, columns) ** 2))
    return most


def orthogonalise(x_NRC: Tensor, steps: int = 5) -> Tensor:
    """Replaces the singular values of N matrices of R rows and C columns by values near 1 (0.7 to 1.2)."""
    a, b, c = NEWTON_SCHULZ
    x_NRC = x_NRC / (x_NRC.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    is_tall = x_NRC.size(-2) > x_NRC.size(-1)
    x = x_NRC.mT if is_tall else x_NRC
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        del gram  # before the next one is there
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
                size = _stack_matrices(rows, columns)
                for start in range(0, len(parameters), size):
                    self._step_stack(parameters[start : start + size], group)

    def _step_stack(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Updates matrices of one shape."""
        directions = orthogonalise(self._stacked(parameters, group["momentum"]))  # which nobody else keeps
        scale = -group["lr"] * 0.2 * max(parameters[0].shape) ** 0.5
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(share_like(direction, parameter), alpha=scale)

    def _stacked(self, parameters: list[nn.Parameter], momentum: float) -> Tensor:
        stack_NRC = torch.empty(len(parameters), *parameters[0].shape, device=parameters[0].device)
        for own, parameter in zip(stack_NRC, parameters, strict=True):
            own.copy_(whole(self._nesterov(parameter, momentum)))
        return stack_NRC

    def _nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].mul_(momentum).add_(gradient)
        return gradient.add(state["momentum"], alpha=momentum)


def _stack_matrices(rows: int, columns: int) -> int:
    """How many matrices are iterated together at most."""
    return max(1, _STACK_NUMBERS // (rows * columns))
