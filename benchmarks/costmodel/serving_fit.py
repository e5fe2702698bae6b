"""Constants of runtimes from rows of tables."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares, nnls
from serving_tables import Generated, Served, ceilings, model

from blockwright.cost import Load
from blockwright.profiler.operators import Attend, Matmul
from blockwright.profiler.serving import Server, step_use
from blockwright.profiler.serving_operators import STORAGES, Step, step_operators
from blockwright.profiler.serving_runtimes import GRAPH_SERVER, Power, Runtime, Stream

Rows = np.ndarray
NOTHING_ADDED = replace(GRAPH_SERVER, step_s=0.0, sequence_s=0.0)
PROMPT_TOKENS = (100, 150, 225, 340, 500)
"""That are tried for the prompts of ML.ENERGY, whose lengths are not published."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """What a graph server's host adds, and the prompts that its rows had."""

    step_s: float
    sequence_s: float
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of all rows, for one length of prompts: the median step and the mean one, without the host."""

    prompt_tokens: int
    batch: np.ndarray
    median_s: np.ndarray
    mean_s: np.ndarray
    num_bytes: np.ndarray
    """Of the mean step, as a share of what the device reads in a second; so is the next."""
    flop: np.ndarray


def work_of(rows: Sequence[Served], prompt_tokens: int) -> Work:
    """What the devices do, row by row."""
    columns = []
    for row in rows:
        server = server_of(row, NOTHING_ADDED)
        context, ended = prompt_tokens + row.age, row.batch / row.new_tokens
        load = Load(batch=row.asked, prompt_tokens=prompt_tokens, new_tokens=max(1, round(row.new_tokens)))
        median, mean = (
            step_use(server, step_reading(load, round(row.batch), context, prompts))
            for prompts in (max(0.0, ended - math.log(2)), ended)
        )
        peak = server.ceilings.flop_per_s[server.storage.product_on(server.ceilings)].value
        read = server.ceilings.read_bytes_per_s.value
        columns.append((row.batch, median.time_s, mean.time_s, mean.num_bytes / read, mean.flop / peak))
    batch, median_s, mean_s, num_bytes, flop = np.array(columns).T
    return Work(
        prompt_tokens=prompt_tokens,
        batch=batch,
        median_s=median_s,
        mean_s=mean_s,
        num_bytes=num_bytes,
        flop=flop,
    )


def server_of(row: Served, runtime: Runtime) -> Server:
    """The server of a row."""
    return Server(
        model=model(row.model),
        ceilings=ceilings(row.device),
        runtime=runtime,
        storage=STORAGES[row.storage],
        num_devices=row.num_devices,
    )


def step_reading(load: Load, batch: int, context: float, prompts: float) -> Step:
    """As `serve` spreads prompts over steps."""
    whole = max(1, round(prompts))
    tokens = round(load.prompt_tokens * prompts / whole)
    return Step(sequences=batch, context=round(context), prompts=whole if tokens else 0, prompt_tokens=tokens)


def host_s(host: Host, work: Work) -> np.ndarray:
    """What the host adds to a step."""
    return host.step_s + work.batch * host.sequence_s


def fit_host(rows: Sequence[Served], works: Sequence[Work], at: Rows) -> Host:
    """Two constants and the length of prompts, from median and mean steps, robustly."""
    token_s = np.array([row.token_s for row in rows])
    mean_s = np.array([row.batch / row.tokens_per_s for row in rows])
    start, doubt = np.log([1e-3, 3e-5]), np.array([1.5, 1.0])
    best: tuple[float, Host] | None = None
    for work in works:

        def host(logs: np.ndarray, tokens: int = work.prompt_tokens) -> Host:
            step, sequence = np.exp(logs).tolist()
            return Host(step_s=step, sequence_s=sequence, prompt_tokens=tokens)

        def residuals(logs: np.ndarray, work: Work = work, host: Callable = host) -> np.ndarray:
            added = host_s(host(logs), work)
            errors = [np.log((work.median_s + added) / token_s)[at], np.log((work.mean_s + added) / mean_s)[at]]
            return np.concatenate([*errors, 0.3 * (logs - start) / doubt])

        found = least_squares(residuals, start, loss="soft_l1", f_scale=0.1)
        if best is None or found.cost < best[0]:
            best = found.cost, host(found.x)
    assert best
    return best[1]


def power_share(power: Power, work: Work, mean_s: np.ndarray) -> np.ndarray:
    """Of the limit, when steps take so long."""
    uses = (np.minimum(1, part / mean_s) for part in (work.num_bytes, work.flop, work.mean_s))
    return np.array([power.share(*use) for use in zip(*uses, strict=True)])


def fit_power(rows: Sequence[Served], work: Work, at: Rows) -> Power:
    """From the power that was measured, at the times that were measured."""
    mean_s = np.array([row.batch / row.tokens_per_s for row in rows])
    share = np.array([row.joules * row.tokens_per_s / row.num_devices / watts(row.device) for row in rows])
    reading, products, busy = (np.minimum(1, part / mean_s)[at] for part in (work.num_bytes, work.flop, work.mean_s))
    start = np.log([0.12, 0.5, 0.5, 0.2])

    def residuals(logs: np.ndarray) -> np.ndarray:
        idle, *rates = np.exp(logs)
        activity = rates[0] * reading + rates[1] * products + rates[2] * busy
        predicted = idle + (1 - idle) * -np.expm1(-activity)
        return np.concatenate([np.log(predicted / share[at]), 0.1 * (logs - start)])

    found = least_squares(residuals, start, loss="soft_l1", f_scale=0.1).x
    idle, reading_rate, products_rate, busy_rate = np.exp(found).tolist()
    return Power(idle=idle, reading=reading_rate, products=products_rate, busy=busy_rate)


def watts(device: str) -> float:
    """The power limit."""
    limit = ceilings(device).busy_w
    assert limit
    return limit.value


def streams(rows: Sequence[Generated]) -> np.ndarray:
    """Of each row of llama.cpp: bytes of weights, of caches, weights that are unpacked, layers, devices, and the
    device's bandwidth, units and rate of fp32."""
    columns = []
    for row in rows:
        storage, of = STORAGES[row.storage], ceilings(row.device)
        counted = step_operators(model(row.model), Step(sequences=1, context=row.num_tokens // 2), storage, "fp16")
        matmuls = [(each, times) for each, times in counted.items() if isinstance(each, Matmul)]
        attends = sum(each.num_bytes * times for each, times in counted.items() if isinstance(each, Attend))
        others = sum(each.num_bytes * times for each, times in counted.items() if not isinstance(each, Attend))
        packed = sum(each.inputs * each.outputs * times for each, times in matmuls) if storage.bits < 16 else 0
        chip = (of.read_bytes_per_s.value, of.num_units or 1, of.flop_per_s["fp32"].value)
        columns.append((others, attends, packed, len(model(row.model).layers), row.num_devices, *chip))
    return np.array(columns, dtype=float).T


LLAMA_START = np.array([1e-4, 0.9, 1e10, 3.0, 2e-4, 1.5])
_LLAMA_DOUBT = np.array([1.0, 0.2, 0.5, 1.0, 1.0, 0.5])


def streamed_s(logs: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Times per token by layer_s, read_share, unit_bytes_per_s, unpack_flop, hop_s and cache_reads."""
    layer_s, share, unit, unpack, hop_s, reads = np.exp(logs)
    weights, caches, packed, layers, devices, bandwidth, units, rate = columns
    read = ((bandwidth * share) ** -4.0 + (units * unit) ** -4.0) ** -0.25
    return layer_s * layers + (weights + reads * caches) / read + unpack * packed / rate + hop_s * (devices - 1)


def fit_stream(columns: np.ndarray, token_s: np.ndarray, at: Rows) -> np.ndarray:
    """The logarithms of those six constants."""
    start = np.log(LLAMA_START)

    def residuals(logs: np.ndarray) -> np.ndarray:
        errors = np.log(streamed_s(logs, columns[:, at]) / token_s[at])
        return np.concatenate([errors, 0.3 * (logs - start) / _LLAMA_DOUBT])

    return least_squares(residuals, start, loss="soft_l1", f_scale=0.1).x


def llama_runtime(name: str, logs: np.ndarray, unit_flop_per_s: float, base: Runtime) -> Runtime:
    """The constants as a runtime."""
    layer_s, share, unit, unpack, hop_s, reads = np.exp(logs).tolist()
    return replace(
        base,
        name=name,
        layer_s=layer_s,
        hop_s=hop_s,
        is_pipeline=True,
        stream=Stream(
            read_share=share,
            unit_bytes_per_s=unit,
            rate_share=1.0,
            unit_flop_per_s=unit_flop_per_s,
            unpack_flop=unpack,
            cache_reads=reads,
        ),
    )


def fit_additive(columns: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Shares of time that add up, none below zero, with the least relative error; gross errors count for less.

    Args:
        columns: (samples, parts), what each part does.
        times_s: of each sample.

    Returns:
        Seconds per unit of each part.
    """
    weights = 1 / times_s
    found = np.zeros(columns.shape[1])
    for _ in range(4):
        scaled = columns * weights[:, None]
        size = np.sqrt((scaled**2).mean(axis=0))
        found = nnls(scaled / size, times_s * weights)[0] / size
        error = np.abs(columns @ found / times_s - 1)
        doubtful = np.maximum(1.0, error / (2.2 * np.median(error) + 1e-4))  # 1.5 standard deviations, if normal
        weights = 1 / times_s / np.sqrt(doubtful)
    return found
