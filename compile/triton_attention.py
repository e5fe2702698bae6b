"""Triton kernels of separator and window attention (SepLLM, Chen et al. 2024).

A token sees itself and its nearest neighbours, and of all earlier tokens the initial ones and the separators. Writing
reads a cache that holds only these, compacted; reading a prompt walks over the neighbours of a tile of queries and over
a list of the initial tokens and separators before them, so that no tile is read that no query sees.

Arguments are ordered as TensorRT passes them: inputs, whole numbers, outputs. Shapes: q, out (batch, heads, tokens,
head_dim); k, v (batch, KV heads, slots, head_dim). Softmax is by powers of two, in fp32.
"""

from blockwright.compile.triton_package import tl, triton

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _attend(q, keys, values, is_seen, sums, highest, total, SCALE: tl.constexpr):
    """Takes a tile of keys into account; a row that has seen nothing yet has -inf as its highest score."""
    scores = tl.where(is_seen, tl.dot(q, tl.trans(keys)) * (SCALE * _LOG2_E), float("-inf"))
    now_highest = tl.maximum(highest, tl.max(scores, axis=1))
    base = tl.where(now_highest == float("-inf"), 0.0, now_highest)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(highest - base)
    total = total * shrink + tl.sum(weights, axis=1)
    sums = tl.dot(weights.to(values.dtype), values, sums * shrink[:, None])
    return sums, now_highest, total


