"""KL divergence from hidden states, without ever holding all logits.

For hidden states h (child) and g (parent), heads W and U, z = hWᵀ, p = softmax(gUᵀ), q = softmax(z):

    loss = 1/N Σ_n Σ_v p log (p / q),    ∂loss/∂z = (q − p) / N

so the gradient of a chunk of tokens is known as soon as its loss is, and its logits can go. The memory is that
of a few chunks of logits, whatever the number of tokens; the result is that of the naive computation.

Shapes: N tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from blockwright.model.divergence import kl_divergence

CHUNK_TOKENS = 1024


class _ChunkedKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, w_VD: Tensor, g_ND: Tensor, u_VD: Tensor, chunk: int) -> Tensor:
        num_tokens = h_ND.shape[0]
        loss = torch.zeros((), dtype=torch.float32, device=h_ND.device)
        grad_h_ND = torch.empty_like(h_ND)
        grad_w_VD = torch.zeros_like(w_VD, dtype=torch.float32)
        for start in range(0, num_tokens, chunk):
            h_CD, g_CD = h_ND[start : start + chunk], g_ND[start : start + chunk]
            log_q_CV = (h_CD @ w_VD.T).float().log_softmax(dim=-1)
            log_p_CV = (g_CD @ u_VD.T).float().log_softmax(dim=-1)
            p_CV = log_p_CV.exp()
            loss += (p_CV * (log_p_CV - log_q_CV)).sum() / num_tokens
            grad_z_CV = log_q_CV.exp_().sub_(p_CV).div_(num_tokens).to(h_ND.dtype)
            torch.mm(grad_z_CV, w_VD, out=grad_h_ND[start : start + chunk])
            grad_w_VD.addmm_(grad_z_CV.T.float(), h_CD.float())
        ctx.save_for_backward(grad_h_ND, grad_w_VD.to(w_VD.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_h_ND, grad_w_VD = ctx.saved_tensors
        return grad_h_ND * gradients[0], grad_w_VD * gradients[0], None, None, None


def chunked_kl(h_ND: Tensor, w_VD: Tensor, g_ND: Tensor, u_VD: Tensor, chunk: int = CHUNK_TOKENS) -> Tensor:
    """Mean KL(parent ‖ child) over tokens, in nats.

    Args:
        h_ND: the child's hidden states after its last norm; gets a gradient.
        w_VD: the child's head; gets a gradient where it wants one.
        g_ND: the parent's hidden states after its last norm.
        u_VD: the parent's head.
        chunk: tokens whose logits are held at once.
    """
    return _ChunkedKL.apply(h_ND, w_VD, g_ND.detach(), u_VD.detach(), chunk)


def naive_kl(h_ND: Tensor, w_VD: Tensor, g_ND: Tensor, u_VD: Tensor) -> Tensor:
    """The same with all logits at once: the reference twin of `chunked_kl`."""
    return kl_divergence(g_ND.detach() @ u_VD.detach().T, h_ND @ w_VD.T).mean()
