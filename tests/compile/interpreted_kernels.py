"""Our kernels in Triton's interpreter beside their naive twins; `test_kernels_interpreted.py` runs this file.

Triton interprets everything or nothing, and decides so when it is imported: hence a process of its own.
"""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import triton.language as tl  # pyright: ignore[reportMissingImports]
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle  # pyright: ignore[reportMissingImports]

from blockwright.compile import kernels
from blockwright.compile.kernel_ops import NUMBERS, int4_linear, sparse_decode, sparse_prefill
from blockwright.compile.kernel_twins import far_tokens, int4_linear_twin, sparse_decode_twin, sparse_prefill_twin
from blockwright.compile.planar import pack_planar
from blockwright.compile.triton_launch import launch, runs_kernels

TYPES = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Two roundings to the type, as shares of the largest value."""


@pytest.fixture(autouse=True)
def _bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bf16 as its bits, and adds and multiplies these; here it computes in fp32 and rounds."""
    plain_binary, plain_dot = InterpreterBuilder.binary_op, InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle(handle.data.view(ml_dtypes.bfloat16).astype(np.float32), tl.float32)

    def binary(self: Any, left: Any, right: Any, op: Any) -> Any:
        made = plain_binary(self, widened(left), widened(right), op)
        is_bf16 = tl.bfloat16 in (left.dtype.scalar, right.dtype.scalar) and made.data.dtype == np.float32
        return TensorHandle(made.data.astype(ml_dtypes.bfloat16).view(np.uint16), tl.bfloat16) if is_bf16 else made

    def dot(self: Any, left: Any, right: Any, *others: Any) -> Any:
        return plain_dot(self, widened(left), widened(right), *others)

    monkeypatch.setattr(InterpreterBuilder, "binary_op", binary)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


def _is_near(found: Tensor, expected: Tensor) -> bool:
    assert found.dtype == expected.dtype and found.shape == expected.shape
    error = (found.float() - expected.float()).abs().max()
    return bool(error <= TOLERANCE[found.dtype] * expected.float().abs().max().clamp(min=1e-3))


def _random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _int4(num_inputs: int, num_outputs: int, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    codes_KN = np.random.default_rng(0).integers(-8, 8, (num_inputs, num_outputs)).astype(np.int8)
    scales_NG = _random(num_outputs, num_inputs // group, seed=1, dtype=dtype).abs() * 0.1 + 0.01
    return torch.from_numpy(pack_planar(codes_KN, group)), scales_NG


def test_the_kernels_run_here() -> None:
    assert runs_kernels(torch.zeros(1))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("num_rows", "num_outputs", "num_splits"), [(1, 70, 3), (3, 33, 1), (8, 65, 2), (17, 64, 0)])
def test_int4_products(dtype: torch.dtype, group: int, num_rows: int, num_outputs: int, num_splits: int) -> None:
    x_MK = _random(num_rows, 5 * group, seed=0, dtype=dtype)
    codes_NK, scales_NG = _int4(5 * group, num_outputs, group, dtype)
    expected = int4_linear_twin(x_MK, codes_NK, scales_NG)
    assert _is_near(int4_linear(x_MK, codes_NK, scales_NG, num_splits), expected)


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from(TYPES),
    group=st.sampled_from([32, 128]),
    num_rows=st.integers(1, 70),
    num_groups=st.integers(1, 9),
    num_outputs=st.integers(1, 140),
    num_splits=st.integers(1, 12),
)
def test_int4_products_of_any_shape(
    dtype: torch.dtype, group: int, num_rows: int, num_groups: int, num_outputs: int, num_splits: int
) -> None:
    x_MK = _random(num_rows, num_groups * group, seed=2, dtype=dtype)
    codes_NK, scales_NG = _int4(num_groups * group, num_outputs, group, dtype)
    expected = int4_linear_twin(x_MK, codes_NK, scales_NG)
    assert _is_near(int4_linear(x_MK, codes_NK, scales_NG, num_splits), expected)


def test_leading_sides_of_activations_are_kept() -> None:
    codes_NK, scales_NG = _int4(64, 10, 32, torch.float16)
    x = _random(2, 3, 64, seed=3, dtype=torch.float16)
    expected = int4_linear_twin(x.reshape(6, 64), codes_NK, scales_NG).reshape(2, 3, 10)
    assert _is_near(int4_linear(x, codes_NK, scales_NG), expected)


@pytest.mark.parametrize("num_rows", [1, 3])
def test_signed_bytes_are_the_same_codes(num_rows: int) -> None:
    codes_NK, scales_NG = _int4(64, 10, 32, torch.float16)
    x_MK = _random(num_rows, 64, seed=3, dtype=torch.float16)
    expected = int4_linear_twin(x_MK, codes_NK, scales_NG)
    assert _is_near(int4_linear(x_MK, codes_NK.view(torch.int8), scales_NG), expected)
    assert torch.equal(int4_linear_twin(x_MK, codes_NK.view(torch.int8), scales_NG), expected)


