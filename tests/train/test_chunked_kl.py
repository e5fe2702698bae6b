"""The chunked KL and its gradients are those of the whole logits."""

import pytest
import torch
from torch import Tensor

from blockwright.model.divergence import kl_divergence
from blockwright.train.chunked_kl import chunked_kl, naive_kl


def _tensors(num_tokens: int = 37, width: int = 8, vocab: int = 50) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    h_ND, g_ND = (torch.randn(num_tokens, width, generator=generator) for _ in range(2))
    w_VD, u_VD = (torch.randn(vocab, width, generator=generator) for _ in range(2))
    return h_ND.requires_grad_(), w_VD.requires_grad_(), g_ND.requires_grad_(), u_VD.requires_grad_()


def _kl_in_double(h_ND: Tensor, w_VD: Tensor, g_ND: Tensor, u_VD: Tensor) -> Tensor:
    """Σ p ln(p/q) by the book, in fp64."""
    q_NV = (h_ND.double() @ w_VD.double().T).softmax(-1)
    p_NV = (g_ND.double() @ u_VD.double().T).softmax(-1)
    return (p_NV * (p_NV / q_NV).log()).sum() / len(h_ND)


@pytest.mark.parametrize("chunk", [1, 5, 37, 1000])
def test_value_and_gradients_are_those_of_double_precision(chunk: int) -> None:
    h_ND, w_VD, g_ND, u_VD = _tensors()
    loss = chunked_kl(h_ND, w_VD, g_ND, u_VD, chunk)
    (3 * loss).backward()
    reference = _kl_in_double(h_ND.detach().requires_grad_(), w_VD, g_ND, u_VD)
    grad_h_ND, grad_w_VD = torch.autograd.grad(3 * _kl_in_double(h_ND, w_VD, g_ND, u_VD), [h_ND, w_VD])
    assert h_ND.grad is not None and w_VD.grad is not None
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    torch.testing.assert_close(h_ND.grad, grad_h_ND, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(w_VD.grad, grad_w_VD, atol=1e-6, rtol=1e-4)


def test_it_agrees_with_its_reference_twin() -> None:
    gradients = []
    for kl in (naive_kl, lambda *tensors: chunked_kl(*tensors, chunk=10)):
        h_ND, w_VD, g_ND, u_VD = _tensors()
        kl(h_ND, w_VD, g_ND, u_VD).backward()
        assert g_ND.grad is None and u_VD.grad is None
        gradients.append((h_ND.grad, w_VD.grad))
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


def test_a_head_tied_to_the_embedding_gets_the_gradient_of_both_uses() -> None:
    gradients = []
    for kl in (_kl_in_double, lambda *tensors: chunked_kl(*tensors, chunk=10)):
        _, w_VD, g_ND, u_VD = _tensors()
        h_ND = w_VD[torch.arange(37) % 50] * 2  # the embedding is the head
        kl(h_ND, w_VD, g_ND, u_VD).backward()
        gradients.append(w_VD.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


def test_a_frozen_head_gets_no_gradient() -> None:
    h_ND, w_VD, g_ND, u_VD = _tensors()
    w_VD.requires_grad_(False)
    chunked_kl(h_ND, w_VD, g_ND, u_VD, 10).backward()
    assert h_ND.grad is not None
    assert w_VD.grad is None


def test_equal_distributions_are_no_distance_apart() -> None:
    h_ND, w_VD, _, _ = _tensors()
    loss = chunked_kl(h_ND, w_VD, h_ND, w_VD, 10)
    loss.backward()
    assert h_ND.grad is not None
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert h_ND.grad.abs().max().item() < 1e-6


def test_the_divergence_is_a_sum_over_the_vocabulary_for_each_position() -> None:
    generator = torch.Generator().manual_seed(1)
    parent_V, child_V = torch.randn(2, 3, 7, generator=generator), torch.randn(2, 3, 7, generator=generator)
    kl = kl_divergence(parent_V, child_V)
    assert kl.shape == (2, 3)
    p, q = parent_V[1, 2].double().softmax(0), child_V[1, 2].double().softmax(0)
    terms = [(a * (a / b).log()).item() for a, b in zip(p, q, strict=True)]
    assert kl[1, 2].item() == pytest.approx(sum(terms), rel=1e-5)
