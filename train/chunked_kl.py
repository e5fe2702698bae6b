"""Losses of logits from hidden states, without ever holding all logits.

For hidden states h (child) and g (parent), heads W and U, logits z = hWᵀ and gUᵀ, and distributions q and p at
temperature τ, the gradient of every term in `losses.py` with respect to z is known as soon as its value is:

    kl           τ·(q − p)
    reverse-kl   τ·q·(ln (q/p) − Σ q ln (q/p))
    js           τ·(1 − β)·q·(ln (q/m) − Σ q ln (q/m))
    lm           q₁ − onehot(next token), q₁ at τ = 1

so a chunk of tokens needs no second pass, and its logits can go. Besides the gradients themselves the memory is that
of at most five chunks of logits, whatever the number of tokens; the result is that of the naive computation. Products
are taken in the format asked for; the logarithms, the sums and the head's gradient are in fp32.

With the parent's likeliest k tokens only (`TopK`), all others are one more outcome, the tail: KL over k + 1 outcomes
is never below 0, and with k = V it is the whole one.

Shapes: N tokens, C tokens of a chunk, D hidden size, V vocabulary, K tokens kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blockwright.errors import InputError
from blockwright.model.divergence import kl_divergence
from blockwright.train.losses import OF_LOGITS, Losses, kl_and_cosine

CHUNK_TOKENS = 1024
NO_LABEL = -100
"""As next token: there is none, and the LM loss passes over it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The parent's likeliest next tokens, with what is left for all others; together they sum to 1."""

    ids_NK: Tensor
    log_p_NK: Tensor
    log_tail_N: Tensor
    """-inf where nothing is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The parent's hidden states after its last norm, and its head."""

    g_ND: Tensor
    u_VD: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What the child's next tokens are held against."""

    parent: Head | TopK | None
    """None where only the LM loss is wanted."""
    num_tokens: int
    """What sums are divided by: the valid tokens of all ranks and micro-batches."""
    valid_N: Tensor | None = None
    """Which tokens count; None for all."""
    labels_N: Tensor | None = None
    """The next tokens, or `NO_LABEL`."""
    num_labels: int = 1
    """What the LM loss is divided by."""


class _ChunkedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_ND: Tensor, w_VD: Tensor, targets: Targets, losses: Losses, chunk: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        weights = losses.among(OF_LOGITS)
        values = torch.zeros(len(weights), dtype=torch.float32, device=h_ND.device)
        low_VD = w_VD.to(dtype)
        grad_h_ND = torch.zeros_like(h_ND)
        learns_head = ctx.needs_input_grad[1]
        grad_w_VD = torch.zeros_like(w_VD, dtype=torch.float32) if learns_head else None
        scale = 1 / targets.num_tokens
        for rows in _chunks(len(h_ND), targets.valid_N, chunk):
            h_CD = h_ND[rows].to(dtype)
            grad_CV, found = _chunk(h_CD, low_VD, targets, rows, losses)
            values += found
            grad_z_CV = grad_CV.to(dtype)
            del grad_CV
            grad_h_ND[rows] = (grad_z_CV @ low_VD).to(h_ND.dtype).mul_(scale)
            if grad_w_VD is not None and dtype == torch.float32:
                grad_w_VD.addmm_(grad_z_CV.T, h_CD, alpha=scale)
            elif grad_w_VD is not None:
                grad_w_VD.add_(grad_z_CV.T @ h_CD, alpha=scale)
            del grad_z_CV
        ctx.save_for_backward(grad_h_ND, *([] if grad_w_VD is None else [grad_w_VD.to(w_VD.dtype)]))
        ctx.mark_non_differentiable(values)
        return (values * values.new_tensor(list(weights.values()))).sum(), values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_h_ND, *grad_w_VD = ctx.saved_tensors
        return (
            grad_h_ND * gradients[0],
            *[grad * gradients[0] for grad in grad_w_VD or ()],
            *[None] * (4 if grad_w_VD else 5),
        )


