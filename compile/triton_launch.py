"""Finds the Triton function of a kernel, and launches it with torch's tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from blockwright.compile.kernels import Kernel, extents
from blockwright.compile.triton_attention import join_splits, sparse_decode, sparse_prefill
from blockwright.compile.triton_int4 import int4_tiles, int4_vector, sum_splits
from blockwright.compile.triton_package import triton

FUNCTIONS: dict[str, Any] = {
    "int4_vector": int4_vector,
    "int4_tiles": int4_tiles,
    "sum_splits": sum_splits,
    "sparse_decode": sparse_decode,
    "join_splits": join_splits,
    "sparse_prefill": sparse_prefill,
}


def launch(kernel: Kernel, given: Mapping[str, Tensor | int]) -> None:
    """Runs a kernel; numbers that its grid is made of are given beside its arguments."""
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    assert all(tensor.is_contiguous() for tensor in tensors), "as kernels count"
    sizes = {name: value for name, value in given.items() if isinstance(value, int)}
    with torch.cuda.device_of(tensors[0]):  # of several GPUs, Triton takes the current one
        FUNCTIONS[kernel.function][extents(kernel, sizes)](
            *(given[argument.name] for argument in kernel.arguments),
            **dict(kernel.constants),
            num_warps=kernel.num_warps,
            num_stages=kernel.num_stages,
            enable_fp_fusion=True,
        )


def runs_kernels(tensor: Tensor) -> bool:
    """Whether Triton runs where a tensor is: on a GPU, or anywhere in its interpreter."""
    return tensor.is_cuda or triton.knobs.runtime.interpret
