"""A checkpoint's weights read as shares: each rank reads its rows of every weight, and none ever holds a whole model.

The model is built with no memory behind it (device meta), shared out among the ranks, and given memory for its shares
alone. At the peak a rank holds

    4 or 2 bytes · parameters / ranks + 2 · (bytes in the file of the largest weight) / ranks

of a model: its shares, and twice what is being copied.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from blockwright.errors import InputError
from blockwright.train.ranks import Ranks
from blockwright.train.sharded import local, read_share, shard


def empty_parent(folder: Path) -> PreTrainedModel:
    """A parent with no memory behind its weights, as `empty_child` of a child."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def load_shares(
    empty: PreTrainedModel, folder: Path, ranks: Ranks, device: torch.device, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Gives each rank its shares of a model; all ranks must call it.

    Args:
        empty: the model, on device meta; it becomes the result.
        folder: its checkpoint (safetensors).
        ranks: more than one.
        device: where the shares are to be.
        dtype: of the weights.

    Raises:
        InputError: a weight is missing, surplus, broken or of another shape.
    """
    empty.tie_weights()
    nn.Module.to(empty.eval(), dtype)  # transformers' own has no types
    shard(empty, ranks, device.type)
    empty.to_empty(device=device)
    empty.tie_weights()
    body: Any = empty.model
    body.rotary_emb = type(body.rotary_emb)(empty.config).to(device)  # no part of the files: computed
    read_weights(empty, folder)
    return empty


def read_weights(model: PreTrainedModel, folder: Path) -> None:
    """Reads a checkpoint into a model that has memory for it: all, or each rank its shares.

    Raises:
        InputError: as `load_shares`.
    """
    parameters = dict(model.named_parameters())
    with _stored(folder) as stored:
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        wanted = {(name, tuple(parameter.shape)) for name, parameter in parameters.items() if name not in tied}
        given = {(name, tuple(part.get_shape())) for name, part in stored.items() if name not in tied}
        if different := {name for name, _ in wanted ^ given}:
            raise InputError(
                f"{folder}: weights",
                got=f"missing, surplus or of another shape: {', '.join(sorted(different)[:5])}",
                expected="exactly the weights that config.json describes",
                remedy="Make the checkpoint again, or download it again.",
            )
        for name, _ in sorted(wanted):
            local(parameters[name].data).copy_(read_share(stored[name], parameters[name].data))


@contextlib.contextmanager
def _stored(folder: Path) -> Iterator[dict[str, Any]]:
    """All tensors of a checkpoint, by name, to be read in slices."""
    with contextlib.ExitStack() as stack:
        try:
            files = [
                stack.enter_context(safe_open(file, framework="pt")) for file in sorted(folder.glob("*.safetensors"))
            ]
            yield {name: file.get_slice(name) for file in files for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{folder}: weights",
                got=str(error),
                expected="whole safetensors files",
                remedy="Make the checkpoint again, or download it again.",
            ) from error
