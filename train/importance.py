"""What the parent's own states say about first weights: sums over tokens, and what follows from them exactly.

For an ffn with channels X (tokens, W) and output X·W_downᵀ:

    contribution    C_i = mean |X_i| · ‖W_down[:, i]‖₂                       (Puzzle, arXiv 2411.19146, appendix A)
    joint loss      E_R = mean ‖Σ_{i∈R} X_i W_down[:, i]‖² = Σ_{i,j∈R} M_ij,  M = (XᵀX / tokens) ∘ (W_downᵀ W_down)

C_i is the mean distance between the output with and without channel i alone; E_R is the mean squared distance without
all of a set R. Removing channel i after R adds M_ii + 2·Σ_{r∈R} M_ir, so that channels can be removed a few at a time,
those that are left being ranked again by what they would add to what is already lost. Channels that cancel each other
out, or that do the same, are told apart by this and not by C.

A KV head's share is that of the lengths of what the query heads that read it add to the attention's output.

A matrix in place of a part is the one with the least squared error on that part's inputs U and outputs A:

    W = AᵀU · (UᵀU + ridge · mean diagonal of UᵀU)⁻¹        with a column of ones where the matrix has a bias

and a narrower ffn's W_down may be fitted in the same way: K being the channels that are kept,
W_down · XᵀX[:, K] · (XᵀX[K, K] + ridge …)⁻¹. Only sums are kept, in float64, whatever the number of tokens.

Shapes: N tokens, D hidden size, W channels, H KV heads, U inputs of a matrix and its ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_ROUNDS = 64
"""In which an iterative ranking removes all channels: a few at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which sums are kept beside those of the contributions, which are small."""

    moments: bool = False
    """W by W: for the iterative ranking, and for fitting W_down again."""
    kv_shares: bool = False
    linear: bool = False


@dataclass(slots=True, kw_only=True)
class Fit:
    """Normal equations of a matrix; `sums` grow with every batch."""

    inputs_UU: Tensor | None = None
    outputs_UD: Tensor | None = None

    def add(self, inputs_ND: Tensor, outputs_ND: Tensor) -> None:
        """Takes in more tokens."""
        inputs_NU = nn.functional.pad(inputs_ND.double(), (0, 1), value=1.0)
        self.inputs_UU = _plus(self.inputs_UU, inputs_NU.T @ inputs_NU)
        self.outputs_UD = _plus(self.outputs_UD, inputs_NU.T @ outputs_ND.double())

    def solve(self, ridge: float, has_bias: bool) -> tuple[Tensor, Tensor | None]:
        """The matrix (outputs, inputs) and the bias, if it is to have one, with the least squared error."""
        assert self.inputs_UU is not None and self.outputs_UD is not None, "no tokens were seen"
        end = len(self.inputs_UU) - (0 if has_bias else 1)
        inputs_UU, outputs_UD = self.inputs_UU[:end, :end], self.outputs_UD[:end]
        penalty_U = torch.full((end,), ridge * self.inputs_UU.diagonal()[:-1].mean().item(), dtype=torch.float64)
        if has_bias:
            penalty_U[-1] = 0
        solved_UD = _solve(inputs_UU, penalty_U, outputs_UD)
        if not has_bias:
            return solved_UD.T, None
        return solved_UD[:-1].T, solved_UD[-1]


class LayerSums:
    """Sums over the tokens that one layer of the parent has seen; `watch` fills them."""

    def __init__(self, wanted: Wanted, num_kv_heads: int) -> None:
        self.wanted = wanted
        self.num_kv_heads = num_kv_heads
        self.num_tokens = 0
        self.sizes_W: Tensor | None = None
        self.moments_WW: Tensor | None = None
        self.lengths_H: Tensor | None = None
        self.mixer, self.ffn = Fit(), Fit()

    def add_channels(self, channels_NW: Tensor) -> None:
        """What enters the ffn's last matrix."""
        self.num_tokens += len(channels_NW)
        self.sizes_W = _plus(self.sizes_W, channels_NW.double().abs().sum(dim=0))
        if self.wanted.moments:
            channels_NW = channels_NW.double()
            self.moments_WW = _plus(self.moments_WW, channels_NW.T @ channels_NW)

    def add_heads(self, heads_NK: Tensor, output_DK: Tensor) -> None:
        """What enters the attention's last matrix, and that matrix."""
        parts = zip(heads_NK.chunk(self.num_kv_heads, dim=1), output_DK.chunk(self.num_kv_heads, dim=1), strict=True)
        lengths = [(heads @ output.T).double().norm(dim=1).sum() for heads, output in parts]
        self.lengths_H = _plus(self.lengths_H, torch.stack(lengths))

    def contribution(self, down_DW: Tensor) -> Tensor:
        """C of each channel."""
        assert self.sizes_W is not None, "no tokens were seen"
        return self.sizes_W / self.num_tokens * down_DW.double().norm(dim=0)

    def kv_shares(self) -> Tensor:
        """The share of each KV head in the attention's output."""
        assert self.lengths_H is not None, "no tokens were seen"
        return self.lengths_H / self.lengths_H.sum()


