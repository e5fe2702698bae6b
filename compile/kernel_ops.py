"""Our Triton kernels as torch operators, `torch.ops.blockwright.*`; on a CPU their naive twins compute.

Shapes: B batch, H query heads, J KV heads, T queries, S slots, D channels of a head; K inputs, N outputs, G groups.
"""

import math

import torch
from torch import Tensor

from blockwright.compile import kernels
from blockwright.compile.kernel_twins import int4_linear_twin, sparse_decode_twin, sparse_prefill_twin
from blockwright.compile.kernels import Heads, Number
from blockwright.compile.triton_launch import launch, runs_kernels
from blockwright.errors import InputError

NUMBERS: dict[torch.dtype, Number] = {torch.float16: "fp16", torch.bfloat16: "bf16"}


@torch.library.custom_op("blockwright::int4_linear", mutates_args=())
def int4_linear(x: Tensor, codes_NK: Tensor, scales_NG: Tensor, num_splits: int = 0) -> Tensor:
    """Activations times an int4 matrix, in fp32 until the end.

    Args:
        x: (…, K) in fp16 or bf16.
        codes_NK: planar bytes, half as many as inputs (`planar.pack_planar`).
        scales_NG: in the activations' type.
        num_splits: parts to cut the inputs into; 0 for what suits the GPU.

    Raises:
        InputError: a shape or a type does not fit.
    """
    number, group = _check_linear(x, codes_NK, scales_NG)
    x_MK, (num_outputs, num_groups) = x.reshape(-1, x.shape[-1]).contiguous(), scales_NG.shape
    num_rows = len(x_MK)
    if not runs_kernels(x) or not num_rows:
        return int4_linear_twin(x_MK, codes_NK, scales_NG).reshape(*x.shape[:-1], num_outputs)
    kernel = kernels.linear_for(number, group, num_rows, is_split=False)
    splits = num_splits or kernels.linear_splits(kernel, num_rows, num_outputs, num_groups, _num_processors(x))
    if splits > 1:
        kernel = kernels.linear_for(number, group, num_rows, is_split=True)
    out = x.new_empty((splits, num_rows, num_outputs), dtype=x.dtype if splits == 1 else torch.float32)
    launch(
        kernel,
        {
            "x": x_MK,
            "codes": codes_NK.contiguous().view(torch.uint8),  # of int8 the upper half would come out signed
            "scales": scales_NG.contiguous(),
            "num_rows": num_rows,
            "num_outputs": num_outputs,
            "num_groups": num_groups,
            "groups_per_split": -(-num_groups // splits),
            "num_splits": splits,
            "out": out,
        },
    )
    return _summed(out, number, x.dtype).reshape(*x.shape[:-1], num_outputs)


def _summed(partial: Tensor, number: Number, dtype: torch.dtype) -> Tensor:
    num_splits = len(partial)
    if num_splits == 1:
        return partial[0]
    out = torch.empty_like(partial[0], dtype=dtype)
    sizes = {"num_values": out.numel(), "num_splits": num_splits}
    launch(kernels.sum_splits(number), {"partial": partial, "out": out} | sizes)
    return out


@int4_linear.register_fake
def _(x: Tensor, codes_NK: Tensor, scales_NG: Tensor, num_splits: int = 0) -> Tensor:
    return x.new_empty((*x.shape[:-1], scales_NG.shape[0]))


@torch.library.custom_op("blockwright::sparse_decode", mutates_args=())
def sparse_decode(
    q_BHD: Tensor, k_BJSD: Tensor, v_BJSD: Tensor, counts_B: Tensor, scale: float | None = None, num_splits: int = 0
) -> Tensor:
    """Attention of one query per sequence over a cache that holds initial tokens, separators and neighbours only.

    Args:
        q_BHD: in fp16 or bf16.
        k_BJSD: rotated by true positions before they were stored, in any order.
        v_BJSD: beside them.
        counts_B: how many slots of each sequence are filled, from the first on, int32; 0 gives 0.
        scale: of scores; one over the root of D unless told otherwise.
        num_splits: parts to cut each sequence's slots into, at most 64; 0 for what suits the GPU.

    Raises:
        InputError: a shape or a type does not fit.
    """
    heads = _check_heads(q_BHD, k_BJSD, v_BJSD, scale)
    _check_whole("counts", counts_B, (len(q_BHD),))
    (batch, num_heads, head_dim), (num_kv_heads, num_slots) = q_BHD.shape, k_BJSD.shape[1:3]
    if not 0 <= num_splits <= kernels.MOST_SPLITS:
        raise _refused("num_splits", num_splits, f"0 to {kernels.MOST_SPLITS}")
    if not runs_kernels(q_BHD):
        return sparse_decode_twin(q_BHD, k_BJSD, v_BJSD, counts_B, dict(heads.constants)["SCALE"])
    splits = num_splits or kernels.decode_splits(batch, num_kv_heads, num_slots, _num_processors(q_BHD))
    dtype = q_BHD.dtype if splits == 1 else torch.float32
    out = q_BHD.new_empty((batch * num_heads, splits, head_dim), dtype=dtype)
    given = {
        "logs": q_BHD.new_empty((batch * num_heads, splits), dtype=torch.float32),
        "counts": counts_B.contiguous(),
        "num_splits": splits,
        "batch": batch,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
    }
    inputs = {"q": q_BHD.contiguous(), "k": k_BJSD.contiguous(), "v": v_BJSD.contiguous()}
    launch(kernels.sparse_decode(heads, splits > 1), given | inputs | {"num_slots": num_slots, "out": out})
    if splits == 1:
        return out.reshape(q_BHD.shape)
    joined = torch.empty_like(q_BHD, memory_format=torch.contiguous_format)
    launch(kernels.join_splits(heads.number, head_dim), given | {"partial": out, "out": joined})
    return joined


@sparse_decode.register_fake
def _(
    q_BHD: Tensor, k_BJSD: Tensor, v_BJSD: Tensor, counts_B: Tensor, scale: float | None = None, num_splits: int = 0
) -> Tensor:
    return torch.empty_like(q_BHD, memory_format=torch.contiguous_format)


@torch.library.custom_op("blockwright::sparse_prefill", mutates_args=())
def sparse_prefill(
    q_BHTD: Tensor,
    k_BJSD: Tensor,
    v_BJSD: Tensor,
    far_BF: Tensor,
    far_before: Tensor,
    starts_B: Tensor,
    num_neighbours: int,
    scale: float | None = None,
) -> Tensor:
    """Attention of a prompt, or a piece of one, over initial tokens, separators and neighbours.

    Args:
        q_BHTD: in fp16 or bf16.
        k_BJSD: slot and position are the same number.
        v_BJSD: beside them.
        far_BF: initial tokens and separators, with `far_before` as `kernel_twins.far_tokens` gives them.
        far_before: (B, S + 1).
        starts_B: the position of each sequence's first query, int32.
        num_neighbours: how many of the nearest tokens are seen, the token itself included.
        scale: of scores; one over the root of D unless told otherwise.

    Raises:
        InputError: a shape or a type does not fit.
    """
    heads = _check_heads(q_BHTD, k_BJSD, v_BJSD, scale)
    (batch, num_heads, num_queries, _), (num_kv_heads, num_slots) = q_BHTD.shape, k_BJSD.shape[1:3]
    _check_whole("starts", starts_B, (batch,))
    _check_whole("far_before", far_before, (batch, num_slots + 1))
    _check_whole("far", far_BF, (batch, far_BF.shape[-1]))
    if num_neighbours < 1:
        raise _refused("num_neighbours", num_neighbours, "at least 1, the token itself")
    if not runs_kernels(q_BHTD):
        scaled = dict(heads.constants)["SCALE"]
        return sparse_prefill_twin(q_BHTD, k_BJSD, v_BJSD, (far_BF, far_before), starts_B, num_neighbours, scaled)
    out = torch.empty_like(q_BHTD, memory_format=torch.contiguous_format)
    inputs = {"q": q_BHTD, "k": k_BJSD, "v": v_BJSD, "far": far_BF, "far_before": far_before, "starts": starts_B}
    sizes = {"num_queries": num_queries, "num_slots": num_slots, "num_far": far_BF.shape[1]}
    others = {"num_kv_heads": num_kv_heads, "num_neighbours": num_neighbours, "batch": batch, "num_heads": num_heads}
    given = {name: tensor.contiguous() for name, tensor in inputs.items()}
    launch(kernels.sparse_prefill(heads), given | sizes | others | {"out": out})
    return out


@sparse_prefill.register_fake
def _(
    q_BHTD: Tensor,
    k_BJSD: Tensor,
    v_BJSD: Tensor,
    far_BF: Tensor,
    far_before: Tensor,
    starts_B: Tensor,
    num_neighbours: int,
    scale: float | None = None,
) -> Tensor:
    return torch.empty_like(q_BHTD, memory_format=torch.contiguous_format)


def _num_processors(tensor: Tensor) -> int:
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1


def _number_of(tensor: Tensor, field: str) -> Number:
    if tensor.dtype not in NUMBERS:
        raise _refused(field, tensor.dtype, "torch.float16 or torch.bfloat16")
    return NUMBERS[tensor.dtype]


def _check_linear(x: Tensor, codes_NK: Tensor, scales_NG: Tensor) -> tuple[Number, int]:
    """The activations' type and the group size."""
    number = _number_of(x, "x")
    if scales_NG.dtype != x.dtype or scales_NG.ndim != 2:
        raise _refused("scales", f"{tuple(scales_NG.shape)} in {scales_NG.dtype}", f"(outputs, groups) in {x.dtype}")
    num_outputs, num_groups = scales_NG.shape
    num_inputs = x.shape[-1]
    if codes_NK.dtype not in (torch.uint8, torch.int8) or codes_NK.shape != (num_outputs, num_inputs // 2):
        expected = f"bytes of shape {(num_outputs, num_inputs // 2)}"
        raise _refused("codes", f"{tuple(codes_NK.shape)} in {codes_NK.dtype}", expected)
    group = num_inputs // max(1, num_groups)
    if num_groups * group != num_inputs or group not in kernels.GROUPS:
        sizes = ", ".join(map(str, kernels.GROUPS))
        raise _refused("scales", f"{num_groups} groups of {num_inputs} inputs", f"groups of one of {sizes}")
    return number, group


def _check_heads(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Heads:
    number, (batch, num_heads), head_dim = _number_of(q, "q"), q.shape[:2], q.shape[-1]
    if k.shape != v.shape or k.ndim != 4 or (k.shape[0], k.shape[3]) != (batch, head_dim) or num_heads % k.shape[1]:
        expected = f"(batch, KV heads, slots, channels) of both that suit queries {tuple(q.shape)}"
        raise _refused("k, v", f"{tuple(k.shape)} and {tuple(v.shape)}", expected)
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise _refused("k, v", f"{k.dtype} and {v.dtype}", f"{q.dtype}, as the queries")
    if scale is not None and not math.isfinite(scale):
        raise _refused("scale", scale, "a finite number")
    return Heads(number=number, head_dim=head_dim, heads_per_kv=num_heads // k.shape[1], scale=scale)


def _check_whole(field: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype != torch.int32 or tuple(tensor.shape) != shape:
        raise _refused(field, f"{tuple(tensor.shape)} in {tensor.dtype}", f"{shape} in torch.int32")


def _refused(field: str, got: object, expected: str) -> InputError:
    return InputError(field, got=got, expected=expected, remedy="Hand over such a tensor or number.")
