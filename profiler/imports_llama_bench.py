"""What llama-bench writes with ``-o json`` or ``-o jsonl`` (llama.cpp, tools/llama-bench/llama-bench.cpp, `test`).

A list of tests, or one on each line; of each we read

    build_commit, build_number      the version
    cpu_info, gpu_info, backends    where it ran
    model_type, model_n_params      ``qwen2 7B Q4_K - Medium``; `llama_model_ftype_name` writes its end
    n_gpu_layers, type_k, type_v    layers on the GPU, below 0 for all of them; formats of the caches
    no_kv_offload, embeddings, split_mode, devices, tensor_buft_overrides, no_op_offload
                                    where they stand: who did what
    n_prompt, n_gen, n_depth        tokens read, tokens written, tokens in the caches before
    avg_ns, avg_ts, samples_ns      of the whole test, all tokens of it; tokens per second

Reading n_prompt tokens is a prefill, writing n_gen tokens over n_depth a decode at the context halfway. Left out are
tests that do both, prompts over caches that hold something, caches that are not of 16 bits, and tests in which another
device had a part: layers, caches or matrices left to the CPU, layers spread over several GPUs, or a GPU beside a CPU.
"""

import re
from collections.abc import Mapping
from typing import Any

from blockwright.errors import InputError
from blockwright.profiler.imports import (
    Results,
    Told,
    WholeTime,
    check_agree,
    decode,
    field,
    parsed,
    prefill,
    records_of,
    seconds_of,
)
from blockwright.spec import Format, parse_format

_FORMATS = {"F32": "fp32", "BF16": "bf16", "F16": "fp16", "Q8_0": "int8-g32", "Q4_0": "int4-g32", "Q4_K": "int4-g32"}
"""By the end of model_type. Q4_K keeps some matrices in more bits: what that takes, the anchors' ratio takes up."""
_FILE_TYPE = re.compile(r"(?:^|\s)(F32|BF16|F16|I?Q\d\w*|TQ\d\w*|MXFP4|NVFP4)\b")
_CACHES = ("f16", "bf16")
_MEANS_DIFFER = 0.5
"""A mean of rates and a rate of means: as far apart as noisy runs bring them, and less than a unit does."""


def read_llama_bench(text: str, place: str, told: Told, num_layers: int, is_gpu: bool) -> Results:
    """Reads a file of llama-bench.

    Args:
        text: of the file.
        place: its name, for messages.
        told: the format, where the file's is none of ours.
        num_layers: of the parent.
        is_gpu: whether the device is one.

    Raises:
        InputError: the file is broken, of another program, mixes models or versions, or holds no test of use.
    """
    data = parsed(text, place)
    tests = records_of([data] if isinstance(data, Mapping) else data, place)
    _check_one(tests, place)
    first = tests[0]
    times, left_out = [], []
    for number, test in enumerate(tests):
        where = f"{place}: test {number}"
        reason = _why_not(test, where) or (_why_not_gpu(test, where, num_layers) if is_gpu else _why_not_cpu(test))
        if reason is None:
            times.append(_time_of(test, where, _format_of(first["model_type"], told, place)))
        else:
            left_out.append(f"test {number}: {reason}")
    if not times:
        raise InputError(
            place,
            got="; ".join(left_out),
            expected="a test that reads a prompt (-p) or writes tokens (-n, at a depth -d), on this device alone",
            remedy="Run llama-bench -p 512 -n 128 -d 0,2048 -o json.",
        )
    version = f"{first['build_commit']} ({first.get('build_number', 'no number')}, {first.get('backends', 'unknown')})"
    return Results(
        software={"llama.cpp": version},
        times=tuple(times),
        num_parameters=field(first, "model_n_params", int, place),
        device=(first.get("gpu_info") if is_gpu else None) or first.get("cpu_info"),
        left_out=tuple(left_out),
    )


