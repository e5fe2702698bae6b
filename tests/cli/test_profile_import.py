"""The command `profile import`: results of other programs' benchmarks, and what is foretold from them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from blockwright.cli.flags import ALL_BACKENDS, LOCAL_BACKENDS
from blockwright.cli.main import BAD_INPUT, main
from blockwright.errors import InputError
from blockwright.hw_profiles.folder import measured_profiles, read_profile, write_profile
from blockwright.hw_profiles.profile import BACKENDS, LocalBackend, WholeRow, parent_of
from blockwright.pipeline import kit
from blockwright.pipeline.profile import read_profile_of
from blockwright.profiler.imports import decode, prefill
from blockwright.search.plan import read_plan
from blockwright.search.scores import ScoreTable, write_scores
from blockwright.spec import Model, variant_name

DEMO = Path(__file__).parents[2] / "recipes" / "demo-parent"
NUM_PARAMETERS = 1_837_184
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program; gives its exit code, what it printed and what it complained of."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def _test(prompt: int, new: int, time_ns: int, **changes: Any) -> dict[str, Any]:
    samples = [time_ns, time_ns + time_ns // 100, time_ns - time_ns // 100]
    return {
        "build_commit": "8cf427ff", "build_number": 5163, "cpu_info": "AMD Ryzen 7 7800X3D 8-Core Processor",
        "gpu_info": "NVIDIA GeForce RTX 4090", "backends": "CUDA", "model_filename": "demo.gguf",
        "model_type": "llama ?B BF16", "model_size": 3674368, "model_n_params": NUM_PARAMETERS, "n_batch": 2048,
        "n_ubatch": 512, "n_threads": 8, "type_k": "f16", "type_v": "f16", "n_gpu_layers": 99, "n_prompt": prompt,
        "n_gen": new, "n_depth": 0, "test_time": "2025-04-24T11:58:50Z", "avg_ns": time_ns, "stddev_ns": 1,
        "avg_ts": (prompt + new) / (time_ns * 1e-9), "samples_ns": samples,
    } | changes  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A prompt of 128 tokens in 1.1 ms and 128 tokens of 0.4 ms each."""
    file = tmp_path / "bench.json"
    file.write_text(json.dumps([_test(128, 0, 1_100_000), _test(0, 128, 128 * 400_000)]))
    return file


def _import(run: Run, source: str, *files: Path, out: Path, **flags: object) -> tuple[int, str, str]:
    words = [
        word for name, value in ({"for": DEMO, "into": "rtx_4090"} | flags).items() for word in (f"--{name}", value)
    ]
    return run("profile", "import", source, *files, *words, "--out", out)


def test_times_of_llama_bench_become_costs_of_llama_cpp(bench: Path, tmp_path: Path, run: Run) -> None:
    code, _, told = _import(run, "llama-bench", bench, out=tmp_path / "device")
    assert code == 0 and "NVIDIA GeForce RTX 4090" in told
    profile = read_profile(tmp_path / "device")
    assert profile.software == {"llama.cpp": "8cf427ff (5163, CUDA)"}
    assert [(row.backend, row.format, row.is_anchor, len(row.layers)) for row in profile.wholes] == [
        ("llama.cpp", "bf16", True, 8)
    ] * 2
    words = ["--parent", DEMO, "--profile", tmp_path / "device", "--format", "bf16", "--backend", "llama.cpp"]
    code, printed, _ = run("predict", *words, "--load", "chat=1x128+2", "--json")
    costs = {one["quantity"]: one["model"] for one in json.loads(printed)}
    assert code == 0
    assert costs["time_to_first_token"]["value"] == pytest.approx(1.1e-3)
    assert costs["time_per_token"]["value"] == pytest.approx(0.4e-3, rel=0.1)
    assert costs["time_per_token"]["origin"] == "transferred"
    _, table, _ = run("predict", *words)
    assert "datasheet" not in table
    _, known, _ = run("profile", "show", tmp_path / "device")
    assert "nothing measured here, 2 imported" in known


def test_the_same_times_may_come_again_and_those_of_another_version_not(bench: Path, tmp_path: Path, run: Run) -> None:
    _import(run, "llama-bench", bench, out=tmp_path / "one")
    slower = tmp_path / "slower.json"
    slower.write_text(json.dumps([_test(128, 0, 2_200_000)]))
    code, _, _ = _import(run, "llama-bench", slower, out=tmp_path / "two", into=tmp_path / "one")
    assert code == 0
    times = {row.point.new_tokens: row.time_s for row in read_profile(tmp_path / "two").wholes}
    assert times == {128: pytest.approx(2.2e-3), 1: pytest.approx(0.4e-3)}
    other = tmp_path / "other.json"
    other.write_text(json.dumps([_test(256, 0, 2_200_000, build_commit="deadbeef")]))
    code, _, told = _import(run, "llama-bench", other, out=tmp_path / "three", into=tmp_path / "one")
    assert code == BAD_INPUT and "Another version" in told and not (tmp_path / "three").exists()


