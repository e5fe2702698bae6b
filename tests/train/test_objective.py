"""What a loss leaves in memory for the way back."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from blockwright.spec import Model
from blockwright.train.losses import KL_AND_COSINE
from blockwright.train.objective import Objective, objective_loss
from blockwright.train.windows import Batch


class _Copies(TorchDispatchMode):
    """Knows the copies in bf16 of matrices of one shape, as long as they live."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape
        self.found: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.dtype == torch.bfloat16 and made.shape == self.shape:
            self.found.append(weakref.ref(made))
        return made


class _OnTheWayBack(torch.autograd.Function):
    """The identity, that calls a function when gradients come to it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Callable[[], None]) -> Tensor:
        ctx.call = call
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.call()
        return grads[0], None


@pytest.mark.parametrize("recomputes", [False, True])
def test_of_layers_that_are_run_again_no_copies_in_bf16_remain(
    recomputes: bool, make_parent: Callable[..., tuple[PreTrainedModel, Model]]
) -> None:
    child, _ = make_parent()
    parent, _ = make_parent()
    child.requires_grad_(True)
    parent.requires_grad_(False)
    objective = Objective(losses=KL_AND_COSINE, recomputes_activations=recomputes, precision="bf16")
    ids_BT = torch.arange(24).view(2, 12)
    num_alive: list[int] = []
    with _Copies(child.model.layers[0].mlp.down_proj.weight.shape) as copies:

        def count() -> None:
            num_alive.append(sum(copy() is not None for copy in copies.found))

        norm = child.model.norm
        plain = norm.forward
        norm.forward = lambda x_BTD: _OnTheWayBack.apply(plain(x_BTD), count)
        loss, _ = objective_loss(child, parent, objective, Batch(ids_BT=ids_BT), (24, 1))
        loss.backward()
    assert copies.found and len(num_alive) == 1
    assert (num_alive[0] == 0) == recomputes
