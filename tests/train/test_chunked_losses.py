"""Every chunked loss of logits is the naive one, value and gradient, in the memory of a few chunks."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blockwright.errors import InputError
from blockwright.train.chunked_kl import NO_LABEL, Head, Targets, TopK, chunked_losses
from blockwright.train.losses import Losses, parse_losses

EVERY = ["kl", "reverse-kl", "js", "lm", "kl+0.5*lm", "kl+2*reverse-kl+0.3*js+0.1*lm"]


def _tensors(num_tokens: int = 37, width: int = 8, vocab: int = 50) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    h_ND, g_ND = (torch.randn(num_tokens, width, generator=generator) for _ in range(2))
    w_VD, u_VD = (torch.randn(vocab, width, generator=generator) for _ in range(2))
    labels_N = torch.randint(0, vocab, (num_tokens,), generator=generator)
    labels_N[::5] = NO_LABEL
    valid_N = torch.rand(num_tokens, generator=generator) < 0.7
    return h_ND.requires_grad_(), w_VD.requires_grad_(), g_ND, u_VD, labels_N, valid_N


def _naive(h_ND: Tensor, w_VD: Tensor, targets: Targets, losses: Losses) -> Tensor:
    """By the book: all logits at once, autograd for the gradients."""
    assert isinstance(targets.parent, Head) and targets.labels_N is not None
    valid_N = torch.ones(len(h_ND), dtype=torch.bool) if targets.valid_N is None else targets.valid_N
    tau, beta = losses.temperature, losses.js_beta
    z_NV = (h_ND @ w_VD.T)[valid_N]
    log_q = (z_NV / tau).log_softmax(-1)
    log_p = ((targets.parent.g_ND @ targets.parent.u_VD.T)[valid_N] / tau).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    log_m = (beta * p + (1 - beta) * q).log()
    sums = {
        "kl": (p * (log_p - log_q)).sum(),
        "reverse-kl": (q * (log_q - log_p)).sum(),
        "js": beta * (p * (log_p - log_m)).sum() + (1 - beta) * (q * (log_q - log_m)).sum(),
    }
    means = {name: tau**2 * value / targets.num_tokens for name, value in sums.items()}
    means["lm"] = cross_entropy(z_NV, targets.labels_N[valid_N], reduction="sum") / targets.num_labels
    return sum((weight * means[name] for name, weight in losses.weights), torch.zeros(()))


def _targets(g_ND: Tensor, u_VD: Tensor, labels_N: Tensor, valid_N: Tensor | None) -> Targets:
    return Targets(parent=Head(g_ND=g_ND, u_VD=u_VD), num_tokens=31, labels_N=labels_N, num_labels=23, valid_N=valid_N)


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [1, 10, 1000])
def test_value_and_gradients_are_those_of_the_naive_computation(
    loss: str, temperature: float, masked: bool, chunk: int
) -> None:
    h_ND, w_VD, g_ND, u_VD, labels_N, valid_N = _tensors()
    losses = parse_losses(loss, temperature=temperature, js_beta=0.3)
    targets = _targets(g_ND, u_VD, labels_N, valid_N if masked else None)
    value, values = chunked_losses(h_ND, w_VD, targets, losses, chunk=chunk)
    gradients = torch.autograd.grad(3 * value, [h_ND, w_VD])
    expected = _naive(h_ND, w_VD, targets, losses)
    expected_gradients = torch.autograd.grad(3 * expected, [h_ND, w_VD])
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert sum(weight * values[name].item() for name, weight in losses.weights) == pytest.approx(value.item(), rel=1e-5)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_no_valid_token_is_no_loss_and_no_gradient() -> None:
    h_ND, w_VD, g_ND, u_VD, labels_N, valid_N = _tensors()
    targets = _targets(g_ND, u_VD, labels_N, torch.zeros_like(valid_N))
    value, _ = chunked_losses(h_ND, w_VD, targets, parse_losses("kl+lm"))
    value.backward()
    assert value.item() == 0 and h_ND.grad is not None and not h_ND.grad.any()


def test_vocabularies_that_differ_are_refused() -> None:
    h_ND, w_VD, g_ND, u_VD, labels_N, _ = _tensors()
    with pytest.raises(InputError, match="50 tokens in the child and 49 in the parent"):
        chunked_losses(h_ND, w_VD, _targets(g_ND, u_VD[:49], labels_N, None), parse_losses("kl"))


@pytest.mark.parametrize("loss", EVERY)
def test_products_in_bf16_stay_near_those_in_fp32(loss: str) -> None:
    h_ND, w_VD, g_ND, u_VD, labels_N, valid_N = _tensors(num_tokens=500)
    losses = parse_losses(loss)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        targets = _targets(g_ND.to(dtype), u_VD.to(dtype), labels_N.clone(), valid_N)
        value, _ = chunked_losses(h_ND, w_VD, targets, losses, chunk=64, dtype=dtype)
        found.append((value, *torch.autograd.grad(value, [h_ND, w_VD])))
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        assert (exact - rounded).norm() < 0.02 * exact.norm()


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors made within it that are still alive, at their most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes, self._bytes = 0, dict[StorageWeakRef, int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves(args) if isinstance(tensor, Tensor)}
        result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                storage = tensor.untyped_storage()
                self._bytes[StorageWeakRef(storage)] = storage.nbytes()
        self._bytes = {reference: size for reference, size in self._bytes.items() if not reference.expired()}
        self.peak_bytes = max(self.peak_bytes, sum(self._bytes.values()))
        return result


def _peak_bytes(run: Any) -> int:
    with _Live() as live:
        kept = run()
    del kept
    return live.peak_bytes


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_extra_memory_is_that_of_few_chunks_whatever_the_number_of_tokens(loss: str, temperature: float) -> None:
    chunk, width, vocab = 16, 4, 4000
    losses = parse_losses(loss, temperature=temperature)
    for num_tokens in (64, 1024):
        h_ND, w_VD, g_ND, u_VD, labels_N, valid_N = _tensors(num_tokens, width, vocab)
        targets = _targets(g_ND, u_VD, labels_N, valid_N)
        peak = _peak_bytes(lambda h=h_ND, w=w_VD, t=targets: chunked_losses(h, w, t, losses, chunk=chunk))
        gradients = 4 * width * (num_tokens + vocab)  # what comes back, which any way must make
        assert peak - gradients <= 1.3 * 4 * (4 * chunk * vocab)


def test_the_meter_of_memory_sees_what_the_naive_computation_holds() -> None:
    h_ND, w_VD, g_ND, u_VD, labels_N, _ = _tensors(64, 4, 4000)
    targets = _targets(g_ND, u_VD, labels_N, None)
    assert _peak_bytes(lambda: _naive(h_ND, w_VD, targets, parse_losses("kl"))) > 4 * (4 * 64 * 4000)


def _top_of(log_p_NV: Tensor, k: int) -> TopK:
    log_p_NK, ids_NK = log_p_NV.topk(k)
    left = log_p_NV.scatter(1, ids_NK, -torch.inf).logsumexp(-1)
    return TopK(ids_NK=ids_NK, log_p_NK=log_p_NK, log_tail_N=left)


@pytest.mark.parametrize("k", [1, 7, 49, 50])
def test_kl_of_the_top_tokens_and_the_tail_is_that_of_so_many_outcomes(k: int) -> None:
    h_ND, w_VD, g_ND, u_VD, _, valid_N = _tensors()
    top = _top_of((g_ND @ u_VD.T).log_softmax(-1), k)
    value, _ = chunked_losses(
        h_ND, w_VD, Targets(parent=top, num_tokens=31, valid_N=valid_N), parse_losses("kl"), chunk=10
    )
    gradients = torch.autograd.grad(value, [h_ND, w_VD])
    q_NV = (h_ND @ w_VD.T).softmax(-1)
    kept_NK = q_NV.gather(1, top.ids_NK)
    kl_N = (top.log_p_NK.exp() * (top.log_p_NK - kept_NK.log())).sum(-1)
    if k < 50:
        rest_N = q_NV.scatter(1, top.ids_NK, 0.0).sum(-1)
        kl_N = kl_N + top.log_tail_N.exp() * (top.log_tail_N - rest_N.log())
    expected = kl_N[valid_N].sum() / 31
    assert (kl_N > 0).all()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, [h_ND, w_VD]), strict=True):
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def test_kl_of_the_top_tokens_grows_to_the_whole_with_their_number() -> None:
    h_ND, w_VD, g_ND, u_VD, labels_N, _ = _tensors()
    log_p_NV = (g_ND @ u_VD.T).log_softmax(-1)
    whole = chunked_losses(h_ND, w_VD, _targets(g_ND, u_VD, labels_N, None), parse_losses("kl"))[0].item()
    parts = [
        chunked_losses(h_ND, w_VD, Targets(parent=_top_of(log_p_NV, k), num_tokens=31), parse_losses("kl"))[0].item()
        for k in (1, 5, 25, 50)
    ]
    assert parts[0] >= 0 and parts == sorted(parts) and math.isclose(parts[-1], whole, rel_tol=1e-6)
