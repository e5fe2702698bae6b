"""How far one next-token distribution is from another.

Shapes: … any leading dimensions, V vocabulary.
"""

from torch import Tensor


def kl_divergence(parent_V: Tensor, child_V: Tensor) -> Tensor:
    """KL(parent ‖ child) in nats for every position, from logits; summed over the vocabulary (Puzzle, section 4.2)."""
    log_p_V = parent_V.float().log_softmax(dim=-1)
    log_q_V = child_V.float().log_softmax(dim=-1)
    return (log_p_V.exp() * (log_p_V - log_q_V)).sum(dim=-1)
