"""Decoders with a part of every kind, for the tests of whatever builds, writes or measures them."""

from blockwright.spec import Attention, Block, Full, GatedFFN, LinearFFN, LinearMixer, NoOp, Reach, Rope

LLAMA3 = Rope(
    theta=5e5,
    scaling="llama3",
    parameters=(
        ("factor", 8.0),
        ("high_freq_factor", 4.0),
        ("low_freq_factor", 1.0),
        ("original_max_position_embeddings", 32.0),
    ),
)
"""Llama 3's rotation, stretched from so short a context that the positions of a test reach beyond it."""


def every_kind(first: int, second: int, last: int, reach: Reach | None = None) -> tuple[Block, ...]:
    """Layers of every kind of part, with ffns of three widths; the last attention reaches as far as is given."""
    return (
        Block(mixer=NoOp(), ffn=GatedFFN(width=first)),
        Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=second)),
        Block(mixer=LinearMixer(), ffn=LinearFFN()),
        Block(mixer=Attention(num_kv_heads=1), ffn=NoOp()),
        Block(mixer=NoOp(), ffn=NoOp()),
        Block(mixer=Attention(num_kv_heads=2, reach=reach or Full()), ffn=GatedFFN(width=last)),
    )
