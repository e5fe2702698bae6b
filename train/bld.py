"""Blockwise local distillation: what learns, how it runs beside the parent, and by which loss it is judged.

For a layer of the parent with input x, state m between mixer and ffn, and output y (Puzzle, arXiv 2411.19146,
section 3 and appendix F.1):

    a mixer candidate c:      ŷ = m' + ffn(m'),  m' = x + c(x)    with the parent's ffn, frozen
    an ffn candidate c:       ŷ = m + c(m)                        behind the parent's mixer
    a pair (a, c), coupled:   ŷ = m' + c(m'),    m' = x + a(x)    both learn

    output = Σ (ŷ − y)² / Σ y²          the share of the residual stream that is wrong
    delta  = Σ (ŷ − y)² / Σ (y − x)²    the share of what the layer adds that is wrong

Where a pair's mixer is nothing, m' is x: its ffn learns on the layer's own input. An ffn candidate has never seen
that input, so a plan that puts it behind no mixer wants the pair.

Sums run over the tokens that count. In many models the first token of a document carries states a thousand times
the size of all others, and a sum over all tokens then judges hardly anything else: `skip_first_tokens` leaves tokens
out, `is_per_token` divides each token's error by that token's own square before the mean. By default all count, as in
the paper.

No gradient crosses a layer, so all that learns is independent of each other.

Shapes: B windows of a batch, T tokens, D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.model.child import child_config, layer_with, part_weights
from blockwright.model.modeling_decilm import build_layer
from blockwright.model.walk import Walk, positions_within
from blockwright.spec import Block, Candidate, Model, NoOp, Part, variant_name
from blockwright.tensors import read_tensors
from blockwright.train.initialise import InitSettings, Seen, ffn_weights, mixer_weights
from blockwright.train.windows import Batch

Loss = Literal["output", "delta"]
OptimizerName = Literal["adamw", "muon"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BldSettings:
    """How candidates are trained."""

    learning_rate: float
    loss: Loss = "output"
    skip_first_tokens: int = 0
    """Of every document, tokens that no loss counts."""
    is_per_token: bool = False
    """Whether every token's error is divided by its own square."""
    optimizer: OptimizerName = "adamw"
    """muon trains matrices by `train/muon.py`, vectors by AdamW."""
    precision: Precision = "fp32"
    """bf16: products in bf16; weights, sums, the residual stream and losses in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainee:
    """What learns: a candidate in its layer, or a layer's mixer and ffn together."""

    layer: int
    block: Block
    """The whole layer with it."""
    parts: tuple[Part, ...]
    """What of the block learns."""

    @property
    def name(self) -> str:
        """A name fit for files: a candidate's own, or ``layer-03-block-linear-ffn-96``."""
        if len(self.parts) == 1:
            variant = getattr(self.block, self.parts[0])
            return Candidate(layer=self.layer, part=self.parts[0], variant=variant).name
        return f"layer-{self.layer:02d}-block-{variant_name(self.block.mixer)}-{variant_name(self.block.ffn)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBatch:
    """One layer of the parent on one batch: what enters, what is between mixer and ffn, what leaves."""

    x_BTD: Tensor
    mid_BTD: Tensor
    y_BTD: Tensor
    output_BT: Tensor
    """Mean square of what leaves."""
    delta_BT: Tensor
    """Mean square of what the layer adds."""
    counts_BT: Tensor
    """1 where a token counts, else 0."""
    context: dict[str, Any]
    """What the layer is given beside the hidden state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What first weights are made of beside the parent's own."""

    seen: Seen
    """What text has shown of the layer."""
    init: InitSettings
    starts: Mapping[Candidate, Path]
    """Files of candidates that were trained alone, for pairs to begin with."""


def needs_training(parent: Model, candidate: Candidate) -> bool:
    """Whether a candidate has weights of its own: it is not nothing, nor what the parent has there."""
    own = getattr(parent.layers[candidate.layer], candidate.part)
    return not isinstance(candidate.variant, NoOp) and candidate.variant != own


def trainee_of(parent: Model, candidate: Candidate) -> Trainee:
    """A candidate as what learns: alone, the other part being the parent's."""
    block = replace(parent.layers[candidate.layer], **{candidate.part: candidate.variant})
    return Trainee(layer=candidate.layer, block=block, parts=(candidate.part,))


def pair_needs_training(parent: Model, layer: int, block: Block) -> bool:
    """Whether a layer's mixer and ffn are to learn together: not the parent's two, nor two that are nothing.

    One part may be the parent's own: it then learns too, from the parent's weights. So an ffn of the parent's finds
    its way behind no mixer.
    """
    is_nothing = isinstance(block.mixer, NoOp) and isinstance(block.ffn, NoOp)
    return block != parent.layers[layer] and not is_nothing