def test_without_a_name_this_machines_profile_is_spared(
    bench: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kit, "read_kit_results", lambda _: read_profile("h200_sxm"))
    assert run("profile", "import", "results")[0] == 0
    assert run("profile", "import", "llama-bench", bench, "--for", DEMO, "--into", "rtx_4090")[0] == 0
    assert {path.name for path in tmp_path.glob("profile*")} == {"profile-h200_sxm", "profile-rtx_4090"}
    assert read_profile(tmp_path / "profile-rtx_4090").name == "rtx_4090"


def test_another_devices_profile_in_the_place_of_this_machines_is_not_taken_for_it(
    small_parent: Path, small_run: Path, tmp_path: Path, run: Run
) -> None:
    out = Path(shutil.copytree(small_run / "run", tmp_path / "run")) / "profile"
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(yaml.safe_load((small_run / "recipe.yaml").read_text())["space"]))
    words = ["profile", "--for", small_parent, "--space", space, "--seconds", "0.01", "--load", "chat=1x16+16"]
    own = read_profile(out)
    assert run(*words, "--out", out)[0] == 0 and read_profile(out) == own
    write_profile(read_profile("h200_sxm"), out)
    code, _, told = run(*words, "--out", out)
    assert code == 0 and "made again" in told and "h200_sxm" in told
    assert read_profile(out).device == own.device
    with pytest.raises(InputError, match="about another parent"):
        read_profile_of(out, own.device, replace(parent_of(own), vocab_size=7))


def test_a_time_of_a_kit_that_no_device_can_have_made_is_marked(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = read_profile(measured_profiles()[0])
    *others, longest = sorted(profile.times, key=lambda row: row.time_s)
    short = replace(longest, time_s=1e-3 * longest.time_s, low_s=0.0, high_s=longest.high_s)
    monkeypatch.setattr(kit, "read_kit_results", lambda _: replace(profile, times=(*others, short)))
    code, _, told = run("profile", "import", "results", "--out", tmp_path / "device")
    assert code == 0 and "marked, not to be relied on" in told
    assert any("ceilings allow" in mark for mark in read_profile(tmp_path / "device").coverage.marked)


def test_runtimes_stand_side_by_side(bench: Path, tmp_path: Path, run: Run) -> None:
    _import(run, "llama-bench", bench, out=tmp_path / "one")
    times = tmp_path / "times.json"
    record = {"startComputeMs": 5.0, "endComputeMs": 5.3, "computeMs": 0.3}
    times.write_text(json.dumps([record, record]))
    flags = {"into": tmp_path / "one", "load": "step=1x128+1", "context": 192, "format": "bf16"}
    code, _, _ = _import(run, "trtexec", times, out=tmp_path / "both", **flags)
    assert code == 0
    assert {row.backend for row in read_profile(tmp_path / "both").wholes} == {"llama.cpp", "tensorrt"}
    words = ["--parent", DEMO, "--profile", tmp_path / "both", "--format", "bf16", "--load", "chat=1x128+128", "--json"]
    for backend, time_s in (("llama.cpp", 0.4e-3), ("tensorrt", 0.3e-3)):
        _, printed, _ = run("predict", *words, "--backend", backend)
        costs = {one["quantity"]: one["model"]["value"] for one in json.loads(printed)}
        assert costs["time_per_token"] == pytest.approx(time_s, rel=0.05)


def test_a_file_of_another_device_is_refused(bench: Path, tmp_path: Path, run: Run) -> None:
    code, _, told = _import(run, "llama-bench", bench, out=tmp_path / "device", into="rtx_5090")
    assert code == BAD_INPUT and "NVIDIA GeForce RTX 4090" in told and "rtx_5090" in told and "--into" in told
    assert not (tmp_path / "device").exists()


def test_a_version_that_no_file_tells_may_be_said(bench: Path, tmp_path: Path, run: Run) -> None:
    times = tmp_path / "times.json"
    record = {"startComputeMs": 5.0, "endComputeMs": 5.3, "computeMs": 0.3}
    times.write_text(json.dumps([record, record]))
    flags: dict[str, object] = {"load": "step=1x128+1", "context": 192, "format": "bf16"}
    _, _, told = _import(run, "trtexec", times, out=tmp_path / "untold", **flags)
    assert "do not tell the version of tensorrt" in told
    assert read_profile(tmp_path / "untold").software == {"tensorrt": "not told"}
    _, _, told = _import(run, "trtexec", times, out=tmp_path / "told", **flags, version="10.3.0")
    assert "do not tell" not in told and read_profile(tmp_path / "told").software == {"tensorrt": "10.3.0"}
    code, _, told = _import(run, "llama-bench", bench, out=tmp_path / "other", version="b1")
    assert code == BAD_INPUT and "error in --version" in told and "8cf427ff" in told


def test_vllm_files_have_a_load_each(tmp_path: Path, run: Run) -> None:
    for name, seconds in (("one", 0.01), ("all", 0.11)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"avg_latency": seconds, "latencies": [seconds] * 3}))
    files = [tmp_path / "one.json", tmp_path / "all.json"]
    words = ["--for", DEMO, "--into", "rtx_4090", "--format", "bf16", "--load", "one=4x64+1", "--load", "all=4x64+101"]
    code, _, _ = run("profile", "import", "vllm", *files, *words, "--out", tmp_path / "device")
    assert code == 0
    times = [
        (row.point.batch, row.point.new_tokens, row.point.slots, row.time_s)
        for row in read_profile(tmp_path / "device").wholes
    ]
    assert times == [(4, 64, 64, pytest.approx(0.01)), (4, 1, 114, pytest.approx(0.001))]
    code, _, told = run("profile", "import", "vllm", files[0], *words, "--out", tmp_path / "device")
    assert code == BAD_INPUT and "2 for 1 files" in told


