"""What decides how well an operator uses a device, as numbers.

`law_terms` are seconds: a time is at first guessed as a sum of them with factors that are not negative. `features` tell
trees what is left: sizes as logarithms, and how a kernel cuts its work into tiles that the device's units take in
waves. With T tiles on U units the last wave is filled to T / (U · ⌈T / U⌉); which tile a kernel takes is not known, so
the common ones are all told.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.profiler.boosted import Floats
from blockwright.profiler.operators import Attend, Elementwise, Matmul, Operator

_TILES = ((64, 128), (128, 128), (128, 256), (256, 128))
"""Rows × outputs that one unit works on at a time in common kernels."""

_SPLITS = (64, 128, 256, 512)
"""Tokens of the context that one unit works on, where a kernel splits it."""

_BLOCK_TOKENS = 128
"""Of the context, loaded together by common kernels."""

_SHARES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Into how many the context may be split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """What one kind of operator is a share of."""

    read_bytes_per_s: float
    flop_per_s: float
    launch_s: float
    num_units: int
    cache_bytes: int
    is_own_rate: bool = True
    """Whether the rate was measured of the operator's format: another's is a scale, and no bound."""

    def least_s(self, num_bytes: Floats, flop: Floats) -> Floats:
        """No operator is faster: a cache may hold what it can of the bytes, the rest comes from memory."""
        beyond = np.maximum(num_bytes - self.cache_bytes, 0)
        moving = beyond / self.read_bytes_per_s
        return np.maximum(moving, flop / self.flop_per_s) if self.is_own_rate else moving


def peaks_of(ceilings: Ceilings, operator: Operator) -> Peaks:
    """The ceilings of an operator's kind; attention and what is elementwise take the fastest floating-point format."""
    rates = {name: rate.value for name, rate in ceilings.flop_per_s.items()}
    fallback = next((rates[name] for name in ("bf16", "fp16", "fp32") if name in rates), max(rates.values()))
    rate = rates.get(operator.weights, fallback) if isinstance(operator, Matmul) else fallback
    return Peaks(
        read_bytes_per_s=ceilings.read_bytes_per_s.value,
        flop_per_s=rate,
        launch_s=ceilings.launch_s.value,
        num_units=ceilings.num_units or 1,
        cache_bytes=ceilings.cache_bytes or 0,
        is_own_rate=not isinstance(operator, Matmul) or operator.weights in rates,
    )


def kind_of(operator: Operator) -> tuple[str, ...]:
    """Operators of one kind run the same kernels and are learnt together."""
    match operator:
        case Matmul(weights=weights, bytes_per_value=size):
            return ("products", weights, f"{size} bytes")
        case Attend(new_tokens=new_tokens):
            return ("attention", "decode" if new_tokens == 1 else "prefill")
        case Elementwise(bytes_per_value=size):
            return ("elementwise", f"{size} bytes")
        case _:
            assert_never(operator)


def shape_of(operator: Operator) -> tuple[int, ...]:
    """What stays the same from load to load."""
    match operator:
        case Matmul(inputs=inputs, outputs=outputs):
            return (inputs, outputs)
        case Attend():
            sizes = (operator.bytes_per_value, operator.kv_bytes_per_value, int(operator.is_causal))
            return (operator.num_heads, operator.num_kv_heads, operator.head_dim, *sizes)
        case Elementwise(bytes_per_value=size):
            return (size,)
        case _:
            assert_never(operator)


def load_of(operator: Operator) -> tuple[int, ...]:
    """What changes from load to load."""
    match operator:
        case Matmul(rows=rows):
            return (rows,)
        case Attend(batch=batch, new_tokens=new_tokens, context=context):
            return (batch, new_tokens, context)
        case Elementwise(num_values=num_values):
            return (num_values,)
        case _:
            assert_never(operator)


def law_terms(operators: Sequence[Operator], peaks: Peaks) -> Floats:
    """Seconds, operators × terms, for operators of one kind."""
    num_bytes, flop = bytes_and_flop(operators)
    moving, working = num_bytes / peaks.read_bytes_per_s, flop / peaks.flop_per_s
    launch = np.full(len(operators), peaks.launch_s)
    terms = [launch, moving, working, np.maximum(moving, working), np.sqrt(launch * moving)]
    if isinstance(operators[0], Matmul):
        rows, outputs = _column(operators, "rows"), _column(operators, "outputs")
        for tile_rows, tile_outputs in ((64, 128), (128, 256)):
            tiles = np.ceil(rows / tile_rows) * np.ceil(outputs / tile_outputs)
            rounded = _waves(tiles, peaks) * peaks.num_units * tile_rows * tile_outputs
            terms.append(working * rounded / (rows * outputs))
    elif isinstance(operators[0], Attend):
        terms += _attend_terms(operators, peaks)
    return np.stack(terms, axis=1)


