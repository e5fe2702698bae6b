"""Makes a plan real: the parent's weights with the chosen candidates' in their places."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from blockwright.errors import InputError
from blockwright.library import Library
from blockwright.model.child import build_child, load_weights, part_weights
from blockwright.spec import Candidate, Model, NoOp, Part
from blockwright.tensors import read_tensors


def realise(model: PreTrainedModel, library: Library, folder: Path, child: Model) -> PreTrainedModel:
    """Builds the child. A layer whose mixer and ffn were trained together gets what they learnt together.

    Args:
        model: the parent.
        library: the index of its candidates.
        folder: where the candidates' files are.
        child: which mixer and ffn each layer has.

    Raises:
        InputError: the library has no weights for one of them.
    """
    weights = {name: tensor for name, tensor in model.state_dict().items() if ".layers." not in name}
    files = {entry.candidate: folder / entry.file for entry in library.entries}
    together = {(entry.layer, entry.block): folder / entry.file for entry in library.blocks}
    for layer, block in enumerate(child.layers):
        if (layer, block) in together:
            found = read_tensors(together[layer, block])
        else:
            found = _weights_of(model, library.parent, files, child, layer, "mixer")
            found |= _weights_of(model, library.parent, files, child, layer, "ffn")
        weights |= {f"model.layers.{layer}.{name}": tensor for name, tensor in found.items()}
    copies = {name: tensor.clone() for name, tensor in weights.items()}
    return load_weights(build_child(child, model.config), copies)


def _weights_of(
    model: PreTrainedModel, parent: Model, files: Mapping[Candidate, Path], child: Model, layer: int, part: Part
) -> dict[str, Tensor]:
    variant = getattr(child.layers[layer], part)
    if isinstance(variant, NoOp):
        return {}
    if variant == getattr(parent.layers[layer], part):
        return part_weights(model.model.layers[layer], part)
    candidate = Candidate(layer=layer, part=part, variant=variant)
    if candidate not in files:
        raise InputError(
            f"layer {layer}, {part}",
            got=f"no weights for {candidate.name}",
            expected="a trained candidate in the library",
            remedy="Build the library with a space that offers it.",
        )
    return read_tensors(files[candidate])
