"""What our Triton kernels compute, written out naively: tests compare with these, and CPUs take them.

Shapes: B batch, H query heads, J KV heads, T queries, S slots, D channels of a head; M rows, K inputs, N outputs, G
groups.
"""

import torch
from torch import Tensor

from blockwright.compile.planar import ZERO


def int4_weight(codes_NK: Tensor, scales_NG: Tensor) -> Tensor:
    """The matrix_NK in fp32 that planar codes and scales stand for."""
    num_outputs, num_groups = scales_NG.shape
    halves = codes_NK.view(torch.uint8).reshape(num_outputs, num_groups, -1)
    codes_NGS = torch.cat([halves & 15, halves >> 4], dim=2).float() - ZERO
    return (codes_NGS * scales_NG.float()[:, :, None]).reshape(num_outputs, -1)


def int4_linear_twin(x_MK: Tensor, codes_NK: Tensor, scales_NG: Tensor) -> Tensor:
    """The product in fp32, rounded once."""
    return (x_MK.float() @ int4_weight(codes_NK, scales_NG).T).to(x_MK.dtype)


def sparse_decode_twin(q_BHD: Tensor, k_BJSD: Tensor, v_BJSD: Tensor, counts_B: Tensor, scale: float) -> Tensor:
    """One query per sequence over the first `counts` slots; 0 where there is none."""
    slots = torch.arange(k_BJSD.shape[2], device=k_BJSD.device)
    is_seen_BTS = (slots < counts_B[:, None])[:, None]
    return _attention(q_BHD[:, :, None], k_BJSD, v_BJSD, is_seen_BTS, scale)[:, :, 0]


def sparse_prefill_twin(
    q_BHTD: Tensor,
    k_BJSD: Tensor,
    v_BJSD: Tensor,
    far: tuple[Tensor, Tensor],
    starts_B: Tensor,
    num_neighbours: int,
    scale: float,
) -> Tensor:
    """Queries from `starts` on; `far` as `far_tokens` gives it."""
    _, far_before = far
    is_far_BS = far_before[:, 1:] > far_before[:, :-1]
    positions_BT = starts_B[:, None] + torch.arange(q_BHTD.shape[2], device=q_BHTD.device)
    is_seen_BTS = sparse_mask(positions_BT, is_far_BS, num_neighbours)
    return _attention(q_BHTD, k_BJSD, v_BJSD, is_seen_BTS, scale)


def sparse_mask(positions_BT: Tensor, is_far_BS: Tensor, num_neighbours: int) -> Tensor:
    """Which slots tokens see, mask_BTS: causal, and initial tokens, separators or the nearest, itself included.

    Args:
        positions_BT: of the tokens; a slot's position is its number.
        is_far_BS: whether a slot holds an initial token or a separator, which is seen from afar.
        num_neighbours: how many of the nearest are seen.
    """
    slots = torch.arange(is_far_BS.shape[1], device=is_far_BS.device)
    position = positions_BT[:, :, None]
    return (slots <= position) & (is_far_BS[:, None] | (slots > position - num_neighbours))


def far_tokens(is_far_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Initial tokens and separators as the prefill kernel takes them.

    Returns:
        far_BF, their positions, ascending, filled up with any; and far_before of shape (B, S + 1), how many stand
        before.
    """
    far_before = torch.nn.functional.pad(is_far_BS.int().cumsum(dim=1), (1, 0)).int()
    most = int(far_before[:, -1].max()) if far_before.numel() else 0
    order = torch.argsort((~is_far_BS).int(), dim=1, stable=True)
    return order[:, : max(most, 1)].int().contiguous(), far_before


def _attention(q_BHTD: Tensor, k_BJSD: Tensor, v_BJSD: Tensor, is_seen_BTS: Tensor, scale: float) -> Tensor:
    repeats = q_BHTD.shape[1] // k_BJSD.shape[1]
    k_BHSD, v_BHSD = (each.float().repeat_interleave(repeats, dim=1) for each in (k_BJSD, v_BJSD))
    scores = q_BHTD.float() @ k_BHSD.transpose(2, 3) * scale
    weights = scores.masked_fill(~is_seen_BTS[:, None], float("-inf")).softmax(dim=-1).nan_to_num(0.0)
    return (weights @ v_BHSD).to(q_BHTD.dtype)
