"""Readers of other programs' results, on texts in the formats that those programs write."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockwright.errors import InputError
from blockwright.profiler.imports import Results, Told, decode, joined, prefill
from blockwright.profiler.imports_llama_bench import read_llama_bench
from blockwright.profiler.imports_trtexec import read_trtexec
from blockwright.profiler.imports_vllm import read_vllm
from blockwright.spec import parse_format
from results_of_others import told_of

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


def bench_test(**changes: Any) -> dict[str, Any]:
    return json.loads(TEST) | changes


def written_steps(**changes: Any) -> dict[str, Any]:
    numbers = {"n_prompt": 0, "n_gen": 128, "avg_ns": 1076767880, "avg_ts": 118.881588, "samples_ns": WRITTEN_NS}
    return bench_test(**numbers) | changes


def llama_bench(*tests: dict[str, Any], told: Told | None = None, is_gpu: bool = True) -> Results:
    return read_llama_bench(json.dumps(tests), "bench.json", told or Told(), num_layers=28, is_gpu=is_gpu)


def test_llama_bench_times_are_those_of_a_prompt_and_of_one_token() -> None:
    found = llama_bench(bench_test(), written_steps(n_depth=2048))
    reading, writing = found.times
    assert (reading.point, writing.point) == (prefill(1, 512), decode(1, 2048 + 64))
    assert reading.seconds.median_s == pytest.approx(71745200e-9)
    assert writing.seconds.median_s == pytest.approx(np.median(WRITTEN_NS) * 1e-9 / 128)
    assert writing.seconds.low_s < writing.seconds.median_s < writing.seconds.high_s
    assert writing.seconds.low_s >= min(WRITTEN_NS) * 1e-9 / 128 and writing.seconds.num_samples == 5
    assert found.software == {"llama.cpp": "8cf427ff (5163, CUDA)"} and found.num_parameters == 7615616512
    assert {str(time.weights) for time in found.times} == {"int4-g32"}


def test_one_test_on_each_line_is_the_same_as_a_list() -> None:
    tests = [bench_test(), written_steps()]
    text = "\n".join(json.dumps(test) for test in tests) + "\n"
    assert read_llama_bench(text, "bench.jsonl", Told(), 28, True) == llama_bench(*tests)
    assert read_llama_bench(json.dumps(tests[0]), "bench.jsonl", Told(), 28, True) == llama_bench(tests[0])


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
    assert str(llama_bench(bench_test(model_type=model_type)).times[0].weights) == ours


def test_a_format_that_is_none_of_ours_is_refused_unless_told() -> None:
    with pytest.raises(InputError, match="Q5_K"):
        llama_bench(bench_test(model_type="qwen2 7B Q5_K - Medium"))
    told = Told(weights=parse_format("int8"))
    assert str(llama_bench(bench_test(model_type="qwen2 7B Q5_K - Medium"), told=told).times[0].weights) == "int8-g32"


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
    found = llama_bench(bench_test(**changes), written_steps())
    assert len(found.times) == 1 and words in found.left_out[0]
    with pytest.raises(InputError, match="a test that reads a prompt"):
        llama_bench(bench_test(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_gpu_layers": -1},
        {"gpu_info": "NVIDIA A100, NVIDIA A100", "split_mode": "none"},
        {"gpu_info": "NVIDIA A100, NVIDIA A100", "devices": "CUDA1"},
    ],
)
def test_all_layers_on_one_gpu_are_right(changes: dict[str, Any]) -> None:
    assert len(llama_bench(bench_test(**changes)).times) == 1


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
    alone = written_steps(gpu_info="", n_gpu_layers=0)
    found = llama_bench(bench_test(**changes), alone, is_gpu=False)
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
        llama_bench(bench_test(**changes))


@pytest.mark.parametrize("other", [{"build_commit": "deadbeef"}, {"model_type": "llama 7B Q8_0"}])
def test_versions_and_formats_are_not_mixed(other: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="one, for a profile"):
        llama_bench(bench_test(), written_steps(**other))


@pytest.mark.parametrize("text", [f"[{TEST[:300]}", "", f"{TEST}\n{TEST[:200]}", "[]", '"soon"'])
def test_files_that_were_cut_off_are_refused(text: str) -> None:
    for read in (
        lambda: read_llama_bench(text, "file", Told(), 28, True),
        lambda: read_vllm(text, "file", Told()),
        lambda: read_trtexec(text, "file", Told()),
    ):
        with pytest.raises(InputError, match="file"):
            read()


def test_of_several_settings_the_fastest_is_kept() -> None:
    slow = written_steps(samples_ns=[2 * each for each in WRITTEN_NS], avg_ns=2 * 1076767880, avg_ts=59.4, n_threads=4)
    (kept,) = joined([llama_bench(slow, written_steps())])
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
    (writing,) = read_vllm((FILES / "vllm-serve.json").read_text(), "vllm-serve.json", told_of(None)).times
    assert writing.point == decode(4, 1024 + 64) and writing.seconds.median_s == pytest.approx(7.61e-3)
    (reading,) = read_trtexec((FILES / "trtexec.json").read_text(), "trtexec.json", told_of("1x512+1")).times
    assert reading.seconds.median_s == pytest.approx(12.0812e-3) and reading.seconds.num_samples == 3


def test_half_a_written_file_of_newer_versions_is_refused() -> None:
    for name, read in (("vllm-serve", read_vllm), ("trtexec", read_trtexec)):
        text = (FILES / f"{name}.json").read_text()
        with pytest.raises(InputError, match="broken JSON"):
            read(text[: len(text) // 2], name, told_of("1x512+1"))
