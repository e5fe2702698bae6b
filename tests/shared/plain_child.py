"""A child that every engine loads."""

from blockwright.spec import (
    Attention,
    Block,
    GatedFFN,
    Model,
    Rope,
)

PLAIN = Model(
    family="llama",
    vocab_size=100,
    hidden_size=64,
    num_heads=4,
    head_dim=16,
    max_positions=128,
    norm_eps=1e-5,
    rope=Rope(theta=1e4),
    activation="silu",
    has_tied_embeddings=True,
    has_qkv_bias=False,
    has_output_bias=False,
    has_ffn_bias=False,
    has_qk_norm=False,
    layers=(Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=256)),) * 3,
)
YARN = (("factor", 4.0), ("original_max_position_embeddings", 32.0))
