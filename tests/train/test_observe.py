"""All layers are observed in one pass, each on what the layers before it make of the text."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from blockwright.spec import Model
from blockwright.train.importance import LayerSums, Wanted, watch
from blockwright.train.initialise import InitSettings, conclude
from blockwright.train.observe import observe
from blockwright.train.windows import Batch

MakeParent = Callable[..., tuple[PreTrainedModel, Model]]
IDS_NT = torch.randint(0, 64, (12, 10), generator=torch.Generator().manual_seed(9))
INIT = InitSettings(channels="fitted", kv_heads="importance", linear="least-squares")
WIDTHS = {0: [16], 2: [8, 40]}


@torch.no_grad()
def test_each_layer_is_observed_as_in_a_forward_of_the_whole_model(make_parent: MakeParent) -> None:
    model, parent = make_parent()
    batches = [Batch(ids_BT=ids_BT, segments_BT=None) for ids_BT in IDS_NT.split(5)]
    found = list(observe(model, parent, batches, INIT, WIDTHS))
    assert len(found) == 3
    for layer, seen in enumerate(found):
        sums = LayerSums(Wanted(moments=True, kv_shares=True, linear=True), 2)
        with watch(model.model.layers[layer], sums):
            model(IDS_NT)
        naive = conclude(parent, model.model.layers[layer].state_dict(), sums, INIT, WIDTHS.get(layer, ())).tensors()
        assert seen.tensors().keys() == naive.keys()
        for name, tensor in naive.items():
            torch.testing.assert_close(seen.tensors()[name], tensor, rtol=1e-3, atol=1e-4)


def test_documents_in_a_window_are_observed_apart(make_parent: MakeParent) -> None:
    model, parent = make_parent()
    packed = Batch(ids_BT=IDS_NT.view(6, 20), segments_BT=torch.arange(2).repeat_interleave(10).expand(6, 20))
    alone = Batch(ids_BT=IDS_NT, segments_BT=None)
    together, apart = (list(observe(model, parent, [batch], INIT, WIDTHS)) for batch in (packed, alone))
    for left, right in zip(together, apart, strict=True):
        for name, tensor in left.tensors().items():
            torch.testing.assert_close(tensor, right.tensors()[name], rtol=1e-3, atol=1e-4)