def test_operands_need_not_lie_in_order() -> None:
    codes_NK, scales_NG = _int4(64, 10, 32, torch.float16)
    x_MK = _random(64, 3, seed=3, dtype=torch.float16).T
    turned = codes_NK.T.contiguous().T, scales_NG.T.contiguous().T
    assert _is_near(int4_linear(x_MK, *turned), int4_linear_twin(x_MK, codes_NK, scales_NG))
    q, k, v = _cache(2, 2, 2, 20, 32, torch.float16)
    counts_B = torch.tensor([[20, 0], [7, 0]], dtype=torch.int32)[:, 0]
    across = k.transpose(1, 2).contiguous().transpose(1, 2)
    assert not any(each.is_contiguous() for each in (x_MK, *turned, across, counts_B))
    assert _is_near(sparse_decode(q, across, v, counts_B), sparse_decode_twin(q, k, v, counts_B, 32**-0.5))


def test_the_kernel_for_one_row_does_many_too() -> None:
    codes_NK, scales_NG = _int4(96, 40, 32, torch.float16)
    x_MK = _random(5, 96, seed=4, dtype=torch.float16)
    out = torch.full((5, 40), torch.nan, dtype=torch.float16)
    sizes = {"num_rows": 5, "num_outputs": 40, "num_groups": 3, "groups_per_split": 3, "num_splits": 1}
    given_tensors = {"x": x_MK, "codes": codes_NK, "scales": scales_NG, "out": out}
    launch(kernels.int4_vector("fp16", 32, is_split=False), given_tensors | sizes)
    assert _is_near(out, int4_linear_twin(x_MK, codes_NK, scales_NG))


def _cache(batch: int, heads: int, kv: int, slots: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    k, v = (_random(batch, kv, slots, dim, seed=seed, dtype=dtype) for seed in (5, 6))
    return _random(batch, heads, dim, seed=7, dtype=dtype), k, v


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from(TYPES),
    kv_heads=st.integers(1, 3),
    heads_per_kv=st.sampled_from([1, 2, 3, 4, 8, 17]),
    head_dim=st.sampled_from([16, 40, 64, 80, 128]),
    num_slots=st.integers(1, 200),
    num_splits=st.integers(1, 5),
    data=st.data(),
)
def test_decode_over_any_cache(
    dtype: torch.dtype,
    kv_heads: int,
    heads_per_kv: int,
    head_dim: int,
    num_slots: int,
    num_splits: int,
    data: st.DataObject,
) -> None:
    counts_B = torch.tensor(data.draw(st.lists(st.integers(0, num_slots), min_size=1, max_size=3)), dtype=torch.int32)
    q, k, v = _cache(len(counts_B), kv_heads * heads_per_kv, kv_heads, num_slots, head_dim, dtype)
    for each in (k, v):  # what stands in slots that are not filled must not matter
        for row, count in zip(each, counts_B.tolist(), strict=True):
            row[:, count:] = torch.inf
    expected = sparse_decode_twin(q, k.nan_to_num(posinf=0), v.nan_to_num(posinf=0), counts_B, head_dim**-0.5)
    assert _is_near(sparse_decode(q, k, v, counts_B, None, num_splits), expected)


def test_a_sequence_without_tokens_gets_zeros() -> None:
    q, k, v = _cache(2, 2, 1, 70, 32, torch.float16)
    counts_B = torch.tensor([0, 70], dtype=torch.int32)
    for num_splits in (1, 3):
        out = sparse_decode(q, k, v, counts_B, None, num_splits)
        assert out[0].abs().max() == 0 and out[1].abs().max() > 0


def test_scores_are_scaled_as_asked() -> None:
    q, k, v = _cache(1, 4, 2, 70, 32, torch.float16)
    counts_B = torch.tensor([70], dtype=torch.int32)
    assert _is_near(sparse_decode(q, k, v, counts_B, 0.5, 2), sparse_decode_twin(q, k, v, counts_B, 0.5))
    assert not _is_near(sparse_decode(q, k, v, counts_B, 0.5, 2), sparse_decode_twin(q, k, v, counts_B, 0.1))