def first_weights(
    model: PreTrainedModel,
    parent: Model,
    trainee: Trainee,
    known: Known,
) -> dict[str, Tensor]:
    """The weights before training, by their names in the layer: from the parent's layer, or from trained candidates.

    Args:
        model: the parent.
        parent: its spec.
        trainee: what is to learn.
        known: what they begin from.
    """
    own = model.model.layers[trainee.layer]
    weights: dict[str, Tensor] = {}
    for part in trainee.parts:
        variant = getattr(trainee.block, part)
        candidate = Candidate(layer=trainee.layer, part=part, variant=variant)
        if candidate in known.starts:
            found = read_tensors(known.starts[candidate])
        elif variant == getattr(parent.layers[trainee.layer], part):
            found = {name: tensor.clone() for name, tensor in part_weights(own, part).items()}
        elif part == "mixer":
            found = mixer_weights(parent, own.state_dict(), variant, known.seen, known.init)
        else:
            found = ffn_weights(own.state_dict(), variant, known.seen, known.init)
        weights |= {name: tensor.to(model.device) for name, tensor in found.items()}
    return weights


def student_layer(model: PreTrainedModel, parent: Model, trainee: Trainee, weights: dict[str, Tensor]) -> nn.Module:
    """The parent's layer with what learns in place; the rest is the parent's own and frozen."""
    if len(trainee.parts) == 1:
        [part] = trainee.parts
        candidate = Candidate(layer=trainee.layer, part=part, variant=getattr(trainee.block, part))
        layer = layer_with(model, parent, candidate, weights)
    else:
        layers = (*parent.layers[: trainee.layer], trainee.block, *parent.layers[trainee.layer + 1 :])
        config = child_config(replace(parent, layers=layers), model.config)
        with torch.device("meta"):
            layer = build_layer(type(model.model.layers[trainee.layer]), config, trainee.layer)
        layer.load_state_dict(weights, assign=True)
        layer.eval()
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name in weights)
    return layer


@torch.no_grad()
def look(walk: Walk, layer: int, x_BTD: Tensor, counts_BT: Tensor) -> LayerBatch:
    """Runs one layer of the parent."""
    mid_BTD = walk.mix(layer, x_BTD)
    y_BTD = walk.feed(layer, mid_BTD)
    return LayerBatch(
        x_BTD=x_BTD,
        mid_BTD=mid_BTD,
        y_BTD=y_BTD,
        output_BT=y_BTD.square().mean(dim=-1),
        delta_BT=(y_BTD - x_BTD).square().mean(dim=-1),
        counts_BT=counts_BT,
        context=walk.context(layer, x_BTD),
    )


def precision_of(settings: BldSettings, device: torch.device) -> torch.autocast:
    """Runs products in the precision asked for; a context manager."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16")


def run_trainee(walk: Walk, trainee: Trainee, layer: nn.Module, seen: LayerBatch) -> Tensor:
    """The layer's output with what learns in place, ŷ_BTD."""
    if trainee.parts == ("ffn",):
        return walk.feed(trainee.layer, seen.mid_BTD, layer)
    return layer(seen.x_BTD, **seen.context)


def counts_of(batch: Batch, skip_first_tokens: int) -> Tensor:
    """Which tokens count, as 1 and 0: not the first so many of a document, or of a window that counts as one."""
    if batch.segments_BT is None:
        places_T = torch.arange(batch.ids_BT.shape[1], device=batch.ids_BT.device)
        return (places_T >= skip_first_tokens).float().expand(batch.ids_BT.shape)
    return (positions_within(batch.segments_BT) >= skip_first_tokens).float()


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the model is."""
    segments_BT = None if batch.segments_BT is None else batch.segments_BT.to(device)
    return Batch(ids_BT=batch.ids_BT.to(device), segments_BT=segments_BT)


def squared_error(output_BTD: Tensor, seen: LayerBatch) -> Tensor:
    """The mean square of what is wrong with each token."""
    return (output_BTD - seen.y_BTD).square().mean(dim=-1)


def normalised(error_BT: Tensor, seen: LayerBatch, loss: Loss, is_per_token: bool = False) -> Tensor:
    """The error as a share of the residual stream, or of what the layer adds to it."""
    norm_BT = seen.output_BT if loss == "output" else seen.delta_BT
    least = torch.finfo(torch.float32).tiny  # a token to which the layer adds nothing
    if is_per_token:
        return (error_BT / norm_BT.clamp_min(least) * seen.counts_BT).sum() / seen.counts_BT.sum().clamp_min(1)
    return (error_BT * seen.counts_BT).sum() / (norm_BT * seen.counts_BT).sum().clamp_min(least)
