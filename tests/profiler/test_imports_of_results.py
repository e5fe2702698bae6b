"""Readers of other programs' results, on texts in the formats that those programs write."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.profiler.imports import Results, Told, decode, joined, prefill
from blockwright.profiler.imports_llama_bench import read_llama_bench
from blockwright.profiler.imports_trtexec import read_trtexec
from blockwright.profiler.imports_vllm import read_vllm
from blockwright.spec import parse_format

BF16 = parse_format("bf16")
TEST = """{
    "build_commit": "8cf427ff", "build_number": 5163, "cpu_info": "AMD Ryzen 7 7800X3D 8-Core Processor",
    "gpu_info": "NVIDIA GeForce RTX 4080", "backends": "CUDA",
    "model_filename": "models/Qwen2.5-7B-Instruct-Q4_K_M.gguf", "model_type": "qwen2 7B Q4_K - Medium",
    "model_size": 4677120000, "model_n_params": 7615616512, "n_batch": 2048, "n_ubatch": 512, "n_threads": 8,
    "cpu_mask": "0x0", "cpu_strict": false, "poll": 50, "type_k": "f16", "type_v": "f16", "n_gpu_layers": 99,
    "split_mode": "layer", "main_gpu": 0, "no_kv_offload": false, "flash_attn": false, "tensor_split": "0.00",
    "use_mmap": true, "embeddings": false, "n_prompt": 512, "n_gen": 0, "n_depth": 0,
    "test_time": "2025-04-24T11:58:50Z", "avg_ns": 72135640, "stddev_ns": 1453752, "avg_ts": 7100.002165,
    "stddev_ts": 140.341520, "samples_ns": [ 74601900, 71632900, 71745200, 71952700, 70745500 ],
    "samples_ts": [ 6863.1, 7147.55, 7136.37, 7115.79, 7237.21 ]
}"""
WRITTEN_NS = [1075361300, 1065089400, 1071761200, 1081934900, 1089692600]


def _test(**changes: Any) -> dict[str, Any]:
    return json.loads(TEST) | changes


def _writes(**changes: Any) -> dict[str, Any]:
    numbers = {"n_prompt": 0, "n_gen": 128, "avg_ns": 1076767880, "avg_ts": 118.881588, "samples_ns": WRITTEN_NS}
    return _test(**numbers) | changes


def _llama(*tests: dict[str, Any], told: Told | None = None, is_gpu: bool = True) -> Results:
    return read_llama_bench(json.dumps(tests), "bench.json", told or Told(), num_layers=28, is_gpu=is_gpu)


def test_llama_bench_times_are_those_of_a_prompt_and_of_one_token() -> None:
    found = _llama(_test(), _writes(n_depth=2048))
    reading, writing = found.times
    assert (reading.point, writing.point) == (prefill(1, 512), decode(1, 2048 + 64))
    assert reading.seconds.median_s == pytest.approx(71745200e-9)
    assert writing.seconds.median_s == pytest.approx(np.median(WRITTEN_NS) * 1e-9 / 128)
    assert writing.seconds.low_s < writing.seconds.median_s < writing.seconds.high_s
    assert writing.seconds.low_s >= min(WRITTEN_NS) * 1e-9 / 128 and writing.seconds.num_samples == 5
    assert found.software == {"llama.cpp": "8cf427ff (5163, CUDA)"} and found.num_parameters == 7615616512
    assert {str(time.weights) for time in found.times} == {"int4-g32"}


def test_one_test_on_each_line_is_the_same_as_a_list() -> None:
    tests = [_test(), _writes()]
    text = "\n".join(json.dumps(test) for test in tests) + "\n"
    assert read_llama_bench(text, "bench.jsonl", Told(), 28, True) == _llama(*tests)
    assert read_llama_bench(json.dumps(tests[0]), "bench.jsonl", Told(), 28, True) == _llama(tests[0])


@pytest.mark.parametrize(
    ("model_type", "ours"),
    [
        ("llama 1B all F32", "fp32"),
        ("llama 1B BF16", "bf16"),
        ("qwen3 0.6B F16 (guessed)", "fp16"),
        ("llama 8B Q8_0", "int8-g32"),
        ("llama 7B mostly Q4_0", "int4-g32"),
    ],
)
def test_the_format_is_the_end_of_the_model_type(model_type: str, ours: str) -> None:
    assert str(_llama(_test(model_type=model_type)).times[0].weights) == ours


def test_a_format_that_is_none_of_ours_is_refused_unless_told() -> None:
    with pytest.raises(InputError, match="Q5_K"):
        _llama(_test(model_type="qwen2 7B Q5_K - Medium"))
    told = Told(weights=parse_format("int8"))
    assert str(_llama(_test(model_type="qwen2 7B Q5_K - Medium"), told=told).times[0].weights) == "int8-g32"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_gen": 128}, "reads and writes"),
        ({"n_depth": 512}, "512 tokens that are there"),
        ({"type_k": "q8_0"}, "caches of q8_0"),
        ({"n_gpu_layers": 12}, "12 of 28 layers"),
        ({"no_kv_offload": True}, "caches in the host"),
        ({"embeddings": True}, "embeddings in place"),
        ({"tensor_buft_overrides": "ffn_.*=CPU"}, "matrices kept elsewhere"),
        ({"gpu_info": "NVIDIA A100, NVIDIA A100"}, "spread over NVIDIA A100, NVIDIA A100"),
        ({"devices": "CUDA0/CUDA1"}, "spread over"),
    ],
)
def test_tests_of_other_things_are_left_out_and_told(changes: dict[str, Any], words: str) -> None:
    found = _llama(_test(**changes), _writes())
    assert len(found.times) == 1 and words in found.left_out[0]
    with pytest.raises(InputError, match="a test that reads a prompt"):
        _llama(_test(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_gpu_layers": -1},
        {"gpu_info": "NVIDIA A100, NVIDIA A100", "split_mode": "none"},
        {"gpu_info": "NVIDIA A100, NVIDIA A100", "devices": "CUDA1"},
    ],
)
def test_all_layers_on_one_gpu_are_right(changes: dict[str, Any]) -> None:
    assert len(_llama(_test(**changes)).times) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu_info": "", "backends": "CPU"}, None),
        ({"gpu_info": "", "backends": "CPU", "n_gpu_layers": 0}, None),
        ({"n_gpu_layers": 0, "no_op_offload": 1}, None),
        ({"n_gpu_layers": 0}, "helps to read"),
        ({"n_gpu_layers": 99}, "layers on NVIDIA GeForce RTX 4080"),
    ],
)
def test_a_processors_tests_are_those_that_no_gpu_had_a_part_in(changes: dict[str, Any], words: str | None) -> None:
    alone = _writes(gpu_info="", n_gpu_layers=0)
    found = _llama(_test(**changes), alone, is_gpu=False)
    assert found.device == "AMD Ryzen 7 7800X3D 8-Core Processor"
    assert len(found.times) == 1 + (words is None) and (words or "") in " ".join(found.left_out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples_ns": [], "avg_ns": 0}, "no samples"),
        ({"samples_ns": [0, 71632900], "avg_ns": 35816450}, "above 0"),
        ({"avg_ns": 72.13564}, "another unit"),
        ({"avg_ts": 7.1}, "another unit"),
        ({"model_n_params": "many"}, "model_n_params"),
        ({"build_commit": None}, "build_commit"),
    ],
)
def test_llama_bench_files_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        _llama(_test(**changes))


@pytest.mark.parametrize("other", [{"build_commit": "deadbeef"}, {"model_type": "llama 7B Q8_0"}])
def test_versions_and_formats_are_not_mixed(other: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="one, for a profile"):
        _llama(_test(), _writes(**other))


@pytest.mark.parametrize("text", [f"[{TEST[:300]}", "", f"{TEST}\n{TEST[:200]}", "[]", '"soon"'])
def test_files_that_were_cut_off_are_refused(text: str) -> None:
    for read in (
        lambda: read_llama_bench(text, "file", Told(), 28, True),
        lambda: read_vllm(text, "file", Told()),
        lambda: read_trtexec(text, "file", Told()),
    ):
        with pytest.raises(InputError, match="file"):
            read()


def _latency(seconds: list[float], **changes: Any) -> str:
    middle = {str(share): float(np.percentile(seconds, share)) for share in (10, 25, 50, 75, 90, 99)}
    data = {"avg_latency": float(np.mean(seconds)), "latencies": seconds, "percentiles": middle}
    return json.dumps(data | changes)


def _told(load: str | None, **more: Any) -> Told:
    if load is None:
        return Told(weights=BF16, **more)
    batch, prompt, new = (int(number) for number in load.replace("+", "x").split("x"))
    return Told(load=Load(batch=batch, prompt_tokens=prompt, new_tokens=new), weights=BF16, **more)


def test_vllm_requests_are_parted_into_reading_and_writing() -> None:
    whole = read_vllm(_latency([2.0, 2.1, 1.9]), "all.json", _told("8x512+101"))
    first = read_vllm(_latency([0.5, 0.52, 0.48]), "one.json", _told("8x512+1"))
    reading, writing = joined([whole, first])
    assert (reading.point, writing.point) == (prefill(8, 512), decode(8, 562))
    assert writing.seconds.median_s == pytest.approx((2.0 - 0.5) / 100)
    assert writing.seconds.low_s == pytest.approx((1.9 - 0.52) / 100)
    assert writing.seconds.high_s == pytest.approx((2.1 - 0.48) / 100)


def test_a_request_without_its_prompt_or_faster_than_it_is_refused() -> None:
    whole = read_vllm(_latency([2.0, 2.1, 1.9]), "all.json", _told("8x512+101"))
    other = read_vllm(_latency([0.5]), "one.json", _told("4x512+1"))
    slower = read_vllm(_latency([2.5]), "one.json", _told("8x512+1"))
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
    found = read_vllm(json.dumps(SERVE), "serve.json", _told(None))
    (writing,) = found.times
    in_flight = 100 / 27.1 * (0.260 + 0.015 * 127)
    assert writing.point == decode(round(in_flight), 512 + 64) and round(in_flight) == 8
    assert writing.seconds.median_s == pytest.approx(14.8e-3)
    half_s = 1.6449 * math.sqrt(math.pi / 2) * 0.5e-3 / 10
    assert writing.seconds.high_s - writing.seconds.median_s == pytest.approx(half_s)
    assert "median_ttft_ms" in found.left_out[0]


def test_vllm_serving_one_at_a_time_is_a_prefill_too() -> None:
    alone = SERVE | {"max_concurrency": 1, "duration": 216.5}
    writing, reading = read_vllm(json.dumps(alone), "serve.json", _told(None)).times
    assert (writing.point, reading.point) == (decode(1, 576), prefill(1, 512))
    assert reading.seconds.median_s == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("text", "load", "words"),
    [
        (json.dumps(SERVE | {"failed": 3, "completed": 97}), None, "3 of 100 requests"),
        (json.dumps({k: v for k, v in SERVE.items() if k != "failed"} | {"completed": 90}), None, "10 of 100"),
        (json.dumps(SERVE | {"median_tpot_ms": 0.0}), None, "above 0"),
        (_latency([0.5, 0.6]), None, "--load"),
        (_latency([0.5, 0.6], avg_latency=550.0), "1x16+1", "another unit"),
        (_latency([0.5, 0.0]), "1x16+1", "above 0"),
        (_latency([0.5], latencies=[]), "1x16+1", "no samples"),
    ],
)
def test_vllm_files_that_cannot_be_are_refused(text: str, load: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_vllm(text, "vllm.json", _told(load))


def test_a_server_that_guesses_ahead_is_refused() -> None:
    with pytest.raises(InputError, match="speculative"):
        read_vllm(json.dumps(SERVE | {"spec_decode_num_drafts": 4096}), "serve.json", _told(None))


def _iterations(times_ms: list[float], **changes: Any) -> str:
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
    text = _iterations([3.1, 3.0, 3.3])
    (reading,) = read_trtexec(text, "times.json", _told("4x512+1")).times
    (writing,) = read_trtexec(text, "times.json", _told("4x512+1", context=700)).times
    assert (reading.point, writing.point) == (prefill(4, 512), decode(4, 700))
    assert reading.seconds == writing.seconds
    assert (reading.seconds.low_s, reading.seconds.median_s) == (pytest.approx(3.0e-3), pytest.approx(3.1e-3))


@pytest.mark.parametrize(
    ("text", "told", "words"),
    [
        (_iterations([3.0]), _told(None), "--load"),
        (_iterations([3.0]), _told("1x1+1"), "--context"),
        (_iterations([3.0]), Told(load=Load(batch=1, prompt_tokens=8, new_tokens=1)), "--format"),
        (_iterations([3.0], computeMs=0.003), _told("1x8+1"), "another unit"),
        (_iterations([0.0, 3.0]), _told("1x8+1"), "above 0"),
        (_iterations([3.0], endComputeMs=None), _told("1x8+1"), "endComputeMs"),
    ],
)
def test_trtexec_files_that_cannot_be_are_refused(text: str, told: Told, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_trtexec(text, "times.json", told)


def test_of_several_settings_the_fastest_is_kept() -> None:
    slow = _writes(samples_ns=[2 * each for each in WRITTEN_NS], avg_ns=2 * 1076767880, avg_ts=59.4, n_threads=4)
    (kept,) = joined([_llama(slow, _writes())])
    assert kept.seconds.median_s == pytest.approx(1075361300e-9 / 128)


FILES = Path(__file__).parent / "imported"
"""Written by hand with the fields that the programs write, as their sources of 2025 and 2026 name and order them."""


def test_files_of_newer_versions_are_read() -> None:
    bench = read_llama_bench((FILES / "llama-bench.json").read_text(), "llama-bench.json", Told(), 32, True)
    assert [(time.point, str(time.weights)) for time in bench.times] == [
        (prefill(1, 512), "int4-g32"),
        (decode(1, 4096 + 64), "int4-g32"),
    ]
    assert bench.device == "NVIDIA GeForce RTX 4090" and bench.num_parameters == 8030261248
    (writing,) = read_vllm((FILES / "vllm-serve.json").read_text(), "vllm-serve.json", _told(None)).times
    assert writing.point == decode(4, 1024 + 64) and writing.seconds.median_s == pytest.approx(7.61e-3)
    (reading,) = read_trtexec((FILES / "trtexec.json").read_text(), "trtexec.json", _told("1x512+1")).times
    assert reading.seconds.median_s == pytest.approx(12.0812e-3) and reading.seconds.num_samples == 3


def test_half_a_written_file_of_newer_versions_is_refused() -> None:
    for name, read in (("vllm-serve", read_vllm), ("trtexec", read_trtexec)):
        text = (FILES / f"{name}.json").read_text()
        with pytest.raises(InputError, match="broken JSON"):
            read(text[: len(text) // 2], name, _told("1x512+1"))