def _check_prefill(q: Tensor, k: Tensor, v: Tensor, is_far_BS: Tensor, starts_B: Tensor, num_neighbours: int) -> None:
    far = far_tokens(is_far_BS)
    found = sparse_prefill(q, k, v, *far, starts_B, num_neighbours)
    assert _is_near(found, sparse_prefill_twin(q, k, v, far, starts_B, num_neighbours, q.shape[-1] ** -0.5))


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from(TYPES),
    kv_heads=st.integers(1, 2),
    heads_per_kv=st.sampled_from([1, 2, 3]),
    head_dim=st.sampled_from([32, 64, 80]),
    num_slots=st.integers(1, 300),
    num_neighbours=st.integers(1, 350),
    far_share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    data=st.data(),
)
def test_prefill_of_any_piece(
    dtype: torch.dtype,
    kv_heads: int,
    heads_per_kv: int,
    head_dim: int,
    num_slots: int,
    num_neighbours: int,
    far_share: float,
    data: st.DataObject,
) -> None:
    num_queries = data.draw(st.integers(1, min(num_slots, 150)))
    starts = data.draw(st.lists(st.integers(0, num_slots - num_queries), min_size=1, max_size=2))
    k, v = (_random(len(starts), kv_heads, num_slots, head_dim, seed=seed, dtype=dtype) for seed in (8, 9))
    q = _random(len(starts), kv_heads * heads_per_kv, num_queries, head_dim, seed=10, dtype=dtype)
    is_far_BS = torch.rand(len(starts), num_slots, generator=torch.Generator().manual_seed(11)) < far_share
    _check_prefill(q, k, v, is_far_BS, torch.tensor(starts, dtype=torch.int32), num_neighbours)


def test_tiles_that_no_query_sees_are_not_read() -> None:
    k = _random(1, 1, 600, 32, seed=12, dtype=torch.float16)
    q = _random(1, 1, 8, 32, seed=13, dtype=torch.float16)
    is_far_BS = torch.zeros(1, 600, dtype=torch.bool)
    is_far_BS[:, [0, 1, 2, 77]] = True
    read = is_far_BS[0].clone()
    read[544:600] = True  # the neighbours of the first query begin within the tile of 32 from 544 on
    k[:, :, ~read] = torch.nan  # what is read and masked would still be seen: 0 times NaN
    far = far_tokens(is_far_BS)
    found = sparse_prefill(q, k, k, *far, torch.tensor([592], dtype=torch.int32), 40)
    assert found.isfinite().all()


def test_a_prompt_read_in_pieces_is_as_one_read_whole() -> None:
    k, v = (_random(1, 2, 160, 32, seed=seed, dtype=torch.float16) for seed in (14, 15))
    q = _random(1, 4, 160, 32, seed=16, dtype=torch.float16)
    is_far_BS = torch.rand(1, 160, generator=torch.Generator().manual_seed(17)) < 0.2
    far = far_tokens(is_far_BS)
    whole = sparse_prefill(q, k, v, *far, torch.zeros(1, dtype=torch.int32), 24)
    for start, end in ((0, 70), (70, 160)):
        piece = sparse_prefill(q[:, :, start:end], k, v, *far, torch.tensor([start], dtype=torch.int32), 24)
        assert _is_near(piece, whole[:, :, start:end])


def test_prefill_and_decode_agree_on_the_last_token() -> None:
    """A cache compacted to what the mask shows must give what the mask gives."""
    k, v = (_random(1, 1, 200, 64, seed=seed, dtype=torch.float16) for seed in (18, 19))
    q = _random(1, 2, 1, 64, seed=20, dtype=torch.float16)
    is_far_BS = torch.rand(1, 200, generator=torch.Generator().manual_seed(21)) < 0.15
    is_far_BS[:, :3] = True
    by_mask = sparse_prefill(q, k, v, *far_tokens(is_far_BS), torch.tensor([199], dtype=torch.int32), 30)
    kept = is_far_BS[0] | (torch.arange(200) > 199 - 30)
    compacted = [torch.cat([each[:, :, kept], each[:, :, ~kept]], dim=2) for each in (k, v)]
    count_B = torch.tensor([int(kept.sum())], dtype=torch.int32)
    assert _is_near(sparse_decode(q[:, :, 0], *compacted, count_B, None, 2), by_mask[:, :, 0])


@pytest.mark.parametrize("dtype", TYPES)
def test_torch_takes_them_as_operators(dtype: torch.dtype) -> None:
    codes_NK, scales_NG = _int4(64, 10, 32, dtype)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(int4_linear, (_random(2, 64, seed=22, dtype=dtype), codes_NK, scales_NG), test_utils=checks)
    q, k, v = _cache(1, 2, 1, 20, 32, dtype)
    counts_B = torch.tensor([20], dtype=torch.int32)
    torch.library.opcheck(sparse_decode, (q, k, v, counts_B), test_utils=checks)
    far = far_tokens(torch.ones(1, 20, dtype=torch.bool))
    whole = (q[:, :, None], k, v, *far, torch.tensor([19], dtype=torch.int32), 4)
    torch.library.opcheck(sparse_prefill, whole, test_utils=checks)
    assert dtype in NUMBERS