@triton.jit
def _averaged(sums, total):
    return sums / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def sparse_decode(
    q_ptr,
    k_ptr,
    v_ptr,
    counts_ptr,
    num_kv_heads,
    num_slots,
    out_ptr,
    logs_ptr,
    SCALE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEADS_PER_KV: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One query per sequence against the first `counts` slots; grid (batch × KV heads, splits of a sequence's slots).

    out (batch × heads, splits, head_dim) is the mean of a split's values, logs (batch × heads, splits) the logarithm
    to base 2 of the sum of its weights; nothing seen is 0 and -inf. With one split, out may be of the queries' type.
    """
    pair, split, num_splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    count = tl.minimum(tl.load(counts_ptr + pair // num_kv_heads), num_slots)
    per_split = tl.cdiv(tl.cdiv(count, num_splits), BLOCK_S) * BLOCK_S
    first = split * per_split
    last = tl.minimum(first + per_split, count)
    h, d, s = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_S)
    is_head, is_channel = h < HEADS_PER_KV, d < HEAD_DIM
    row = pair.to(tl.int64) * HEADS_PER_KV + h
    is_q = is_head[:, None] & is_channel[None, :]
    q = tl.load(q_ptr + row[:, None] * HEAD_DIM + d[None, :], mask=is_q, other=0.0)
    at = pair.to(tl.int64) * num_slots * HEAD_DIM + s[:, None] * HEAD_DIM + d[None, :]
    sums = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
    highest, total = tl.full([BLOCK_H], float("-inf"), tl.float32), tl.zeros([BLOCK_H], tl.float32)
    for start in range(first, last, BLOCK_S):
        is_slot = start + s < last
        is_kv = is_slot[:, None] & is_channel[None, :]
        offset = start * HEAD_DIM
        keys = tl.load(k_ptr + at + offset, mask=is_kv, other=0.0)
        values = tl.load(v_ptr + at + offset, mask=is_kv, other=0.0)
        sums, highest, total = _attend(q, keys, values, is_slot[None, :], sums, highest, total, SCALE)
    out_row = row * num_splits + split
    out = _averaged(sums, total).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_row[:, None] * HEAD_DIM + d[None, :], out, mask=is_q)
    logs = tl.where(total == 0.0, float("-inf"), highest + tl.log2(tl.where(total == 0.0, 1.0, total)))
    tl.store(logs_ptr + out_row, logs, mask=is_head)


@triton.jit
def join_splits(
    partial_ptr,
    logs_ptr,
    num_splits,
    out_ptr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """The mean over all slots from those of splits, at most BLOCK_SPLITS; grid (batch × heads)."""
    row = tl.program_id(0).to(tl.int64)
    split, d = tl.arange(0, BLOCK_SPLITS), tl.arange(0, BLOCK_D)
    is_split, is_channel = split < num_splits, d < HEAD_DIM
    logs = tl.load(logs_ptr + row * num_splits + split, mask=is_split, other=float("-inf"))
    highest = tl.max(logs, axis=0)
    weights = tl.exp2(logs - tl.where(highest == float("-inf"), 0.0, highest))
    at = (row * num_splits + split)[:, None] * HEAD_DIM + d[None, :]
    partial = tl.load(partial_ptr + at, mask=is_split[:, None] & is_channel[None, :], other=0.0)
    total = tl.sum(weights, axis=0)
    out = tl.sum(partial * weights[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + row * HEAD_DIM + d, out.to(out_ptr.dtype.element_ty), mask=is_channel)


@triton.jit
def _attend_far(
    q,
    k_ptr,
    v_ptr,
    kv,
    far_ptr,
    far_end,
    last_far,
    is_channel,
    sums,
    highest,
    total,
    SCALE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The first `far_end` of a sequence's initial tokens and separators, for each query those up to `last_far`."""
    s = tl.arange(0, BLOCK_S)
    for begin in range(0, far_end, BLOCK_S):
        is_far = begin + s < far_end
        far = tl.load(far_ptr + begin + s, mask=is_far, other=0)
        at, is_kv = kv + far.to(tl.int64)[:, None] * HEAD_DIM, is_far[:, None] & is_channel[None, :]
        keys, values = tl.load(k_ptr + at, mask=is_kv, other=0.0), tl.load(v_ptr + at, mask=is_kv, other=0.0)
        is_seen = is_far[None, :] & (far[None, :] <= last_far[:, None])
        sums, highest, total = _attend(q, keys, values, is_seen, sums, highest, total, SCALE)
    return sums, highest, total


@triton.jit
def _attend_near(
    q,
    k_ptr,
    v_ptr,
    kv,
    first,
    last,
    position,
    last_far,
    is_channel,
    sums,
    highest,
    total,
    SCALE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The tokens from `first` to `last`, for each query those behind its `last_far` and not behind itself."""
    for begin in range(first, last + 1, BLOCK_S):
        near = begin + tl.arange(0, BLOCK_S)
        at, is_kv = kv + near.to(tl.int64)[:, None] * HEAD_DIM, (near <= last)[:, None] & is_channel[None, :]
        keys, values = tl.load(k_ptr + at, mask=is_kv, other=0.0), tl.load(v_ptr + at, mask=is_kv, other=0.0)
        is_seen = (near[None, :] <= position[:, None]) & (near[None, :] > last_far[:, None])
        sums, highest, total = _attend(q, keys, values, is_seen, sums, highest, total, SCALE)
    return sums, highest, total


@triton.jit
def sparse_prefill(
    q_ptr,
    k_ptr,
    v_ptr,
    far_ptr,
    far_before_ptr,
    starts_ptr,
    num_queries,
    num_slots,
    num_far,
    num_kv_heads,
    num_neighbours,
    out_ptr,
    SCALE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEADS_PER_KV: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Queries from `starts` on, against keys whose slot is their position; grid (tiles of queries, batch × heads).

    far (batch, num_far) are the positions of initial tokens and separators, ascending; far_before (batch, slots + 1)
    how many stand before each position. Each is far from a query or one of its neighbours, and so counted once.
    """
    head = tl.program_id(1)
    sequence, pair = head // (num_kv_heads * HEADS_PER_KV), head // HEADS_PER_KV
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    is_channel = d < HEAD_DIM
    is_q = (t < num_queries)[:, None] & is_channel[None, :]
    q_at = (head.to(tl.int64) * num_queries + t)[:, None] * HEAD_DIM + d[None, :]
    q = tl.load(q_ptr + q_at, mask=is_q, other=0.0)
    start = tl.load(starts_ptr + sequence)
    position = start + t
    first = start + tl.program_id(0) * BLOCK_T
    last = tl.minimum(tl.minimum(first + BLOCK_T, start + num_queries), num_slots) - 1
    kv = pair.to(tl.int64) * num_slots * HEAD_DIM + d[None, :]
    sums = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    highest, total = tl.full([BLOCK_T], float("-inf"), tl.float32), tl.zeros([BLOCK_T], tl.float32)
    far_end = tl.load(far_before_ptr + sequence * (num_slots + 1) + tl.maximum(last - num_neighbours + 1, 0))
    far_at, last_far = far_ptr + sequence * num_far, position - num_neighbours
    sums, highest, total = _attend_far(
        q, k_ptr, v_ptr, kv, far_at, far_end, last_far, is_channel, sums, highest, total, SCALE, HEAD_DIM, BLOCK_S
    )
    near = tl.maximum(first - num_neighbours + 1, 0) // BLOCK_S * BLOCK_S
    sums, highest, total = _attend_near(
        q, k_ptr, v_ptr, kv, near, last, position, last_far, is_channel, sums, highest, total, SCALE, HEAD_DIM, BLOCK_S
    )
    tl.store(out_ptr + q_at, _averaged(sums, total).to(out_ptr.dtype.element_ty), mask=is_q)
