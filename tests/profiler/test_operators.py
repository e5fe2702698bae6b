"""Operators: counts checked against sums written out, and against the counts of parameters."""

from dataclasses import replace

import pytest

from blockwright.count import ffn_matrices, matrix_bytes, mixer_matrices
from blockwright.hw_profiles.profile import Point
from blockwright.llama import llama
from blockwright.profiler import gpu_operators
from blockwright.profiler.operators import Attend, Matmul, ffn_operators, mixer_operators, shared_operators
from blockwright.spec import (
    FP32,
    Attention,
    Block,
    Format,
    FormatName,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    NoOp,
    Window,
)

MODEL = llama(
    (Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=64)),) * 2,
    hidden_size=48,
    num_heads=4,
    head_dim=10,
    vocab_size=80,
    max_positions=64,
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


def _naive(point: Point, window: int, *, is_masked_work_done: bool) -> tuple[int, int]:
    """Pairs that one head works on, and slots that are read, one token after another."""
    pairs, read = 0, set()
    for token in range(point.slots - point.new_tokens, point.slots):
        seen = range(max(0, token + 1 - window), token + 1)
        pairs += min(window, point.slots) if is_masked_work_done else len(seen)
        read |= set(seen)
    return point.batch * pairs, point.batch * len(read)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("new_tokens", "slots", "window"), [(1, 8, 99), (3, 8, 99), (8, 8, 99), (1, 8, 5), (8, 8, 5), (3, 8, 4), (3, 8, 8)]
)
def test_torch_attends_causally_over_a_cache_of_its_weights_format(
    name: FormatName, new_tokens: int, slots: int, window: int
) -> None:
    point = Point(batch=2, new_tokens=new_tokens, slots=slots)
    mixer = Attention(num_kv_heads=2, reach=Window(num_tokens=window), weights=Format(name=name))
    [attend] = [each for each in mixer_operators(MODEL, mixer, point) if isinstance(each, Attend)]
    pairs, read = _naive(point, window, is_masked_work_done=False)
    assert attend.flop == 2 * 2 * pairs * MODEL.num_heads * MODEL.head_dim
    rows = 2 * new_tokens * MODEL.num_heads * MODEL.head_dim
    if window >= slots or new_tokens in (1, slots):  # else the tokens that a chunk's first ones reach back to are more
        assert attend.num_bytes == 2 * (2 * rows + 2 * read * 2 * MODEL.head_dim)


def test_a_window_that_reaches_before_a_chunk_is_never_counted_short() -> None:
    for window in range(1, 9):
        for new_tokens in range(1, 9):
            point = Point(batch=2, new_tokens=new_tokens, slots=8)
            mixer = Attention(num_kv_heads=2, reach=Window(num_tokens=window), weights=Format(name="bf16"))
            [attend] = [each for each in mixer_operators(MODEL, mixer, point) if isinstance(each, Attend)]
            least, _ = _naive(point, window, is_masked_work_done=False)
            most, _ = _naive(point, window, is_masked_work_done=True)
            assert least <= attend.pairs <= most


@pytest.mark.parametrize("weights", [FP32, Format(name="int4", group_size=32), Format(name="int8", group_size=32)])
def test_an_engine_works_on_all_slots_of_a_cache_in_fp32(weights: Format) -> None:
    mixer = Attention(num_kv_heads=2, weights=weights)
    [attend] = [each for each in mixer_operators(MODEL, mixer, _POINT) if isinstance(each, Attend)]
    pairs, _ = _naive(_POINT, 99, is_masked_work_done=True)
    assert attend.flop == 2 * 2 * pairs * MODEL.num_heads * MODEL.head_dim
    assert attend.num_bytes == 4 * (2 * 2 * 3 * MODEL.num_heads * MODEL.head_dim + 2 * 2 * 8 * 2 * MODEL.head_dim)


def test_a_step_in_torch_counts_as_the_operator_that_the_gpu_is_timed_at() -> None:
    mixer = Attention(num_kv_heads=2, weights=Format(name="bf16"))
    [attend] = [
        each
        for each in mixer_operators(MODEL, mixer, Point(batch=2, new_tokens=1, slots=64))
        if isinstance(each, Attend)
    ]
    assert attend == gpu_operators.attend(2, 1, 64, (4, 2, 10))


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


def test_a_head_in_a_format_of_its_own_is_read_in_it() -> None:
    narrow = Format(name="int4", group_size=32)
    (rows, head), (plain_rows, _) = (
        shared_operators(model, _POINT) for model in (replace(MODEL, head_weights=narrow), MODEL)
    )
    assert isinstance(head, Matmul)
    assert head.weight_bytes == matrix_bytes(MODEL.hidden_size, MODEL.vocab_size, narrow)
    assert rows == plain_rows
