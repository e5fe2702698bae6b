"""Our Triton kernels against their naive twins on a device, before anything is timed; for kernels_gpu.py."""

from typing import Any

import torch
from torch import Tensor

from blockwright.compile.kernel_ops import int4_linear, sparse_decode, sparse_prefill
from blockwright.compile.kernel_twins import far_tokens, int4_linear_twin, sparse_decode_twin, sparse_prefill_twin

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Two roundings to the type, as shares of the largest value; the tests on the CPU hold the same."""


def check_kernels(device: torch.device, is_small: bool) -> list[dict[str, Any]]:
    """The largest error of each case; ends the run where one is above the tolerance."""
    cases: list[tuple[str, Tensor, Tensor]] = []
    for dtype in TOLERANCE:
        if device.type == "cpu" and dtype == torch.bfloat16:
            continue  # the interpreter adds and multiplies the bits of bf16
        cases += [*_products(device, dtype, is_small), *_decodes(device, dtype, is_small)]
        cases += _prefills(device, dtype, is_small)
    rows = []
    for name, found, expected in cases:
        largest = expected.float().abs().max().clamp(min=1e-3)
        error = ((found.float() - expected.float()).abs().max() / largest).item()
        if not error <= TOLERANCE[found.dtype]:
            raise SystemExit(f"{name}: off by {error:.1e} of the largest value, more than {TOLERANCE[found.dtype]:.1e}")
        rows.append({"case": name, "error": error})
    return rows


def _products(device: torch.device, dtype: torch.dtype, is_small: bool) -> list[tuple[str, Tensor, Tensor]]:
    num_inputs, num_outputs = (256, 70) if is_small else (4096, 14337)
    found = []
    for group in (32, 64, 128):
        codes = torch.randint(0, 256, (num_outputs, num_inputs // 2), device=device, dtype=torch.uint8)
        scales = (torch.rand(num_outputs, num_inputs // group, device=device) * 0.1 + 0.01).to(dtype)
        for num_rows in (1, 17) if is_small else (1, 3, 8, 17, 100):
            x = torch.randn(num_rows, num_inputs, device=device, dtype=dtype)
            expected = int4_linear_twin(x, codes, scales)
            for splits in (1, 3) if is_small else (0, 1, 3):
                name = f"int4 product, {dtype}, groups of {group}, {num_rows} rows, {splits or 'own'} splits"
                found.append((name, int4_linear(x, codes, scales, splits), expected))
    return found


def _decodes(device: torch.device, dtype: torch.dtype, is_small: bool) -> list[tuple[str, Tensor, Tensor]]:
    num_slots, found = 100 if is_small else 5000, []
    for heads, kv_heads, head_dim in ((32, 8, 128), (3, 3, 64), (8, 1, 80), (34, 2, 256)):
        q = torch.randn(3, heads, head_dim, device=device, dtype=dtype)
        k, v = (torch.randn(3, kv_heads, num_slots, head_dim, device=device, dtype=dtype) for _ in range(2))
        counts = torch.tensor([0, num_slots, num_slots // 3], dtype=torch.int32, device=device)
        expected = sparse_decode_twin(q, k, v, counts, head_dim**-0.5)
        for splits in (1, 5) if is_small else (0, 1, 5):
            name = f"decode, {dtype}, {heads} heads of {head_dim} on {kv_heads}, {splits or 'own'} splits"
            found.append((name, sparse_decode(q, k, v, counts, None, splits), expected))
    return found


def _prefills(device: torch.device, dtype: torch.dtype, is_small: bool) -> list[tuple[str, Tensor, Tensor]]:
    num_slots, num_queries, found = (150, 70, []) if is_small else (1500, 700, [])
    for heads, kv_heads, head_dim in ((8, 2, 128), (2, 2, 64), (4, 1, 80), (2, 1, 256)):
        q = torch.randn(2, heads, num_queries, head_dim, device=device, dtype=dtype)
        k, v = (torch.randn(2, kv_heads, num_slots, head_dim, device=device, dtype=dtype) for _ in range(2))
        starts = torch.tensor([0, num_slots - num_queries], dtype=torch.int32, device=device)
        for share, neighbours in ((0.12, 40), (0.0, 1), (0.5, 5000)):
            far = far_tokens(torch.rand(2, num_slots, device=device) < share)
            expected = sparse_prefill_twin(q, k, v, far, starts, neighbours, head_dim**-0.5)
            name = f"prefill, {dtype}, {heads} heads of {head_dim} on {kv_heads}, {share:.0%} far, {neighbours} near"
            found.append((name, sparse_prefill(q, k, v, *far, starts, neighbours), expected))
    return found
