"""Text and settings of small distillations."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from blockwright.spec import Attention, Block, GatedFFN, Model, NoOp
from blockwright.train.distill import GkdSettings
from blockwright.train.windows import Batch

MakeParent = Callable[..., tuple[PreTrainedModel, Model]]
BATCHES = [Batch(ids_BT=ids) for ids in torch.randint(0, 64, (8, 4, 12), generator=torch.Generator().manual_seed(5))]
HELD_OUT = [Batch(ids_BT=torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(6)))]
SETTINGS = GkdSettings(learning_rate=3e-3, checkpoint_steps=3)
BLOCKS = (
    Block(mixer=NoOp(), ffn=GatedFFN(width=16)),
    Block(mixer=Attention(num_kv_heads=1), ffn=GatedFFN(width=48)),
)
Pair = Callable[[], tuple[PreTrainedModel, PreTrainedModel]]
SEGMENTED = Batch(
    ids_BT=BATCHES[0].ids_BT,
    segments_BT=torch.tensor([[0] * 12, [1] * 5 + [2] * 7, [3] * 4 + [-1] * 8, [4] * 11 + [5]]),
)