def chunked_losses(
    h_ND: Tensor,
    w_VD: Tensor,
    targets: Targets,
    losses: Losses,
    *,
    chunk: int = CHUNK_TOKENS,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of all terms of logits, and the value of each.

    Args:
        h_ND: the child's hidden states after its last norm; gets a gradient.
        w_VD: the child's head; gets a gradient where it wants one.
        targets: the parent's side.
        losses: which terms; those of hidden states are passed over.
        chunk: tokens whose logits are held at once.
        dtype: of the products; None for that of `h_ND`.

    Raises:
        InputError: the vocabularies differ.
    """
    if isinstance(targets.parent, Head) and len(targets.parent.u_VD) != len(w_VD):
        raise InputError(
            "vocabulary",
            got=f"{len(w_VD)} tokens in the child and {len(targets.parent.u_VD)} in the parent",
            expected="the same tokens in both",
            remedy="Distil a child from the parent that it was made from.",
        )
    with torch.autocast(h_ND.device.type, enabled=False):
        loss, values = _ChunkedLosses.apply(h_ND, w_VD, targets, losses, chunk, dtype or h_ND.dtype)
    return loss, dict(zip(losses.among(OF_LOGITS), values.unbind(), strict=True))


def chunked_kl(h_ND: Tensor, w_VD: Tensor, g_ND: Tensor, u_VD: Tensor, chunk: int = CHUNK_TOKENS) -> Tensor:
    """Mean KL(parent ‖ child) over tokens, in nats; arguments as in `chunked_losses`."""
    parent = Head(g_ND=g_ND.detach(), u_VD=u_VD.detach())
    return chunked_losses(h_ND, w_VD, Targets(parent=parent, num_tokens=len(h_ND)), kl_and_cosine(0), chunk=chunk)[0]


def naive_kl(h_ND: Tensor, w_VD: Tensor, g_ND: Tensor, u_VD: Tensor) -> Tensor:
    """The same with all logits at once: the reference twin of `chunked_kl`."""
    return kl_divergence(g_ND.detach() @ u_VD.detach().T, h_ND @ w_VD.T).mean()


def _chunks(num_tokens: int, valid_N: Tensor | None, chunk: int) -> Iterator[slice | Tensor]:
    """The rows of each chunk: of valid tokens only."""
    if valid_N is None:
        yield from (slice(start, start + chunk) for start in range(0, num_tokens, chunk))
    elif len(valid := valid_N.nonzero()[:, 0]):
        yield from valid.split(chunk)


def _chunk(h_CD: Tensor, w_VD: Tensor, targets: Targets, rows: slice | Tensor, losses: Losses) -> tuple[Tensor, Tensor]:
    """A chunk's gradient by its logits, times the number of tokens, and the terms' shares of their means."""
    weights, values, gradient_CV = losses.among(OF_LOGITS), dict[str, Tensor](), None
    for name, value, grad_CV in _terms(h_CD, w_VD, targets, rows, losses):
        factor = weights[name] * (targets.num_tokens / targets.num_labels if name == "lm" else losses.temperature)
        if factor != 1:
            grad_CV.mul_(factor)
        gradient_CV = grad_CV if gradient_CV is None else gradient_CV.add_(grad_CV)
        del grad_CV  # before the next one is made
        values[name] = (
            value / targets.num_labels if name == "lm" else value * losses.temperature**2 / targets.num_tokens
        )
    assert gradient_CV is not None
    return gradient_CV, torch.stack([values[name] for name in weights])


def _terms(
    h_CD: Tensor, w_VD: Tensor, targets: Targets, rows: slice | Tensor, losses: Losses
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each term's sum and its gradient by z/τ. Every step writes over what is not needed any more: five chunks live."""
    z_CV, parent, names = h_CD @ w_VD.T, targets.parent, list(losses.among(OF_LOGITS))
    if "lm" in names:
        assert targets.labels_N is not None
        names.remove("lm")
        yield "lm", *_lm(z_CV, targets.labels_N[rows])
    if not names:
        return
    log_q_CV = _log_softmax(z_CV, losses.temperature)
    del z_CV
    assert parent is not None
    if isinstance(parent, TopK):
        assert names == ["kl"], "other terms need all of the parent's logits"
        yield "kl", *_kl_of_top(parent, rows, log_q_CV)
        return
    log_p_CV = _log_softmax(parent.g_ND[rows].to(parent.u_VD.dtype) @ parent.u_VD.T, losses.temperature)
    if "kl" in names:
        yield "kl", *_kl(log_p_CV, log_q_CV)
    if "reverse-kl" in names:
        yield "reverse-kl", *_reverse_kl(log_p_CV, log_q_CV)
    if "js" in names:
        yield "js", *_js(log_p_CV, log_q_CV, losses.js_beta)


def _log_softmax(z_CV: Tensor, temperature: float) -> Tensor:
    return (z_CV if temperature == 1 else z_CV / temperature).log_softmax(dim=-1, dtype=torch.float32)


def _lm(z_CV: Tensor, labels_C: Tensor) -> tuple[Tensor, Tensor]:
    log_q_CV = z_CV.log_softmax(dim=-1, dtype=torch.float32)
    has_label_C1 = (labels_C != NO_LABEL)[:, None]
    labels_C1 = labels_C.clamp(min=0)[:, None]
    value = -(log_q_CV.gather(1, labels_C1) * has_label_C1).sum()
    q_CV = log_q_CV.exp_().mul_(has_label_C1)
    return value, q_CV.scatter_add_(1, labels_C1, -has_label_C1.to(q_CV.dtype))


def _kl(log_p_CV: Tensor, log_q_CV: Tensor) -> tuple[Tensor, Tensor]:
    p_CV = log_p_CV.exp()
    work_CV = log_p_CV - log_q_CV
    value = work_CV.mul_(p_CV).sum()
    return value, torch.exp(log_q_CV, out=work_CV).sub_(p_CV)


def _reverse_kl(log_p_CV: Tensor, log_q_CV: Tensor) -> tuple[Tensor, Tensor]:
    return _centred(log_q_CV.exp(), log_q_CV - log_p_CV)


def _centred(q_CV: Tensor, ratio_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Σ q·r over all tokens, and q·(r − Σ q·r)."""
    work_CV = ratio_CV.mul_(q_CV)
    value_C1 = work_CV.sum(dim=-1, keepdim=True)
    return value_C1.sum(), work_CV.addcmul_(q_CV, value_C1, value=-1)


def _js(log_p_CV: Tensor, log_q_CV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """As the last of the terms it writes over the logarithms that it is given."""
    log_m_CV = log_p_CV + torch.log(log_p_CV.new_tensor(beta))
    work_CV = log_q_CV + torch.log(log_q_CV.new_tensor(1 - beta))
    torch.logaddexp(log_m_CV, work_CV, out=log_m_CV)
    torch.exp(log_p_CV, out=work_CV)
    of_parent = log_p_CV.sub_(log_m_CV).mul_(work_CV).sum()
    torch.exp(log_q_CV, out=work_CV)
    of_child, grad_CV = _centred(work_CV, log_q_CV.sub_(log_m_CV))
    return beta * of_parent + (1 - beta) * of_child, grad_CV.mul_(1 - beta)


def _kl_of_top(parent: TopK, rows: slice | Tensor, log_q_CV: Tensor) -> tuple[Tensor, Tensor]:
    """KL over the tokens kept and the tail; the gradient of a tail's token is q·(1 − tail of p / tail of q)."""
    ids_CK, log_p_CK, log_tail_C = parent.ids_NK[rows].long(), parent.log_p_NK[rows], parent.log_tail_N[rows]
    p_CK, tail_C = log_p_CK.exp(), log_tail_C.exp()
    log_q_CK = log_q_CV.gather(1, ids_CK)
    log_rest_C = log_q_CV.scatter(1, ids_CK, -torch.inf).logsumexp(dim=-1)
    has_tail_C = tail_C > 0
    ratio_C = torch.where(has_tail_C, log_tail_C - log_rest_C, 0.0)
    value = (p_CK * (log_p_CK - log_q_CK)).sum() + (tail_C * ratio_C).sum()
    q_CV = log_q_CV.exp_()
    q_CK = q_CV.gather(1, ids_CK)
    q_CV.mul_(torch.where(has_tail_C, 1 - ratio_C.exp(), 1.0)[:, None])
    return value, q_CV.scatter_(1, ids_CK, q_CK - p_CK)
