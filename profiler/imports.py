"""Results of other programs' benchmarks: what of them we keep, and how samples become a time. Reads text, no files.

A file says how long a whole model took. Some say which model, format and load that was; what they do not say must be
`Told`. The readers are `imports_llama_bench`, `imports_vllm` and `imports_trtexec`, and name the fields that they read.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Point
from blockwright.spec import Format


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is known of a file that may not stand in it."""

    load: Load | None = None
    context: int | None = None
    """Tokens in the caches of each sequence, where one step of writing was timed."""
    weights: Format | None = None
    version: str | None = None
    """Of the runtime."""


_Z_90 = 1.645
NOT_TOLD = "not told"
"""The version of a runtime whose files have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """A median, the 90 % interval of it, and how many samples it is of."""

    median_s: float
    low_s: float
    high_s: float
    num_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeTime:
    """The time of a whole model at one point."""

    point: Point
    weights: Format
    seconds: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What one file says."""

    software: dict[str, str]
    """Versions by name, those that the file tells."""
    times: tuple[WholeTime, ...]
    requests: tuple[tuple[Load, WholeTime], ...] = ()
    """Whole requests, prompt and answer together: their times are parted in `joined`."""
    num_parameters: int | None = None
    device: str | None = None
    """In the file's words."""
    left_out: tuple[str, ...] = ()
    """What stands in the file and says nothing that is wanted, and why."""


def joined(results: Sequence[Results]) -> tuple[WholeTime, ...]:
    """The times of several files: the fastest of each point and format, for settings were tried to find it.

    A request's writing is what it takes beyond reading its prompt, over its further tokens.

    Raises:
        InputError: a request's prompt was not timed by itself, or took longer than the request.
    """
    times = [time for result in results for time in result.times]
    for load, request in (each for result in results for each in result.requests):
        times.append(_writing_of(load, request, times))
    best: dict[tuple[Point, Format], WholeTime] = {}
    for time in times:
        key = (time.point, time.weights)
        if key not in best or time.seconds.median_s < best[key].seconds.median_s:
            best[key] = time
    return tuple(best.values())


def prefill(batch: int, prompt_tokens: int) -> Point:
    """Reading prompts at once."""
    return Point(batch=batch, new_tokens=prompt_tokens, slots=prompt_tokens)


def decode(batch: int, context: int) -> Point:
    """Writing a token of each sequence."""
    return Point(batch=batch, new_tokens=1, slots=max(1, context))


def seconds_of(samples_s: Sequence[float], place: str) -> Seconds:
    """The median of samples and its interval.

    Raises:
        InputError: there are none, or one of them is no time.
    """
    if not samples_s or not all(0 < sample < math.inf for sample in samples_s):
        wrong = next((sample for sample in samples_s if not 0 < sample < math.inf), "no samples")
        raise InputError(
            place, got=wrong, expected="times above 0", remedy="The run failed or was cut off: run the benchmark again."
        )
    ordered, number = sorted(samples_s), len(samples_s)
    half = _Z_90 * math.sqrt(number) / 2  # of the order statistics that enclose the median nine times in ten
    return Seconds(
        median_s=statistics.median(ordered),
        low_s=ordered[max(0, math.floor(number / 2 - half))],
        high_s=ordered[min(number - 1, math.ceil(number / 2 + half))],
        num_samples=number,
    )


def parsed(text: str, place: str) -> Any:
    """JSON, or one JSON value on each line.

    Raises:
        InputError: it is neither, for one that it was cut off.
    """
    if not text.strip():
        raise InputError(
            place,
            got="an empty file",
            expected="JSON as the benchmark writes it",
            remedy="Check the path; the benchmark may have been stopped before it wrote anything.",
        )
    try:
        return json.loads(text)
    except ValueError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            if len(lines) > 1:
                return [json.loads(line) for line in lines]
        except ValueError:
            pass
        raise InputError(
            place,
            got=f"broken JSON ({error})",
            expected="JSON as the benchmark writes it",
            remedy="The file is cut off, or holds something else too: let the benchmark write it again.",
        ) from error


def field(record: Any, name: str, kind: type | tuple[type, ...], place: str) -> Any:
    """A field of a record.

    Raises:
        InputError: there is none, or one of another type.
    """
    value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(
            f"{place}: {name}",
            got="nothing" if value is None else repr(value)[:80],
            expected="the field as the benchmark writes it",
            remedy="Check that the file is of the benchmark that was named, and written as JSON.",
        )
    return value


def records_of(data: Any, place: str) -> list[Any]:
    """The members of a list, of which there must be some.

    Raises:
        InputError: it is something else, or empty.
    """
    if not isinstance(data, list) or not data:
        raise InputError(
            place,
            got="an empty list" if data == [] else f"a {type(data).__name__}",
            expected="a list of runs",
            remedy="The benchmark ran nothing, or the file is another's: check --out of its run.",
        )
    return data


def check_agree(place: str, first: tuple[str, float], second: tuple[str, float], tolerance: float) -> None:
    """Refuses two numbers that say the same thing and differ: one of them is in another unit.

    Raises:
        InputError: they differ by more than a share of the larger one.
    """
    (name, value), (other, expected) = first, second
    if not abs(value - expected) <= tolerance * max(abs(value), abs(expected)):
        raise InputError(
            f"{place}: {name}",
            got=f"{value:.6g}",
            expected=f"{expected:.6g}, as {other} says",
            remedy="One of them is in another unit, or the file was changed: run the benchmark again.",
        )


def needed_load(told: Told, place: str, what: str) -> Load:
    """The load of a file that does not say it.

    Raises:
        InputError: it was not told.
    """
    if told.load is None:
        raise InputError(
            "--load",
            got=f"none for {place}",
            expected=f"{what}, which the file does not say",
            remedy="Add --load NAME=BATCHxPROMPT+NEW, one for each file or one for all.",
        )
    return told.load


def needed_format(told: Told, place: str) -> Format:
    """The format of a file that does not say it.

    Raises:
        InputError: it was not told.
    """
    if told.weights is None:
        raise InputError(
            "--format",
            got=f"none for {place}",
            expected="the format of the weights, which the file does not say",
            remedy="Add --format bf16, or whichever it was.",
        )
    return told.weights


def _writing_of(load: Load, request: WholeTime, times: Sequence[WholeTime]) -> WholeTime:
    point = prefill(load.batch, load.prompt_tokens)
    found = [time.seconds for time in times if (time.point, time.weights) == (point, request.weights)]
    what = f"a request of {load.batch}x{load.prompt_tokens}+{load.new_tokens}"
    if not found or min(each.median_s for each in found) >= request.seconds.median_s:
        got = (
            f"{what} alone" if not found else f"{what} in {request.seconds.median_s:.3g} s, less than its prompt takes"
        )
        raise InputError(
            "vllm bench latency",
            got=got,
            expected="the prompt by itself too, to tell reading from writing",
            remedy=f"Run it with --output-len 1 as well and read both in: --load a={load.batch}x{load.prompt_tokens}+1 "
            f"--load b={load.batch}x{load.prompt_tokens}+{load.new_tokens}.",
        )
    first, whole, steps = min(found, key=lambda each: each.median_s), request.seconds, load.new_tokens - 1
    median_s = (whole.median_s - first.median_s) / steps
    seconds = Seconds(
        median_s=median_s,
        low_s=max(median_s / 10, (whole.low_s - first.high_s) / steps),
        high_s=(whole.high_s - first.low_s) / steps,
        num_samples=min(whole.num_samples, first.num_samples),
    )
    return WholeTime(point=request.point, weights=request.weights, seconds=seconds)
