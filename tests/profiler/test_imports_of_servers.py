"""Results of vLLM's benchmarks and of trtexec."""

import json
import math
from typing import Any

import numpy as np
import pytest

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.profiler.imports import Told, decode, joined, prefill
from blockwright.profiler.imports_trtexec import read_trtexec
from blockwright.profiler.imports_vllm import read_vllm
from results_of_others import told_of


def latency_of(seconds: list[float], **changes: Any) -> str:
    middle = {str(share): float(np.percentile(seconds, share)) for share in (10, 25, 50, 75, 90, 99)}
    data = {"avg_latency": float(np.mean(seconds)), "latencies": seconds, "percentiles": middle}
    return json.dumps(data | changes)


def test_vllm_requests_are_parted_into_reading_and_writing() -> None:
    whole = read_vllm(latency_of([2.0, 2.1, 1.9]), "all.json", told_of("8x512+101"))
    first = read_vllm(latency_of([0.5, 0.52, 0.48]), "one.json", told_of("8x512+1"))
    reading, writing = joined([whole, first])
    assert (reading.point, writing.point) == (prefill(8, 512), decode(8, 562))
    assert writing.seconds.median_s == pytest.approx((2.0 - 0.5) / 100)
    assert writing.seconds.low_s == pytest.approx((1.9 - 0.52) / 100)
    assert writing.seconds.high_s == pytest.approx((2.1 - 0.48) / 100)


def test_a_request_without_its_prompt_or_faster_than_it_is_refused() -> None:
    whole = read_vllm(latency_of([2.0, 2.1, 1.9]), "all.json", told_of("8x512+101"))
    other = read_vllm(latency_of([0.5]), "one.json", told_of("4x512+1"))
    slower = read_vllm(latency_of([2.5]), "one.json", told_of("8x512+1"))
    for results, words in (([whole], "alone"), ([whole, other], "alone"), ([whole, slower], "less than its prompt")):
        with pytest.raises(InputError, match=words):
            joined(results)


SERVE: dict[str, Any] = {
    "date": "20251121-101500", "endpoint_type": "openai", "backend": "openai", "label": None,
    "model_id": "Qwen/Qwen3-8B", "tokenizer_id": "Qwen/Qwen3-8B", "num_prompts": 100, "request_rate": "inf",
    "burstiness": 1.0, "max_concurrency": 8, "duration": 27.1, "completed": 100, "failed": 0,
    "total_input_tokens": 51200, "total_output_tokens": 12800, "request_throughput": 3.69, "request_goodput": None,
    "output_throughput": 472.3, "total_token_throughput": 2361.6, "mean_ttft_ms": 260.0, "median_ttft_ms": 250.0,
    "std_ttft_ms": 60.0, "p99_ttft_ms": 410.0, "mean_tpot_ms": 15.0, "median_tpot_ms": 14.8, "std_tpot_ms": 0.5,
    "p99_tpot_ms": 16.4, "mean_itl_ms": 15.0, "median_itl_ms": 14.2, "std_itl_ms": 4.0, "p99_itl_ms": 41.0,
}  # fmt: skip


def test_vllm_serving_is_a_decode_of_the_requests_in_flight() -> None:
    found = read_vllm(json.dumps(SERVE), "serve.json", told_of(None))
    (writing,) = found.times
    in_flight = 100 / 27.1 * (0.260 + 0.015 * 127)
    assert writing.point == decode(round(in_flight), 512 + 64) and round(in_flight) == 8
    assert writing.seconds.median_s == pytest.approx(14.8e-3)
    half_s = 1.6449 * math.sqrt(math.pi / 2) * 0.5e-3 / 10
    assert writing.seconds.high_s - writing.seconds.median_s == pytest.approx(half_s)
    assert "median_ttft_ms" in found.left_out[0]


def test_vllm_serving_one_at_a_time_is_a_prefill_too() -> None:
    alone = SERVE | {"max_concurrency": 1, "duration": 216.5}
    writing, reading = read_vllm(json.dumps(alone), "serve.json", told_of(None)).times
    assert (writing.point, reading.point) == (decode(1, 576), prefill(1, 512))
    assert reading.seconds.median_s == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("text", "load", "words"),
    [
        (json.dumps(SERVE | {"failed": 3, "completed": 97}), None, "3 of 100 requests"),
        (json.dumps({k: v for k, v in SERVE.items() if k != "failed"} | {"completed": 90}), None, "10 of 100"),
        (json.dumps(SERVE | {"median_tpot_ms": 0.0}), None, "above 0"),
        (latency_of([0.5, 0.6]), None, "--load"),
        (latency_of([0.5, 0.6], avg_latency=550.0), "1x16+1", "another unit"),
        (latency_of([0.5, 0.0]), "1x16+1", "above 0"),
        (latency_of([0.5], latencies=[]), "1x16+1", "no samples"),
    ],
)
def test_vllm_files_that_cannot_be_are_refused(text: str, load: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_vllm(text, "vllm.json", told_of(load))


def test_a_server_that_guesses_ahead_is_refused() -> None:
    with pytest.raises(InputError, match="speculative"):
        read_vllm(json.dumps(SERVE | {"spec_decode_num_drafts": 4096}), "serve.json", told_of(None))


def iterations_of(times_ms: list[float], **changes: Any) -> str:
    """As `exportJSONTrace` prints them."""
    start, lines = 5.2, []
    for took in times_ms:
        record = {
            "startEnqMs": start, "endEnqMs": start + 0.1, "startH2dMs": start, "endH2dMs": start + 0.02,
            "startComputeMs": start + 0.02, "endComputeMs": start + 0.02 + took, "startD2hMs": start + took + 0.02,
            "endD2hMs": start + took + 0.03, "h2dMs": 0.02, "computeMs": took, "d2hMs": 0.01, "latencyMs": took + 0.03,
        }  # fmt: skip
        lines.append(json.dumps(record | changes))
        start += took + 0.1
    return "[\n  " + "\n, ".join(lines) + "\n]\n"


def test_trtexec_iterations_are_a_prompt_or_with_a_context_one_token() -> None:
    text = iterations_of([3.1, 3.0, 3.3])
    (reading,) = read_trtexec(text, "times.json", told_of("4x512+1")).times
    (writing,) = read_trtexec(text, "times.json", told_of("4x512+1", context=700)).times
    assert (reading.point, writing.point) == (prefill(4, 512), decode(4, 700))
    assert reading.seconds == writing.seconds
    assert (reading.seconds.low_s, reading.seconds.median_s) == (pytest.approx(3.0e-3), pytest.approx(3.1e-3))


@pytest.mark.parametrize(
    ("text", "told", "words"),
    [
        (iterations_of([3.0]), told_of(None), "--load"),
        (iterations_of([3.0]), told_of("1x1+1"), "--context"),
        (iterations_of([3.0]), Told(load=Load(batch=1, prompt_tokens=8, new_tokens=1)), "--format"),
        (iterations_of([3.0], computeMs=0.003), told_of("1x8+1"), "another unit"),
        (iterations_of([0.0, 3.0]), told_of("1x8+1"), "above 0"),
        (iterations_of([3.0], endComputeMs=None), told_of("1x8+1"), "endComputeMs"),
    ],
)
def test_trtexec_files_that_cannot_be_are_refused(text: str, told: Told, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_trtexec(text, "times.json", told)
