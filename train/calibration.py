"""What first weights need to know of the parent's own states: found in one pass over some of the training text.

`train/importance.py` says what is summed, `train/initialise.py` what follows from it.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from blockwright.files import new_file
from blockwright.model.walk import Walk
from blockwright.spec import Attention, Model
from blockwright.tensors import read_tensors, writing_tensors
from blockwright.train.bld import on_device
from blockwright.train.importance import LayerSums, watch
from blockwright.train.initialise import InitSettings, Seen, conclude, seen_from
from blockwright.train.windows import Batch

CALIBRATION = "calibration.safetensors"
CALIBRATION_TOKENS = 2**17
"""Enough to rank channels: Minitron (arXiv 2407.14679) ranks by 1,024 samples. All training text where it is less."""


def calibrate(
    model: PreTrainedModel, parent: Model, init: InitSettings, training: Sequence[Batch], folder: Path
) -> None:
    """Writes what first weights need to know of every layer into a file of the folder, once."""
    path = folder / CALIBRATION
    if path.exists():
        return
    per_batch = training[0].ids_BT.numel()
    batches = [training[step] for step in range(min(len(training), -(-CALIBRATION_TOKENS // per_batch)))]
    tensors = {
        f"{layer}.{name}": tensor.cpu().contiguous()
        for layer, seen in enumerate(layers_seen(model, parent, init, batches))
        for name, tensor in seen.tensors().items()
    }
    with new_file(path) as temporary, writing_tensors(path):
        save_file(tensors, temporary)


def read_seen(folder: Path, layer: int) -> Seen:
    """What `calibrate` wrote of one layer."""
    tensors = read_tensors(folder / CALIBRATION)
    prefix = f"{layer}."
    return seen_from({n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)})


@torch.no_grad()
def layers_seen(model: PreTrainedModel, parent: Model, init: InitSettings, batches: Sequence[Batch]) -> list[Seen]:
    """What text shows of every layer of the parent."""
    heads = [block.mixer.num_kv_heads if isinstance(block.mixer, Attention) else 1 for block in parent.layers]
    sums = [LayerSums(init.wanted(), num_kv_heads) for num_kv_heads in heads]
    with ExitStack() as stack:
        for layer, own in zip(model.model.layers, sums, strict=True):
            stack.enter_context(watch(layer, own))
        for batch in batches:
            batch = on_device(batch, model.device)
            walk = Walk(model, batch.segments_BT)
            x_BTD = walk.embed(batch.ids_BT)
            for index in range(len(walk.layers)):
                x_BTD = walk.layer(index, x_BTD)
    layers = zip(model.model.layers, sums, strict=True)
    return [conclude(parent, layer.state_dict(), own, init) for layer, own in layers]
