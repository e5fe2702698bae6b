"""The state of a training as one file, so that no kill leaves weights, optimisers and history out of step."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from blockwright.errors import InputError
from blockwright.files import new_file
from blockwright.tensors import stream_tensors
from blockwright.train.ranks import Ranks
from blockwright.train.sharded import local, read_share, whole

_WEIGHT, _OPTIMISER = "weight.", "optimiser."


def save_weights(path: Path, model: nn.Module, ranks: Ranks) -> None:
    """Writes a model's weights alone; all ranks must call it, the first writes."""
    _write(path, _weights(model), None, ranks)


def load_weights(path: Path, model: nn.Module) -> None:
    """Reads what `save_weights` or `save_state` wrote into a model."""
    with _opened(path) as state:
        for name, parameter in model.named_parameters():
            local(parameter.data).copy_(read_share(state.get_slice(_WEIGHT + name), parameter.data))


def save_state(path: Path, model: nn.Module, optimizers: Sequence[Optimizer], data: Any, ranks: Ranks) -> None:
    """Writes weights, what the optimisers know of each, and plain data; as `save_weights`."""
    _write(path, chain(_weights(model), _known(model, optimizers)), data, ranks)


def load_state(path: Path, model: nn.Module, optimizers: Sequence[Optimizer]) -> Any:
    """Reads what `save_state` wrote into a model and its optimisers; returns the plain data.

    Raises:
        InputError: the file is broken.
    """
    load_weights(path, model)
    owners = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    with _opened(path) as state:
        for stored in state.keys():  # noqa: SIM118 (it is no mapping)
            if stored.startswith(_OPTIMISER):
                key, _, name = stored.removeprefix(_OPTIMISER).partition(".")
                parameter, value = parameters[name], state.get_slice(stored)
                known = owners[parameter].state.setdefault(parameter, {})
                if tuple(value.get_shape()) == parameter.shape:
                    known[key] = torch.empty_like(parameter.data)
                    local(known[key]).copy_(read_share(value, parameter.data))
                else:
                    known[key] = state.get_tensor(stored).to(parameter.device)
        return json.loads(state.metadata()["data"])


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield _WEIGHT + name, parameter.detach()


def _known(model: nn.Module, optimizers: Sequence[Optimizer]) -> Iterator[tuple[str, Tensor]]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter, known in optimizer.state.items():
            for key, value in known.items():
                yield f"{_OPTIMISER}{key}.{names[parameter]}", value


def _write(path: Path, tensors: Iterable[tuple[str, Tensor]], data: Any, ranks: Ranks) -> None:
    """Writes tensors one by one: every rank, the first too, has no more than one of them whole at a time."""
    shares = dict(tensors)
    wholes = (whole(share) for share in shares.values())
    if not ranks.is_first:
        for _ in wholes:
            pass
        return
    shapes = {name: (share.dtype, tuple(share.shape)) for name, share in shares.items()}
    with new_file(path) as temporary:
        stream_tensors(temporary, shapes, wholes, {"data": json.dumps(data)})


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(
            str(path),
            got=str(error),
            expected="a whole state of training",
            remedy="Delete the file, and training begins anew.",
        ) from error