@contextmanager
def watch(layer: nn.Module, sums: LayerSums) -> Iterator[None]:
    """Adds to the sums whatever runs through a layer of the parent meanwhile."""
    attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
    output, down = attention.get_submodule("o_proj"), mlp.get_submodule("down_proj")
    output_DK = output.get_parameter("weight").detach()

    def on_mixer(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: tuple[Tensor, ...]) -> None:
        inputs = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        sums.mixer.add(_flat(inputs), _flat(result[0]))

    hooks = [down.register_forward_pre_hook(lambda _, inputs: sums.add_channels(_flat(inputs[0])))]
    if sums.wanted.kv_shares:
        hooks.append(output.register_forward_pre_hook(lambda _, inputs: sums.add_heads(_flat(inputs[0]), output_DK)))
    if sums.wanted.linear:
        hooks.append(attention.register_forward_hook(on_mixer, with_kwargs=True))
        hooks.append(mlp.register_forward_hook(lambda _, inputs, result: sums.ffn.add(_flat(inputs[0]), _flat(result))))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def joint_losses(moments_WW: Tensor, down_DW: Tensor, num_tokens: int) -> Tensor:
    """M: its sum over the rows and columns of a set of channels is the mean squared distance without them."""
    down_DW = down_DW.double()
    return moments_WW / num_tokens * (down_DW.T @ down_DW)


def iterative_ranking(joint_WW: Tensor, num_rounds: int = _ROUNDS) -> Tensor:
    """Ranks channels by removing a few at a time, those first that add least to what is already lost.

    Args:
        joint_WW: see `joint_losses`.
        num_rounds: in which all are removed, as evenly as can be.

    Returns:
        The place of each channel in the order of removal: of any number of channels to keep, those with the highest.
    """
    width = len(joint_WW)
    own_W, shared_W = joint_WW.diagonal(), torch.zeros_like(joint_WW[0])
    left_W, ranks_W = torch.ones_like(own_W, dtype=torch.bool), torch.empty_like(own_W)
    rounds = min(num_rounds, width)
    ends = [(width * (index + 1)) // rounds for index in range(rounds)]
    for start, end in zip([0, *ends], ends, strict=False):
        added_W = torch.where(left_W, own_W + 2 * shared_W, torch.inf)
        removed = added_W.argsort(stable=True)[: end - start]
        ranks_W[removed] = torch.arange(start, end, dtype=ranks_W.dtype, device=ranks_W.device)
        left_W[removed] = False
        shared_W = shared_W + joint_WW[:, removed].sum(dim=1)
    return ranks_W


def fitted_down(moments_WW: Tensor, down_DW: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """W_down of a narrower ffn, with which its output comes nearest to that of the whole one."""
    kept_KK, crossing_KW = moments_WW[kept][:, kept], moments_WW[kept]
    penalty_K = torch.full((len(kept),), ridge * kept_KK.diagonal().mean().item(), dtype=torch.float64)
    return _solve(kept_KK, penalty_K, crossing_KW @ down_DW.double().T).T


def _solve(matrix_UU: Tensor, penalty_U: Tensor, right_UD: Tensor) -> Tensor:
    factor, _ = torch.linalg.cholesky_ex(matrix_UU + penalty_U.to(matrix_UU.device).diag(), check_errors=True)
    return torch.cholesky_solve(right_UD, factor)


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total.add_(more)


def _flat(states: Tensor) -> Tensor:
    return states.detach().flatten(0, -2)
