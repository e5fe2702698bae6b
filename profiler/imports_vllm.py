"""What vLLM's benchmarks write (vllm-project/vllm, vllm/benchmarks).

``vllm bench latency --output-json`` (latency.py): seconds of a whole batch, from its prompts to its last token.

    avg_latency, latencies          the load and the model do not stand in it

One new token is a prefill. Of more, what reading takes must be known from another file (`imports.joined`).

``vllm bench serve --save-result`` (serve.py, `benchmark`): statistics over requests, in milliseconds.

    completed, failed               requests; num_prompts where an old version does not say how many failed
    total_input_tokens, total_output_tokens, duration
    median_tpot_ms, std_tpot_ms     of a token after the first, of a request
    median_ttft_ms, std_ttft_ms     to the first token, with the time in the queue
    mean_ttft_ms, mean_tpot_ms      for Little's law: requests in flight are rate times time in the system
    max_concurrency, model_id, date

A token after the first is a decode, of as many sequences as were in flight, halfway through answers of the mean length.
A time to first token is a prefill where requests came one at a time; else they waited for each other, and it is left
out. A median's interval is told from the spread, as of a normal one: 1.25 standard errors of the mean, 1.64 times.
"""

import math
from collections.abc import Mapping
from typing import Any

from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Point
from blockwright.profiler.imports import (
    NOT_TOLD,
    Results,
    Seconds,
    Told,
    WholeTime,
    check_agree,
    decode,
    field,
    needed_format,
    needed_load,
    parsed,
    prefill,
    seconds_of,
)

_NUMBER = (int, float)
_OF_SERVE = {"completed", "num_prompts", "median_tpot_ms", "total_output_tokens", "spec_decode_num_drafts"}
"""Any of these makes a file one of ``bench serve``; what of it is missing is then told by name."""
_MOST_KEYS = 6
"""To tell a file by."""
_HALF_WIDTH_OF_MEDIAN = 1.6449 * math.sqrt(math.pi / 2)


def read_vllm(text: str, place: str, told: Told) -> Results:
    """Reads a file of either benchmark.

    Args:
        text: of the file.
        place: its name, for messages.
        told: the format; of ``bench latency`` the load too.

    Raises:
        InputError: the file is broken, of another program, or of a run that failed.
    """
    data = parsed(text, place)
    if isinstance(data, Mapping) and "latencies" in data and "avg_latency" in data:
        return _latency(data, place, told)
    if not isinstance(data, Mapping) or not _OF_SERVE & data.keys():
        raise InputError(
            place,
            got=_keys_of(data),
            expected="avg_latency and latencies (vllm bench latency --output-json), or completed, duration and "
            "median_tpot_ms (vllm bench serve --save-result)",
            remedy="The file is not of vLLM's benchmarks: name the program that wrote it, llama-bench or trtexec, or "
            "another file.",
        )
    return _serve(data, place, told)


def _keys_of(data: Any) -> str:
    """What a file holds instead, in a few words."""
    if isinstance(data, Mapping):
        names = list(map(str, data))
        more = ", …" if len(names) > _MOST_KEYS else ""
        return "JSON with " + ("the fields " + ", ".join(names[:_MOST_KEYS]) + more if names else "no fields")
    return (
        "JSON that is a list" if isinstance(data, list) else f"JSON that is the {type(data).__name__} {str(data)[:40]}"
    )


