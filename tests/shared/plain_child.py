"""A child that every engine loads."""

from blockwright.llama import llama
from blockwright.spec import (
    Attention,
    Block,
    GatedFFN,
)

PLAIN = llama(
    (Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=256)),) * 3,
    hidden_size=64,
    num_heads=4,
    head_dim=16,
    vocab_size=100,
    max_positions=128,
)
YARN = (("factor", 4.0), ("original_max_position_embeddings", 32.0))