def _check_one(tests: list[Any], place: str) -> None:
    """Refuses a file of several models or versions."""
    for name, kind in (("build_commit", str), ("model_type", str), ("model_n_params", int)):
        values = {str(field(test, name, kind, place)) for test in tests}
        if len(values) > 1:
            raise InputError(
                f"{place}: {name}",
                got=", ".join(sorted(values)),
                expected="one, for a profile holds one version and these are one parent's times",
                remedy="Read in a file of one model in one format by one version at a time.",
            )


def _why_not(test: Mapping[str, Any], place: str) -> str | None:
    """Why a test is of no use on any device; None where it is."""
    prompt, new = (field(test, name, int, place) for name in ("n_prompt", "n_gen"))
    depth = field({"n_depth": 0} | dict(test), "n_depth", int, place)  # old versions have none
    if prompt and new:
        return "reads and writes at once"
    if prompt and depth:
        return f"reads over {depth} tokens that are there already"
    if not new and prompt < 2:
        return "reads less than two tokens and writes none"
    if any(test.get(name, "f16") not in _CACHES for name in ("type_k", "type_v")):
        return f"caches of {test.get('type_k')} and {test.get('type_v')}"
    return "embeddings in place of the next token" if test.get("embeddings") else None


def _why_not_gpu(test: Mapping[str, Any], place: str, num_layers: int) -> str | None:
    """Why a test says nothing of a GPU: some of the work was another device's. Below 0, all layers are on it."""
    on_gpu = field(test, "n_gpu_layers", int, place)
    if 0 <= on_gpu < num_layers:
        return f"{on_gpu} of {num_layers} layers on the GPU"
    if test.get("no_kv_offload"):
        return "caches in the host's memory"
    if (moved := test.get("tensor_buft_overrides", "none")) not in ("none", ""):
        return f"matrices kept elsewhere, {moved}"
    chosen, there = test.get("devices") or "auto", test.get("gpu_info") or ""
    is_spread = "/" in chosen or (chosen == "auto" and ", " in there)
    return f"layers spread over {there}" if is_spread and test.get("split_mode", "layer") != "none" else None


def _why_not_cpu(test: Mapping[str, Any]) -> str | None:
    """Why a test says nothing of a processor: a GPU that the program was built for takes layers, and large products."""
    if not test.get("gpu_info"):
        return None
    if test.get("n_gpu_layers"):
        return f"layers on {test['gpu_info']}"
    is_helped = test["n_prompt"] and not test.get("no_op_offload")
    return f"a prompt that {test['gpu_info']} helps to read" if is_helped else None


def _time_of(test: Mapping[str, Any], place: str, weights: Format) -> WholeTime:
    samples_ns = field(test, "samples_ns", list, place)
    prompt, new, depth = test["n_prompt"], test["n_gen"], test.get("n_depth", 0)
    numbers = [each if isinstance(each, (int, float)) else 0 for each in samples_ns]
    whole = seconds_of([each * 1e-9 / (new or 1) for each in numbers], f"{place}: samples_ns")
    average_ns = field(test, "avg_ns", (int, float), place)
    check_agree(place, ("avg_ns", average_ns), ("the mean of samples_ns", sum(numbers) / len(numbers)), 0.01)
    if test.get("avg_ts"):
        rate = (prompt + new) / (average_ns * 1e-9)
        check_agree(place, ("avg_ts", test["avg_ts"]), ("avg_ns in tokens per second", rate), _MEANS_DIFFER)
    point = decode(1, depth + new // 2) if new else prefill(1, prompt)
    return WholeTime(point=point, weights=weights, seconds=whole)


def _format_of(model_type: str, told: Told, place: str) -> Format:
    if told.weights is not None:
        return told.weights
    found = _FILE_TYPE.search(model_type)
    name = found[1] if found else ""
    ours = next((ours for theirs, ours in _FORMATS.items() if name == theirs or name.startswith(f"{theirs}_")), None)
    if ours is None:
        raise InputError(
            f"{place}: model_type",
            got=model_type,
            expected="a format that we have too: " + ", ".join(_FORMATS),
            remedy="Say with --format which of ours it is to stand for.",
        )
    return parse_format(ours)
