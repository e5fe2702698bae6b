"""A child and its parent spread over ranks: each keeps a share of every weight, and has a layer whole while it runs.

torch's FSDP2 does it (`fully_shard`, under torchrun): every layer of both models is gathered before it runs and given
up after, its gradients are summed over ranks into shares. So gradients, optimiser states and the clipping norm are
those of one process that saw the whole batch, to the last bits of a sum in another order. On CUDA ranks talk by NCCL,
else by gloo.

A step is any function of the two models, called through `Sharded`, for embeddings, norms and heads are there only
inside; its loss is this rank's share: summed over its tokens, divided by the valid tokens of all ranks. All ranks must
call as often, for each call gathers. Models too large for one rank are loaded as shares (`loading.py`).
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from blockwright.errors import InputError
from blockwright.train.ranks import Ranks

_PATIENCE = timedelta(minutes=10)
"""How long a rank waits for others that write a state or load a model."""
_LOST = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "timeout", "NCCL", "gloo")
Result = TypeVar("Result")


class Sharded:
    """Child and parent; call it with a function of them to have their weights there.

    Args:
        child: trained; its parameters become shares, unless they are already.
        parent: frozen; likewise. None where nothing of it is needed.
        ranks: among whom; alone, everything stays as it is.
    """

    def __init__(self, child: PreTrainedModel, parent: PreTrainedModel | None, ranks: Ranks) -> None:
        self.models = [child] if parent is None else [child, parent]
        if ranks.world_size > 1:
            for model in self.models:
                if not isinstance(model, FSDPModule):
                    shard(model, ranks, "cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, compute: Callable[..., Result], *arguments: Any) -> Result:
        """Runs a function with embeddings, norms and heads gathered; layers come as they run."""
        run = partial(compute, *arguments)
        for model in self.models:
            if isinstance(model, FSDPModule):
                run = partial(_within, model, run)
        return run()


def shard(model: PreTrainedModel, ranks: Ranks, device_type: str) -> None:
    """Leaves each rank its share of a model's weights; those on device meta stay there."""
    mesh = init_device_mesh(device_type, (ranks.world_size,))  # shares go to the GPU as they are made
    for layer in model.get_submodule("model.layers").children():
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # so that outside of calls all weights are shares
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are shares of a sum already
            module.set_force_sum_reduction_for_comms(True)  # all that gloo can


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each rank has a share; all ranks must ask. Another tensor is itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's share of a whole tensor, as `like` is shared; where that is not, a copy."""
    tensor = tensor.to(device=like.device, dtype=like.dtype)
    if not isinstance(like, DTensor):
        return tensor.clone()
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def read_share(stored: Any, like: Tensor) -> Tensor:
    """This rank's share of a tensor in a file, of which no more is read.

    Args:
        stored: a slice of safetensors (`get_slice`).
        like: a parameter, as it is shared; where that is not, all is read.
    """
    if not isinstance(like, DTensor):
        return stored[:]
    length, ranks = like.shape[0], like.device_mesh.size()
    start = min(length, -(-length // ranks) * like.device_mesh.get_local_rank())  # as torch.chunk cuts
    return stored[start : start + len(like.to_local())]


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor, to read or write in place."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def clip(parameters: list[nn.Parameter], most: float) -> Tensor:
    """Scales gradients so that the norm over all of them and all ranks is at most `most`; returns what it was."""
    return whole(nn.utils.clip_grad_norm_(parameters, most))


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """This process among those that torchrun started; alone where it started none.

    Raises:
        InputError: another rank was lost meanwhile.
    """
    ranks = Ranks.of_environment()
    if ranks.world_size == 1:
        yield ranks
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    before = signal.signal(signal.SIGTERM, _stopped)  # torchrun's word to the others when one is lost
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=_PATIENCE)
    try:
        yield ranks
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(word in str(error) for word in _LOST):
            raise _lost(str(error).strip().splitlines()[0]) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        with contextlib.suppress(RuntimeError):  # a lost rank does not answer any more
            dist.destroy_process_group()


def _within(model: Any, run: Callable[[], Result]) -> Result:
    """Runs a function in the place of a model's forward, round which torch gathers and gives up what is its own."""

    def once() -> Result:
        del model.forward
        return run()

    model.forward = once
    try:
        return model()
    finally:
        model.__dict__.pop("forward", None)


def _stopped(number: int, frame: Any) -> None:
    raise _lost("told to stop, as torchrun tells all when one is lost")


def _lost(got: str) -> InputError:
    return InputError(
        f"rank {os.environ.get('RANK', '0')}",
        got=f"lost the other ranks: {got}",
        expected="all ranks to live until the end",
        remedy="See what ended the rank that torchrun names, and run the same command again, with any number of ranks: "
        "it goes on from the last state kept.",
    )
