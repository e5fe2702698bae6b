"""What candidates are judged by: how far a child is from its parent, told from the states that leave the last layer.

With h and g what the last norm makes of the child's and the parent's state, W the head, p the parent's distribution
of the next token, and Δ = W(h − g) the change of the logits:

    KL(parent ‖ child)       = ln Σ_v p_v e^Δ_v − Σ_v p_v Δ_v
    ln p_y − ln q_y          = ln Σ_v p_v e^Δ_v − Δ_y              for the true next token y

p is the same for all children of a batch, and Σ_v p_v Δ_v = (Wᵀp)·(h − g) is a product of vectors of length D. So a
child costs one matrix product and one exponential per logit, and the logits of one chunk of tokens are held at a time.
Nothing large cancels, as it does where two log-probabilities are subtracted: scores of the demo's candidates are
within 2.4e-6 of those in double precision, relative, as are those by `kl_divergence`.

Shapes: B windows of a batch, T tokens, N = B·T tokens of a batch, C of a chunk, D hidden size, V vocabulary.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.errors import InputError

LOGITS_AT_ONCE = 2**19
"""Logits held at once. Measured on two cores of a Zen 3 with 2,048 words: 10 to 11 ms for 2,048 tokens in chunks of
256 to 2,048 tokens, 14 in chunks of 128; 256 tokens are the least that are as fast."""
_LOGITS_TO_KEEP = 2**26
"""Probabilities of the parent that are kept for a batch, 256 MiB; beyond it they are made again for each child."""
_MOST_CHANGE = 80.0
"""Changes of logits beyond it are taken by a slower way: the greatest number of fp32 is e^88.7."""

Judge = Callable[[Tensor], dict[str, Tensor]]
"""From the states x_BTD that leave a child's last layer to values_B for each metric, lower is better."""
JudgeOf = Callable[["Head", Tensor], Judge]
"""Makes the judge of a batch from the head and the states x_BTD that leave the parent's last layer."""
Function = Callable[[Tensor, Tensor], Tensor]
"""A metric of the user's: f(logits_BTV, ids_BT) gives values_B, lower is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What stands behind the last layer."""

    norm: nn.Module
    weight_VD: Tensor

    def logits(self, x_BTD: Tensor) -> Tensor:
        """The logits, z_BTV."""
        return self.norm(x_BTD) @ self.weight_VD.T


@dataclass(frozen=True, slots=True, kw_only=True)
class TextMetrics:
    """What is asked of every window of text."""

    has_kl: bool = True
    """``kl``: mean KL(parent ‖ child) over a window's tokens, in nats per token."""
    has_lm_loss: bool = False
    """``lm_loss``: nats per token on the true next tokens, the child's less the parent's."""
    functions: tuple[tuple[str, Function], ...] = ()
    """The user's own, by name: the child's value less the parent's."""


def head_of(model: PreTrainedModel) -> Head:
    """The head of a parent or child."""
    assert model.lm_head.bias is None, "no family that we know has one"
    return Head(norm=model.model.norm, weight_VD=model.lm_head.weight)


def text_judge(head: Head, parent_BTD: Tensor, ids_BT: Tensor, metrics: TextMetrics) -> Judge:
    """Makes the judge of a batch of windows.

    Raises:
        InputError: a function of the user's does not give one finite number per window for the parent.
    """
    parent_values = {name: _by_function(name, f, head, parent_BTD, ids_BT) for name, f in metrics.functions}
    for name, values_B in parent_values.items():
        if not values_B.isfinite().all():
            raise _function_error(name, f"{values_B.tolist()} for the parent itself")
    g_BTD = head.norm(parent_BTD)
    next_BTD = head.weight_VD[ids_BT[:, 1:]] if metrics.has_lm_loss else None
    log_growth, mean_ND = _growth_of(g_BTD.flatten(0, 1), head.weight_VD)

    def judge(child_BTD: Tensor) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        if metrics.has_kl or next_BTD is not None:
            change_BTD = head.norm(child_BTD) - g_BTD
            log_growth_BT = log_growth(change_BTD.flatten(0, 1)).view_as(ids_BT)
            if metrics.has_kl:
                mean_change_BT = (change_BTD.flatten(0, 1) * mean_ND).sum(dim=-1).view_as(ids_BT)
                values["kl"] = (log_growth_BT - mean_change_BT).mean(dim=1)
            if next_BTD is not None:
                values["lm_loss"] = (log_growth_BT[:, :-1] - (change_BTD[:, :-1] * next_BTD).sum(dim=-1)).mean(dim=1)
        for name, function in metrics.functions:
            values[name] = _by_function(name, function, head, child_BTD, ids_BT) - parent_values[name]
        return values

    return judge


