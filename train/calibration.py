"""What first weights need to know of the parent's own states: found in one pass over some of the training text.

`train/importance.py` says what is summed, `train/initialise.py` what follows from it.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from transformers import PreTrainedModel

from blockwright.count import parameters
from blockwright.files import new_file
from blockwright.spec import GatedFFN, Model
from blockwright.tensors import opened_tensors, writing_tensors
from blockwright.train.bld import Trainee, on_device
from blockwright.train.groups import Work
from blockwright.train.initialise import InitSettings, Seen, seen_from
from blockwright.train.observe import observe
from blockwright.train.windows import Batch

CALIBRATION = "calibration.safetensors"
CALIBRATION_TOKENS = 2**17
"""Enough to rank channels: Minitron (arXiv 2407.14679) ranks by 1,024 samples. All training text where it is less."""

_REMEDY = "Delete the file, and it is made anew."


def calibrate(
    model: PreTrainedModel,
    parent: Model,
    init: InitSettings,
    training: Sequence[Batch],
    trainees: Sequence[Trainee],
    folder: Path,
) -> None:
    """Writes what first weights of the trainees need to know of every layer into a file of the folder, once."""
    path = folder / CALIBRATION
    widths, known = _widths_of(parent, trainees), _known_widths(path)
    if known is not None and (init.channels != "fitted" or widths <= known):
        return
    offered: dict[int, list[int]] = {}
    for layer, width in sorted(widths | (known or set())):
        offered.setdefault(layer, []).append(width)
    per_batch = training[0].ids_BT.numel()
    steps = range(min(len(training), -(-CALIBRATION_TOKENS // per_batch)))
    batches = [on_device(training[step], model.device) for step in steps]
    tensors = {
        f"{layer}.{name}": tensor.cpu().contiguous()
        for layer, seen in enumerate(observe(model, parent, batches, init, offered))
        for name, tensor in seen.tensors().items()
    }
    with new_file(path) as temporary, writing_tensors(path):
        save_file(tensors, temporary)


def calibration_bytes(parent: Model, trainees: Sequence[Trainee], init: InitSettings, work: Work) -> int:
    """The most memory that `calibrate` takes: the parent, the states of all its batches, and one layer's sums.

    Sums are float64. Beside the products of an ffn's channels stand their joint losses, and while these are made two
    matrices more; then the equations of a fitted matrix of each width, one after the other.
    """
    steps = min(work.num_steps, -(-CALIBRATION_TOKENS // work.batch_tokens))
    hidden = parent.hidden_size
    states = 4 * (steps + 4) * work.batch_tokens * hidden
    wanted, width = init.wanted(), max(block.ffn.width for block in parent.layers if isinstance(block.ffn, GatedFFN))
    offered = max((width for _, width in _widths_of(parent, trainees)), default=0)
    passing = work.batch_tokens * (4 * 4 * width + (2 if wanted.moments else 1) * 8 * width)
    sums = 0
    if wanted.moments:
        fitting = 3 * offered**2 + 2 * offered * width + 2 * hidden * (width + offered)
        sums = 8 * (width**2 + max(width**2, 3 * width**2 + hidden * width, fitting))
    if wanted.linear:
        sums += 8 * 8 * (hidden + 1) ** 2
        passing += 8 * 4 * work.batch_tokens * (hidden + 1)
    return 4 * parameters(parent) + states + passing + sums


def read_seen(folder: Path, layer: int) -> Seen:
    """What `calibrate` wrote of one layer.

    Raises:
        InputError: the file is broken.
    """
    prefix = f"{layer}."
    with opened_tensors(folder / CALIBRATION, _REMEDY) as file:
        names = file.keys()
        return seen_from({n.removeprefix(prefix): file.get_tensor(n) for n in names if n.startswith(prefix)})


def _widths_of(parent: Model, trainees: Sequence[Trainee]) -> set[tuple[int, int]]:
    """The widths of the narrower ffns that are to learn, with their layers."""
    return {
        (trainee.layer, trainee.block.ffn.width)
        for trainee in trainees
        if "ffn" in trainee.parts
        and isinstance(trainee.block.ffn, GatedFFN)
        and trainee.block.ffn != parent.layers[trainee.layer].ffn
    }


def _known_widths(path: Path) -> set[tuple[int, int]] | None:
    """Those that a file has matrices for; None where there is no file."""
    if not path.exists():
        return None
    with opened_tensors(path, _REMEDY) as file:
        names = file.keys()
        found = (re.fullmatch(r"(\d+)\.down\.(\d+)", name) for name in names)
        return {(int(match[1]), int(match[2])) for match in found if match}