def _attend_terms(operators: Sequence[Operator], peaks: Peaks) -> list[Floats]:
    """Of attention that gives each unit a head's share of the context and sums up the shares afterwards."""
    names = ("batch", "new_tokens", "context", "num_heads", "num_kv_heads", "head_dim", "kv_bytes_per_value")
    batch, new_tokens, context, num_heads, num_kv_heads, head_dim, size = (_column(operators, name) for name in names)
    token_s = 2 * size * head_dim / peaks.read_bytes_per_s  # its key and value, by all units together
    flop_s = _column(operators, "flop") / peaks.flop_per_s
    together = num_heads / num_kv_heads * new_tokens
    units, alone = batch * num_kv_heads, batch * num_heads * np.ceil(new_tokens / 128)
    packed = units * np.ceil(together / 128)
    serial = _longest_share(packed, context, peaks)
    launch_s = peaks.launch_s
    return [
        batch * new_tokens * num_heads * head_dim * 2 * size / peaks.read_bytes_per_s,
        _waves(units, peaks) * peaks.num_units * context * token_s,
        context * token_s * np.sqrt(peaks.num_units),
        context * token_s,
        np.sqrt(context * token_s * launch_s),
        context * launch_s / 1000,
        units * context * head_dim * 4 * np.ceil(together / 64) * 64 / peaks.flop_per_s,
        _waves(alone, peaks) * peaks.num_units / alone * flop_s,
        serial * peaks.num_units * token_s,
        serial * launch_s / 1000,
        _longest_share(alone, context, peaks) * peaks.num_units * token_s,
        np.maximum(packed / peaks.num_units, 1) * launch_s,
        units * np.ceil(context / 256) / peaks.num_units * launch_s,
    ]


def _longest_share(units: Floats, context: Floats, peaks: Peaks) -> Floats:
    """Tokens that the busiest unit works on, one block after another, with the context split as is best."""
    blocks = np.ceil(context / _BLOCK_TOKENS)
    shares = [_waves(units * split, peaks) * np.ceil(blocks / split) for split in _SHARES]
    return _BLOCK_TOKENS * np.min(shares, axis=0)


def features(operators: Sequence[Operator], peaks: Peaks) -> Floats:
    """Logarithms, operators × columns, for operators of one kind."""
    num_bytes, flop = bytes_and_flop(operators)
    columns = [np.log2(num_bytes / peaks.read_bytes_per_s), np.log2(flop / peaks.flop_per_s)]
    columns.append(columns[1] - columns[0])
    if isinstance(operators[0], Matmul):
        columns += _matmul_columns(operators, peaks)
    elif isinstance(operators[0], Attend):
        columns += _attend_columns(operators, peaks)
    return np.stack(columns, axis=1)


def bytes_and_flop(operators: Sequence[Operator]) -> tuple[Floats, Floats]:
    """Counts of each operator."""
    return _column(operators, "num_bytes"), _column(operators, "flop")


def _matmul_columns(operators: Sequence[Operator], peaks: Peaks) -> list[Floats]:
    rows, inputs, outputs = (_column(operators, name) for name in ("rows", "inputs", "outputs"))
    columns = [np.log2(rows), np.log2(outputs), np.log2(inputs), rows % 2, (rows % 8 == 0) * 1.0]
    columns.append(np.log2(np.ceil(outputs / 256) * 256 / outputs))
    for tile_rows, tile_outputs in _TILES:
        tiles = np.ceil(rows / tile_rows) * np.ceil(outputs / tile_outputs)
        columns += [np.log2(tiles / peaks.num_units), _rounding(tiles, peaks)]
    columns += [np.log2(np.ceil(rows / tile) * tile / rows) for tile in (64, 128, 256)]
    return columns


def _attend_columns(operators: Sequence[Operator], peaks: Peaks) -> list[Floats]:
    names = ("batch", "new_tokens", "context", "num_heads", "num_kv_heads", "head_dim", "kv_bytes_per_value")
    sizes = {name: _column(operators, name) for name in names}
    columns = [np.log2(column) for column in sizes.values()]
    together = sizes["num_heads"] / sizes["num_kv_heads"] * sizes["new_tokens"]
    units = sizes["batch"] * sizes["num_kv_heads"]
    columns += [np.log2(together), np.log2(units / peaks.num_units), _rounding(units, peaks)]
    columns.append(np.log2(sizes["batch"] * sizes["num_heads"]))
    columns += [_rounding(units * np.ceil(sizes["context"] / split), peaks) for split in _SPLITS]
    columns += [np.log2(np.ceil(together / tile) * tile / together) for tile in (8, 16, 64)]
    queries = sizes["batch"] * sizes["num_heads"] * np.ceil(sizes["new_tokens"] / 128)
    columns += [np.log2(queries / peaks.num_units), _rounding(queries, peaks)]
    return columns


def _waves(tiles: Floats, peaks: Peaks) -> Floats:
    return np.ceil(tiles / peaks.num_units)


def _rounding(tiles: Floats, peaks: Peaks) -> Floats:
    """By how much waves are more than the tiles would fill."""
    return np.log2(_waves(tiles, peaks) * peaks.num_units / tiles)


def _column(operators: Sequence[Operator], name: str) -> Floats:
    return np.array([getattr(operator, name) for operator in operators], float)
