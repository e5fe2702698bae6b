"""What distillation minimises, by name: a weighted sum such as ``kl+0.5*cosine``.

With the parent's distribution p and the child's q over the next token, both at temperature τ, and the states x and y
that leave a layer of the child and of the parent, per token:

    kl           τ²·Σ p ln (p/q)                                              forward: cover all that the parent says
    reverse-kl   τ²·Σ q ln (q/p)                                              say nothing that the parent does not
    js           τ²·(β·Σ p ln (p/m) + (1 − β)·Σ q ln (q/m)), m = β·p + (1 − β)·q    (Agarwal et al., arXiv 2306.13649)
    lm           −ln q(next token), at τ = 1; it makes a child worse as a rule (Puzzle, arXiv 2411.19146, appendix F.3)
    cosine       Σ over layers of 1 − cos (x, y)
    mse          Σ over layers of mean (x − y)²

τ² keeps gradients of one size at all temperatures (Hinton et al., arXiv 1503.02531). All are means over valid tokens.

Shapes: B windows of a batch, T tokens, D hidden size.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity

from blockwright.errors import InputError

COMPARED_LOGITS = ("kl", "reverse-kl", "js")
"""Terms that compare the child's distribution with the parent's."""
OF_LOGITS = (*COMPARED_LOGITS, "lm")
OF_STATES = ("cosine", "mse")
_NAMES = (*OF_LOGITS, *OF_STATES)
_FORM = f"terms joined by +, each a name or WEIGHT*name: {', '.join(_NAMES)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """A weighted sum of losses."""

    weights: tuple[tuple[str, float], ...]
    """Name and weight of each term, in the order of `_NAMES`."""
    temperature: float = 1.0
    """τ of the terms that compare logits."""
    js_beta: float = 0.5
    """β: how much of the mixture is the parent."""

    def __post_init__(self) -> None:
        _check_between("--temperature", self.temperature, 0, math.inf)
        _check_between("--js-beta", self.js_beta, 0, 1)

    @property
    def names(self) -> tuple[str, ...]:
        """The terms."""
        return tuple(name for name, _ in self.weights)

    def among(self, names: Sequence[str]) -> dict[str, float]:
        """The weights of those terms that are among `names`."""
        return {name: weight for name, weight in self.weights if name in names}


def parse_losses(text: str, *, temperature: float = 1.0, js_beta: float = 0.5) -> Losses:
    """Reads a sum such as ``kl+0.5*cosine``; terms of weight 0 are left out.

    Raises:
        InputError: it has another form, a term twice or of an unknown name, or nothing is left.
    """
    weights: dict[str, float] = {}
    for term in text.replace(" ", "").split("+"):
        weight, _, name = term.rpartition("*")
        if name not in _NAMES or name in weights:
            raise _refused(text, f"{term!r}{', twice' if name in weights else ''}")
        weights[name] = _weight(text, weight)
    left = tuple((name, weights[name]) for name in _NAMES if weights.get(name))
    if not left:
        raise _refused(text, "no term with a weight")
    return Losses(weights=left, temperature=temperature, js_beta=js_beta)


def kl_and_cosine(cosine_weight: float = 1.0) -> Losses:
    """The loss of Puzzle: KL of the next token, and cosine of the states."""
    return Losses(weights=(("kl", 1.0), *([("cosine", cosine_weight)] if cosine_weight else [])))


def even_layer_map(num_child: int, num_parent: int) -> tuple[int, ...]:
    """For each layer of the child the parent's layer to compare it with: evenly spread, the last with the last."""
    return tuple((layer + 1) * num_parent // num_child - 1 for layer in range(num_child))


def check_layer_map(layer_map: Sequence[int], num_child: int, num_parent: int) -> None:
    """Refuses a map that is not one parent's layer for each of the child's, in rising order.

    Raises:
        InputError: it is not.
    """
    rises = all(before < after for before, after in itertools.pairwise(layer_map))
    if len(layer_map) != num_child or not rises or not all(0 <= layer < num_parent for layer in layer_map):
        raise InputError(
            "--layer-map",
            got=",".join(map(str, layer_map)),
            expected=f"{num_child} rising layers of the parent, from 0 to {num_parent - 1}: one per layer of the child",
            remedy="Mend it, or leave it out: layers are then spread evenly.",
        )


def state_losses(names: Sequence[str], x_BTD: Tensor, y_BTD: Tensor, valid_BT: Tensor | None) -> list[Tensor]:
    """The terms that compare states, each summed over the valid tokens, in fp32."""
    return [_masked_sum(_state_loss(name, x_BTD.float(), y_BTD.float()), valid_BT) for name in names]


def _state_loss(name: str, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
    if name == "cosine":
        return 1 - cosine_similarity(x_BTD, y_BTD, dim=-1)
    assert name == "mse"
    return (x_BTD - y_BTD).square().mean(dim=-1)


def _masked_sum(values_BT: Tensor, valid_BT: Tensor | None) -> Tensor:
    return values_BT.sum() if valid_BT is None else values_BT.masked_fill(~valid_BT, 0.0).sum()


def _weight(text: str, weight: str) -> float:
    try:
        value = float(weight or 1)
    except ValueError:
        raise _refused(text, f"the weight {weight!r}") from None
    if not 0 <= value < math.inf:
        raise _refused(text, f"the weight {weight}")
    return value


def _refused(text: str, got: str) -> InputError:
    return InputError("--loss", got=f"{got} in {text!r}", expected=_FORM, remedy="Write for example kl+0.5*cosine.")


def _check_between(field: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise InputError(
            field, got=value, expected=f"a number above {low} and below {high}", remedy="Choose one between them."
        )


KL_AND_COSINE = kl_and_cosine()
