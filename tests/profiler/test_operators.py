"""Operators: counts checked against sums written out, and against the counts of parameters."""

from dataclasses import replace

from blockwright.count import ffn_matrices, mixer_matrices
from blockwright.hw_profiles.profile import Point
from blockwright.profiler.operators import Attend, Matmul, ffn_operators, mixer_operators, shared_operators
from blockwright.spec import (
    Attention,
    Block,
    Format,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    Rope,
    Window,
)

MODEL = Model(
    family="llama",
    vocab_size=80,
    hidden_size=48,
    num_heads=4,
    head_dim=10,
    max_positions=64,
    norm_eps=1e-5,
    rope=Rope(theta=1e4),
    activation="silu",
    has_tied_embeddings=True,
    has_qkv_bias=False,
    has_output_bias=False,
    has_ffn_bias=False,
    has_qk_norm=False,
    layers=(Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=64)),) * 2,
)
_POINT = Point(batch=2, new_tokens=3, slots=8)


def _matmul_shapes(operators: list) -> list[tuple[int, int]]:
    return [(each.inputs, each.outputs) for each in operators if isinstance(each, Matmul)]


def test_every_matrix_is_one_product_over_all_new_tokens() -> None:
    for mixer in (Attention(num_kv_heads=1), LinearMixer()):
        operators = mixer_operators(MODEL, mixer, _POINT)
        assert _matmul_shapes(operators) == mixer_matrices(MODEL, mixer)
    for ffn in (GatedFFN(width=24), LinearFFN()):
        operators = ffn_operators(MODEL, ffn, _POINT)
        assert _matmul_shapes(operators) == ffn_matrices(MODEL, ffn)
        assert all(each.rows == 6 for each in operators if isinstance(each, Matmul))


def test_nothing_does_nothing() -> None:
    assert mixer_operators(MODEL, NoOp(), _POINT) == ffn_operators(MODEL, NoOp(), _POINT) == []


def test_attention_is_counted_over_slots_or_its_window() -> None:
    [full] = [each for each in mixer_operators(MODEL, Attention(num_kv_heads=1), _POINT) if isinstance(each, Attend)]
    assert full.flop == 2 * 2 * (2 * 3 * 8) * MODEL.num_heads * MODEL.head_dim
    assert full.num_bytes == 4 * (2 * 2 * 3 * MODEL.num_heads * MODEL.head_dim + 2 * 2 * 8 * MODEL.head_dim)
    near = Attention(num_kv_heads=1, reach=Window(num_tokens=5))
    [windowed] = [each for each in mixer_operators(MODEL, near, _POINT) if isinstance(each, Attend)]
    assert windowed == replace(full, context=5)


def test_causal_pairs_are_counted_one_by_one() -> None:
    attend = Attend(
        batch=2,
        new_tokens=3,
        context=7,
        num_heads=1,
        num_kv_heads=1,
        head_dim=1,
        bytes_per_value=2,
        kv_bytes_per_value=1,
    )
    assert attend.pairs == 2 * (5 + 6 + 7)
    assert replace(attend, is_causal=False).pairs == 2 * (7 + 7 + 7)


def test_an_integer_matrix_counts_its_scales() -> None:
    weights = Format(name="int4", group_size=32)
    [first, *_] = [
        e for e in ffn_operators(MODEL, GatedFFN(width=32, weights=weights), _POINT) if isinstance(e, Matmul)
    ]
    groups = -(-MODEL.hidden_size // 32)
    assert first.weight_bytes == groups * 32 * (32 // 2 + 4)
    assert first.num_bytes == first.weight_bytes + 4 * 6 * (MODEL.hidden_size + 32)
    assert first.flop == 2 * 6 * MODEL.hidden_size * 32


def test_the_head_is_for_one_token_of_each_sequence() -> None:
    [head] = [each for each in shared_operators(MODEL, _POINT) if isinstance(each, Matmul)]
    assert (head.rows, head.inputs, head.outputs) == (2, MODEL.hidden_size, MODEL.vocab_size)
