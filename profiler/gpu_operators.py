"""Operators by themselves on a GPU: what each is in torch, which to measure, and how a timing becomes a row.

Weights and caches are rotated over copies that no cache holds together, activations stay where they are: what a step
of decoding does. All values are random, for a GPU that multiplies zeros draws less power and clocks higher.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import assert_never

import torch
import torch.nn.functional as F

from blockwright.hw_profiles.profile import OperatorKind, OperatorRow
from blockwright.profiler.gpu_clock import GpuClock, GpuTiming, num_copies
from blockwright.profiler.gpu_device import TorchDevice
from blockwright.profiler.operators import Attend, Elementwise, Matmul, Operator

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LEAST_BYTES_PER_SAMPLE = 2**28
"""A sample moves about so many bytes, 50 µs at 5 TB/s, so that the clock's half microsecond does not show."""
_MOST_REPEATS = 64
_MOST_BYTES = 2**33
"""Copies of one operator's weights or caches take no more than this."""
_KINDS: dict[type, OperatorKind] = {Matmul: "matmul", Attend: "attend", Elementwise: "elementwise"}

_ROWS = (1, 2, 4, 8, 16, 17, 32, 64, 128, 129, 256, 512, 1024, 2048)
"""Powers of two, and one row beyond a tile now and then: that is where times step."""
_SHAPES = ((1024, 1024), (2048, 8192), (4096, 1024), (4096, 4096), (4096, 14336), (8192, 2048), (14336, 4096))
_HEADS = ((32, 8, 128), (32, 32, 128), (16, 2, 64))
_DECODES = ((1, 256), (1, 1024), (1, 4096), (1, 16384), (8, 512), (8, 2048), (8, 8192), (32, 256), (32, 1024))
_DECODES_OF_MANY = ((32, 4096), (64, 512), (128, 256), (128, 1024))
_PREFILLS = ((1, 128), (1, 512), (1, 2048), (4, 512), (8, 1024))
_VALUES = tuple(3 * 2**power for power in range(12, 29, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Some work on a device, and how often a run of it does the same."""

    run: Callable[[], object]
    times: int


def grid(is_small: bool = False) -> list[Operator]:
    """The operators to measure: rows by shapes in turn, so that each is met by half of the other.

    Args:
        is_small: a few tiny ones, to try the code out.
    """
    if is_small:
        return [
            matmul(2, 64, 128),
            attend(2, 1, 64, (4, 2, 16)),
            attend(1, 16, 16, (4, 2, 16)),
            Elementwise(num_values=3 * 4096, bytes_per_value=2),
        ]
    products = [
        matmul(rows, *shape)
        for first, shape in enumerate(_SHAPES)
        for index, rows in enumerate(_ROWS)
        if (first + index) % 2 == 0 or rows == 1
    ]
    decodes = [attend(batch, 1, context, heads) for heads in _HEADS for batch, context in _DECODES + _DECODES_OF_MANY]
    prefills = [attend(batch, tokens, tokens, heads) for heads in _HEADS[:2] for batch, tokens in _PREFILLS]
    moves = [Elementwise(num_values=number, bytes_per_value=2) for number in _VALUES]
    return [*products, *decodes, *prefills, *moves]


def matmul(rows: int, inputs: int, outputs: int, weights: str = "bf16") -> Matmul:
    """A product whose activations are in the format of its weights."""
    size = _DTYPES[weights].itemsize
    return Matmul(
        rows=rows,
        inputs=inputs,
        outputs=outputs,
        weights=weights,
        weight_bytes=size * inputs * outputs,
        bytes_per_value=size,
    )


def attend(batch: int, new_tokens: int, context: int, heads: tuple[int, int, int]) -> Attend:
    """Attention in bf16, of heads of queries, of keys and values, and values of each: a step, or a whole prompt."""
    return Attend(
        batch=batch,
        new_tokens=new_tokens,
        context=context,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=heads[2],
        bytes_per_value=2,
        kv_bytes_per_value=2,
    )


def name_of(operator: Operator) -> str:
    """The same in every run."""
    return f"{_KINDS[type(operator)]} " + " ".join(str(value) for value in asdict(operator).values())


def work_of(operator: Operator, device: TorchDevice) -> Work:
    """The operator in torch, over as many copies of its weights as the device's cache asks for."""
    match operator:
        case Matmul():
            return _matmul_work(operator, device)
        case Attend():
            return _attend_work(operator, device)
        case Elementwise():
            return _elementwise_work(operator, device)
        case _:
            assert_never(operator)


def measure_operator(operator: Operator, clock: GpuClock, device: TorchDevice) -> tuple[OperatorRow, GpuTiming]:
    """Times one operator."""
    work = work_of(operator, device)
    timing = clock.time(device.ready(work.run), work.times)
    row = OperatorRow(
        backend="torch",
        kind=_KINDS[type(operator)],
        fields=asdict(operator),
        time_s=timing.median_s,
        low_s=timing.low_s,
        high_s=timing.high_s,
        num_samples=timing.num_samples,
        num_rejected=timing.num_rejected,
        origin="measured",
    )
    return row, timing


def random_tensor(shape: Sequence[int], dtype: torch.dtype, device: TorchDevice) -> torch.Tensor:
    """Standard normal values, made where they stay."""
    return torch.randn(tuple(shape), dtype=dtype, device=device.torch_device)


def _copies(each_bytes: int, device: TorchDevice) -> int:
    return max(1, min(num_copies(each_bytes, device.cache_bytes), _MOST_BYTES // each_bytes))


def _rounds(num_bytes: int) -> int:
    """How often to do so much, so that a sample is long enough."""
    return min(_MOST_REPEATS, -(-_LEAST_BYTES_PER_SAMPLE // max(1, num_bytes)))


def _in_turn(do: Callable[[int], object], copies: int, num_bytes: int) -> Work:
    """Work on one copy after another."""
    rounds = _rounds(copies * num_bytes)

    def run() -> None:
        with torch.inference_mode():
            for index in range(rounds * copies):
                do(index % copies)

    return Work(run=run, times=rounds * copies)


def _matmul_work(operator: Matmul, device: TorchDevice) -> Work:
    dtype = _DTYPES[operator.weights]
    x = random_tensor((operator.rows, operator.inputs), dtype, device)
    copies = _copies(operator.weight_bytes, device)
    matrices = [random_tensor((operator.outputs, operator.inputs), dtype, device) for _ in range(copies)]
    return _in_turn(lambda index: F.linear(x, matrices[index]), copies, operator.num_bytes)


def _attend_work(operator: Attend, device: TorchDevice) -> Work:
    """Legend: B sequences, H heads, T new tokens, S tokens attended to, D values."""
    one = (operator.batch, operator.num_heads, operator.new_tokens, operator.head_dim)
    other = (operator.batch, operator.num_kv_heads, operator.context, operator.head_dim)
    q_BHTD = random_tensor(one, torch.bfloat16, device)
    cache_bytes = operator.num_bytes - 2 * operator.bytes_per_value * q_BHTD.numel()
    copies = _copies(cache_bytes, device)
    caches = [[random_tensor(other, torch.bfloat16, device) for _ in "kv"] for _ in range(copies)]
    is_prompt, is_grouped = operator.new_tokens > 1, operator.num_heads != operator.num_kv_heads

    def do(index: int) -> object:
        k_BHSD, v_BHSD = caches[index]
        return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, is_causal=is_prompt, enable_gqa=is_grouped)

    return _in_turn(do, copies, operator.num_bytes)


def _elementwise_work(operator: Elementwise, device: TorchDevice) -> Work:
    """A sum of two, as of a residual: a third of the values is written."""
    x, y, out = (random_tensor((operator.num_values // 3,), torch.bfloat16, device) for _ in range(3))
    return _in_turn(lambda _: torch.add(x, y, out=out), 1, operator.num_bytes)