def test_another_models_file_is_refused_and_both_numbers_told(bench: Path, tmp_path: Path, run: Run) -> None:
    bench.write_text(json.dumps([_test(128, 0, 1_100_000, model_n_params=int(1.03 * NUM_PARAMETERS))]))
    code, _, told = _import(run, "llama-bench", bench, out=tmp_path / "device")
    assert code == BAD_INPUT and "1,892,299" in told and "1,837,184" in told
    bench.write_text(json.dumps([_test(128, 0, 1_100_000, model_n_params=int(1.01 * NUM_PARAMETERS))]))
    assert _import(run, "llama-bench", bench, out=tmp_path / "device")[0] == 0


def test_a_profile_of_another_parent_is_refused(bench: Path, tmp_path: Path, run: Run) -> None:
    shipped = read_profile("amd-epyc-2c-0c4430")
    assert shipped.model is not None
    write_profile(replace(read_profile("rtx_4090"), model=replace(shipped.model, vocab_size=999)), tmp_path / "other")
    code, _, told = _import(run, "llama-bench", bench, out=tmp_path / "device", into=tmp_path / "other")
    assert code == BAD_INPUT and "vocab_size" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["llama-bench", "bench.json", "--into", "rtx_4090"], "--for"),
        (["llama-bench", "bench.json", "--for", DEMO], "--into"),
        (["llama-bench", "missing.json", "--for", DEMO, "--into", "rtx_4090"], "missing.json"),
        (["results", "more"], "a source first"),
        (["kit", "results", "--into", "rtx_4090"], "--into"),
    ],
)
def test_what_is_missing_is_named(words: list[object], told: str, tmp_path: Path, run: Run) -> None:
    code, _, error = run("profile", "import", *words, "--out", tmp_path / "device")
    assert code == BAD_INPUT and told in error


def test_a_search_may_be_about_imported_times(
    tmp_path: Path, made_up_parent: Model, make_table: Callable[..., ScoreTable], run: Run
) -> None:
    layers = tuple((variant_name(block.mixer), variant_name(block.ffn)) for block in made_up_parent.layers)
    times = {"low_s": 0.9e-3, "time_s": 1e-3, "high_s": 1.1e-3, "num_samples": 5, "num_rejected": 0}
    kind = {"backend": "vllm", "format": "fp32", "layers": layers, "is_anchor": True, "origin": "measured"}
    rows = [WholeRow(point=point, **kind, **times) for point in (prefill(1, 40), decode(1, 52))]  # type: ignore[arg-type]
    write_profile(replace(read_profile("rtx_4090"), model=made_up_parent, wholes=tuple(rows)), tmp_path / "device")
    write_scores(make_table(), tmp_path / "scores.parquet")
    plan = tmp_path / "plan.json"
    words = ["--scores", tmp_path / "scores.parquet", "--profile", tmp_path / "device", "--load", "chat=1x40+24"]
    words += ["--budget", "memory@chat <= 99.99%", "--frontier", 0, "--backend", "vllm", "--out", plan]
    code, _, told = run("search", *words)
    assert code == 0, told
    told_of = {promise.quantity: promise.parent for promise in read_plan(plan).promises}
    assert told_of["time_per_token"].value == pytest.approx(1e-3) and told_of["time_per_token"].origin == "transferred"
    code, printed, _ = run("predict", plan, "--profile", tmp_path / "device", "--json")
    costs = {one["quantity"]: one["parent"]["value"] for one in json.loads(printed)}
    assert code == 0 and costs["time_per_token"] == pytest.approx(1e-3)


def test_the_flags_know_every_runtime() -> None:
    assert (BACKENDS, get_args(LocalBackend)) == (ALL_BACKENDS, LOCAL_BACKENDS)
