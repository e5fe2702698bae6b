"""Triton kernels that multiply activations by int4 weights with one scale per group, widening codes on the way.

Weights are planar: of a group of G inputs, byte j < G/2 holds code j in its lower half and code j + G/2 in its upper,
both counted from 0 for -8 (`planar.pack_planar`). So both halves of a byte meet activations that lie side by side.
Arguments are ordered as TensorRT passes them: inputs, whole numbers, outputs.

Shapes: x (rows, inputs), codes (outputs, inputs / 2), scales (outputs, groups), out (splits, rows, outputs). The grid
is (tiles of outputs, splits of the groups, rows or tiles of rows). With one split, out may be of the activations'
type.
"""

from blockwright.compile.triton_package import tl, triton


@triton.jit
def _widened(codes, dtype: tl.constexpr):
    """0 to 15 as -8 to 7, exactly: set behind the leading bit of 2^m, of which 2^m + 8 is taken off.

    An integer conversion takes as long as several other instructions, and there is one for each weight.
    """
    if dtype == tl.float32:
        return (codes.to(tl.uint32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0  # 2^23
    elif dtype == tl.float16:
        return (codes.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - tl.full([], 1032.0, tl.float16)  # 2^10
    else:
        return (codes.to(tl.uint16) | 0x4300).to(tl.bfloat16, bitcast=True) - tl.full([], 136.0, tl.bfloat16)  # 2^7


@triton.jit
def int4_vector(
    x_ptr,
    codes_ptr,
    scales_ptr,
    num_outputs,
    num_groups,
    groups_per_split,
    out_ptr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One row at a time, in fp32 without tensor cores: sums stay in their threads until the end."""
    HALF: tl.constexpr = GROUP // 2
    split, row = tl.program_id(1), tl.program_id(2)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tl.arange(0, HALF)
    is_output = n < num_outputs
    first = split * groups_per_split
    last = tl.minimum(first + groups_per_split, num_groups)
    x_row = x_ptr + row.to(tl.int64) * num_groups * GROUP
    codes_at = codes_ptr + n.to(tl.int64)[:, None, None] * (num_groups * HALF) + j[None, None, :]
    scales_at = scales_ptr + n.to(tl.int64)[:, None] * num_groups
    sums = tl.zeros([BLOCK_N, BLOCK_G, HALF], tl.float32)
    for start in tl.range(first, last, BLOCK_G, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        group = start + tl.arange(0, BLOCK_G)
        is_group = group < last
        is_weight = is_output[:, None] & is_group[None, :]
        codes = tl.load(codes_at + group[None, :, None] * HALF, mask=is_weight[:, :, None], other=0)
        scales = tl.load(scales_at + group[None, :], mask=is_weight, other=0.0).to(tl.float32)
        x_at = x_row + group[:, None] * GROUP + j[None, :]
        low = tl.load(x_at, mask=is_group[:, None], other=0.0).to(tl.float32)
        high = tl.load(x_at + HALF, mask=is_group[:, None], other=0.0).to(tl.float32)
        wide: tl.constexpr = tl.float32  # pyright: ignore[reportAssignmentType]
        products = _widened(codes & 15, wide) * low[None] + _widened(codes >> 4, wide) * high[None]
        sums += products * scales[:, :, None]
    values = tl.sum(tl.sum(sums, axis=2), axis=1)
    at = out_ptr + (split * tl.num_programs(2) + row).to(tl.int64) * num_outputs + n
    tl.store(at, values.to(out_ptr.dtype.element_ty), mask=is_output)


@triton.jit
def int4_tiles(
    x_ptr,
    codes_ptr,
    scales_ptr,
    num_rows,
    num_outputs,
    num_groups,
    groups_per_split,
    out_ptr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Many rows at once by tensor cores; weights are the left factor, so that few rows fill less than a tile's side."""
    HALF: tl.constexpr = GROUP // 2
    split = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    byte = tl.arange(0, BLOCK_G * HALF)
    is_output, is_row = n < num_outputs, m < num_rows
    first = split * groups_per_split
    last = tl.minimum(first + groups_per_split, num_groups)
    codes_at = codes_ptr + n.to(tl.int64)[:, None] * (num_groups * HALF) + byte[None, :]
    scales_at = scales_ptr + n.to(tl.int64)[:, None] * num_groups
    x_rows = x_ptr + m.to(tl.int64)[None, :] * (num_groups * GROUP)
    x_in_block = (byte // HALF * GROUP + byte % HALF)[:, None]
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(first, last, BLOCK_G):
        group = start + tl.arange(0, BLOCK_G)
        is_weight = is_output[:, None] & (group < last)[None, :]
        scales_NG = tl.load(scales_at + group[None, :], mask=is_weight, other=0.0).to(dtype)
        scales = tl.broadcast_to(scales_NG[:, :, None], [BLOCK_N, BLOCK_G, HALF]).reshape(BLOCK_N, BLOCK_G * HALF)
        is_input = start + byte // HALF < last
        codes = tl.load(codes_at + start * HALF, mask=is_output[:, None] & is_input[None, :], other=0)
        is_x = is_input[:, None] & is_row[None, :]
        x_at = x_rows + start * GROUP + x_in_block
        low, high = tl.load(x_at, mask=is_x, other=0.0), tl.load(x_at + HALF, mask=is_x, other=0.0)
        sums = tl.dot(_widened(codes & 15, dtype) * scales, low, sums)
        sums = tl.dot(_widened(codes >> 4, dtype) * scales, high, sums)
    at = out_ptr + (split * num_rows + m).to(tl.int64)[None, :] * num_outputs + n[:, None]
    tl.store(at, sums.to(out_ptr.dtype.element_ty), mask=is_output[:, None] & is_row[None, :])


@triton.jit
def sum_splits(partial_ptr, num_values, num_splits, out_ptr, BLOCK: tl.constexpr):
    """Adds what splits have found, always in the same order; grid (tiles of values)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_value = at < num_values
    partial_at = partial_ptr + at
    sums = tl.zeros([BLOCK], tl.float32)
    for _ in range(num_splits):
        sums += tl.load(partial_at, mask=is_value, other=0.0)
        partial_at += num_values
    tl.store(out_ptr + at, sums.to(out_ptr.dtype.element_ty), mask=is_value)