def load_function(text: str) -> tuple[str, Function]:
    """Loads a metric of the user's, written ``path/to/file.py:function``, and gives it with its name.

    What the file itself raises is passed on as it is, for its author to see.

    Raises:
        InputError: there is no such file, or no such function in it.
    """
    place, _, name = text.rpartition(":")
    path = Path(place)
    if not (path.suffix == ".py" and path.is_file()):
        raise InputError(
            "metric",
            got=repr(text),
            expected="kl, lm_loss, or a function of yours as path/to/file.py:function",
            remedy="Name one of these, or correct the path." + " Items go to --task." * (text == "task"),
        )
    spec = importlib.util.spec_from_file_location(f"blockwright_metric_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(
            "metric",
            got=f"no function {name!r} in {path}",
            expected=f"one of {', '.join(found) or 'none: the file has no functions'}",
            remedy="Correct the name.",
        )
    return name, cast(Function, function)


def chunks(num_tokens: int, vocab_size: int) -> Iterator[slice]:
    """Cuts tokens into chunks of few enough logits."""
    size = max(1, LOGITS_AT_ONCE // vocab_size)
    return (slice(start, start + size) for start in range(0, num_tokens, size))


def _growth_of(g_ND: Tensor, weight_VD: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """ln Σ_v p_v e^Δ_v as a function of change_ND = h − g, and mean_ND = Wᵀp."""
    parts = list(chunks(len(g_ND), len(weight_VD)))

    def parent_of(part: slice) -> tuple[Tensor, Tensor]:
        p_CV = (g_ND[part] @ weight_VD.T).softmax(dim=-1)
        # What rounding makes of Σ p = 1; divided by it, no change is a growth of exactly 1.
        return p_CV, p_CV.sum(dim=-1)

    keeps = len(g_ND) * len(weight_VD) <= _LOGITS_TO_KEEP
    kept = [parent_of(part) for part in parts] if keeps else None
    means: list[Tensor] = []
    for index, part in enumerate(parts):
        p_CV, sum_C = kept[index] if kept else parent_of(part)
        means.append((p_CV @ weight_VD) / sum_C[:, None])

    def log_growth(change_ND: Tensor) -> Tensor:
        found: list[Tensor] = []
        for index, part in enumerate(parts):
            delta_CV = change_ND[part] @ weight_VD.T
            if delta_CV.amax() <= _MOST_CHANGE:
                p_CV, sum_C = kept[index] if kept else parent_of(part)
                found.append((delta_CV.exp_().mul_(p_CV).sum(dim=-1) / sum_C).log())
            else:  # also where it is no number
                log_p_CV = (g_ND[part] @ weight_VD.T).log_softmax(dim=-1)
                found.append((log_p_CV + delta_CV).logsumexp(dim=-1))
        return torch.cat(found)

    return log_growth, torch.cat(means)


def _by_function(name: str, function: Function, head: Head, x_BTD: Tensor, ids_BT: Tensor) -> Tensor:
    """A user's metric, of as many windows at once as few enough logits allow, and one at least."""
    at_once = max(1, LOGITS_AT_ONCE // (ids_BT.shape[1] * len(head.weight_VD)))
    found: list[Tensor] = []
    for some_BTD, some_BT in zip(x_BTD.split(at_once), ids_BT.split(at_once), strict=True):
        values_B = function(head.logits(some_BTD), some_BT)
        if not isinstance(values_B, Tensor):
            raise _function_error(name, f"{type(values_B).__name__} for {len(some_BT)} window(s)")
        if values_B.shape != some_BT.shape[:1]:
            raise _function_error(name, f"a tensor of shape {list(values_B.shape)} for {len(some_BT)} window(s)")
        found.append(values_B.float())
    return torch.cat(found)


def _function_error(name: str, got: str) -> InputError:
    return InputError(
        f"metric {name}",
        got=got,
        expected="a tensor with one finite number per window: f(logits_BTV, ids_BT) -> values_B",
        remedy="Correct the function.",
    )