def _latency(data: Mapping[str, Any], place: str, told: Told) -> Results:
    load = needed_load(told, place, "the batch and lengths that --batch-size, --input-len and --output-len were")
    samples = field(data, "latencies", list, place)
    numbers = [each if isinstance(each, _NUMBER) else 0 for each in samples]
    seconds = seconds_of(numbers, f"{place}: latencies")
    average = field(data, "avg_latency", _NUMBER, place)
    check_agree(place, ("avg_latency", average), ("the mean of latencies", sum(numbers) / len(numbers)), 0.01)
    weights, software = needed_format(told, place), _software(data)
    if load.new_tokens == 1:
        time = WholeTime(point=prefill(load.batch, load.prompt_tokens), weights=weights, seconds=seconds)
        return Results(software=software, times=(time,))
    point = decode(load.batch, load.prompt_tokens + load.new_tokens // 2)
    request = WholeTime(point=point, weights=weights, seconds=seconds)
    return Results(software=software, times=(), requests=((load, request),))


def _serve(data: Any, place: str, told: Told) -> Results:
    if isinstance(data, Mapping) and "spec_decode_num_drafts" in data:
        raise InputError(
            f"{place}: spec_decode_num_drafts",
            got=data["spec_decode_num_drafts"],
            expected="a server without speculative decoding, whose steps write several tokens each",
            remedy="Run the benchmark against a server without --speculative-config.",
        )
    completed = field(data, "completed", int, place)
    asked = field({"num_prompts": completed} | dict(data), "num_prompts", int, place)
    failed = field({"failed": asked - completed} | dict(data), "failed", int, place)
    if failed or completed < 1:
        raise InputError(
            f"{place}: failed",
            got=f"{failed} of {completed + failed} requests",
            expected="none: what did not fail was measured beside failures",
            remedy="Find out why in the server's log, and run the benchmark again.",
        )
    batch, context = _load_of(data, place, told, completed)
    weights = needed_format(told, place)

    def median(name: str, point: Point) -> WholeTime:
        return WholeTime(point=point, weights=weights, seconds=_median(data, name, completed, place))

    times = [median("tpot", decode(batch, context[1]))]
    left_out = ()
    if batch == 1 and data.get("max_concurrency") == 1:
        times.append(median("ttft", prefill(1, context[0])))
    else:
        left_out = (f"median_ttft_ms: {batch} requests at a time wait for each other",)
    return Results(software=_software(data), times=tuple(times), left_out=left_out)


def _load_of(data: Mapping[str, Any], place: str, told: Told, completed: int) -> tuple[int, tuple[int, int]]:
    """Sequences in flight; tokens of the prompt, and of the prompt and half of the answer."""
    reads, writes = (field(data, f"total_{name}_tokens", int, place) / completed for name in ("input", "output"))
    ttft, tpot = (field(data, f"mean_{name}_ms", _NUMBER, place) * 1e-3 for name in ("ttft", "tpot"))
    if told.load is not None:
        lengths = (told.load.prompt_tokens, told.load.prompt_tokens + told.load.new_tokens // 2)
        return told.load.batch, lengths
    rate = completed / field(data, "duration", _NUMBER, place)
    in_flight = rate * (ttft + tpot * max(0.0, writes - 1))
    return max(1, round(in_flight)), (round(reads), round(reads + writes / 2))


def _median(data: Mapping[str, Any], name: str, completed: int, place: str) -> Seconds:
    median_s = field(data, f"median_{name}_ms", _NUMBER, place) * 1e-3
    spread_s = field(data, f"std_{name}_ms", _NUMBER, place) * 1e-3
    if not (0 < median_s < math.inf and 0 <= spread_s < math.inf):
        raise InputError(
            f"{place}: median_{name}_ms",
            got=data[f"median_{name}_ms"],
            expected="a time above 0",
            remedy="Answers must have at least two tokens: run the benchmark again with longer ones.",
        )
    half_s = _HALF_WIDTH_OF_MEDIAN * spread_s / math.sqrt(completed)
    return Seconds(
        median_s=median_s, low_s=max(median_s / 10, median_s - half_s), high_s=median_s + half_s, num_samples=completed
    )


def _software(data: Mapping[str, Any]) -> dict[str, str]:
    """The version stands in the file only where the run was told to write it: --metadata vllm_version=…"""
    return {"vllm": str(data.get("vllm_version", NOT_TOLD))}
