"""What text shows of every layer of the parent, one layer after the other: large sums are there for one only."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from blockwright.model.walk import Walk
from blockwright.spec import Attention, Model
from blockwright.train.importance import LayerSums, watch
from blockwright.train.initialise import InitSettings, Seen, conclude
from blockwright.train.windows import Batch


@torch.no_grad()
def observe(
    model: PreTrainedModel,
    parent: Model,
    batches: Sequence[Batch],
    init: InitSettings,
    widths: Mapping[int, Sequence[int]],
) -> Iterator[Seen]:
    """Runs the parent on some text and says of each layer in turn what first weights need.

    The hidden states of all batches are kept meanwhile, for one layer at a time.

    Args:
        model: the parent.
        parent: its spec.
        batches: the text, where the model is.
        init: how candidates begin.
        widths: of the narrower ffns that each layer is offered.
    """
    walks = [Walk(model, batch.segments_BT) for batch in batches]
    states = [walk.embed(batch.ids_BT) for walk, batch in zip(walks, batches, strict=True)]
    for layer, block in enumerate(parent.layers):
        assert isinstance(block.mixer, Attention)
        sums = LayerSums(init.wanted(), block.mixer.num_kv_heads)
        with watch(model.model.layers[layer], sums):
            for index, walk in enumerate(walks):  # in place: two layers' states would be twice as much
                states[index] = walk.layer(layer, states[index])
        yield conclude(parent, model.model.layers[layer].state_dict(), sums, init, widths.get(layer, ()))
