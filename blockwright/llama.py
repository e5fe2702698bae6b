"""Models of Llama's kind, by the numbers in which they differ: no biases, rotated heads, gated ffns."""

from blockwright.spec import Attention, Block, GatedFFN, Model, Rope


def llama(
    layers: tuple[Block, ...],
    *,
    vocab_size: int,
    hidden_size: int,
    num_heads: int,
    head_dim: int,
    max_positions: int,
    rope_theta: float = 1e4,
    has_tied_embeddings: bool = True,
) -> Model:
    """A Llama of these layers."""
    return Model(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_heads=num_heads,
        head_dim=head_dim,
        max_positions=max_positions,
        norm_eps=1e-5,
        rope=Rope(theta=rope_theta),
        activation="silu",
        has_tied_embeddings=has_tied_embeddings,
        has_qkv_bias=False,
        has_output_bias=False,
        has_ffn_bias=False,
        has_qk_norm=False,
        layers=layers,
    )


LLAMA_8B = llama(
    (Block(mixer=Attention(num_kv_heads=8), ffn=GatedFFN(width=14336)),) * 32,
    vocab_size=128256,
    hidden_size=4096,
    num_heads=32,
    head_dim=128,
    max_positions=8192,
    rope_theta=5e5,
    has_tied_embeddings=False,
)
"""Meta-Llama-3-8B's config.json."""
