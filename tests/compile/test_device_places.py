"""Places by torch against their twin of numpy."""

import numpy as np
import pytest
import torch

from blockwright.compile.device_places import place, place_inputs, reaches_of
from blockwright.compile.places import places, reach_by_mask
from blockwright.llama import llama
from blockwright.spec import Attention, Block, GatedFFN, NoOp, Window

MODEL = llama(
    (
        Block(mixer=Attention(num_kv_heads=2), ffn=NoOp()),
        Block(mixer=Attention(num_kv_heads=1, reach=Window(num_tokens=3)), ffn=GatedFFN(width=32)),
        Block(mixer=Attention(num_kv_heads=2, reach=Window(num_tokens=9)), ffn=NoOp()),
    ),
    hidden_size=32,
    num_heads=2,
    head_dim=16,
    vocab_size=20,
    max_positions=64,
)


@pytest.mark.parametrize("num_tokens", [1, 5])
def test_places_are_those_of_numpy(num_tokens: int) -> None:
    starts_B, slots = np.array([0, 7, 30]), 40
    inputs = place_inputs(MODEL, (3, num_tokens, slots), torch.device("cpu"))
    place(inputs, reaches_of(MODEL), torch.from_numpy(starts_B))
    expected = places(reach_by_mask(MODEL), starts_B, num_tokens, np.arange(slots))
    assert inputs.keys() - {"ids", "last"} == expected.keys() - {"last_slot", "total_length"}
    for name in inputs.keys() - {"ids", "last"}:
        np.testing.assert_array_equal(inputs[name].numpy(), expected[name](), err_msg=name)
