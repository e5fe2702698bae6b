"""Searches that cannot be: what is said of them, and what they leave as it was."""

from pathlib import Path

import pytest

from blockwright.search.plan import read_plan
from searching import LOADS, Run, budget_words


def test_a_load_beyond_the_profile_needs_leave_to_be_guessed(search: Run, tmp_path: Path) -> None:
    words = [*budget_words("time_per_token@serve <= 90%"), "--load", "serve=8x20+30"]
    code, _, complaint = search(*words)
    assert code == 2
    assert (
        "error in profile big-one: load" in complaint and "--extrapolate" in complaint and "batch 1 to 4" in complaint
    )
    assert search(*words, "--extrapolate")[0] == 0
    (promise,) = [p for p in read_plan(tmp_path / "plan.json").promises if p.quantity == "time_per_token"]
    assert promise.child.high - promise.child.value > 0.02 * promise.child.value, (
        "the guess is as sure as a measurement"
    )


@pytest.mark.parametrize(
    ("words", "field", "told"),
    [
        (["--budget", "memory@chat <= 20"], "budget memory", "20GB and 20GiB differ"),
        (["--budget", "memory@chat <= 20 tok"], "budget memory", "B, kB, MB, GB, TB, KiB, MiB, GiB, TiB"),
        (["--budget", "20GB <= memory@chat <= 20MB"], "budget", "Swap the two"),
        (["--budget", "memory@phone:chat <= 1GB"], "budget", "one of the devices server"),
        (["--servable-by", "vllm,onnx"], "--servable-by", "transformers, vllm, sglang, tensorrt-llm, llama.cpp"),
        (
            ["--servable-by", "llama.cpp", "--forbid", "layer-01-mixer-none", "--forbid", "layer-01-ffn-ffn-*"],
            "--servable-by llama.cpp: layer 1",
            "no block of this library that can be loaded",
        ),
        (["--pool", "2", "--differ", "4"], "--differ", "from 1 to the 3 layers"),
        (["--pool", "0"], "--pool", "at least 1"),
        (["--differ", "0"], "--differ", "at least 1"),
        (["--shapes", "0"], "--shapes", "at least 1"),
        (["--keep-first", "-1"], "--keep-first", "at least 0"),
        (["--tolerance", "nan"], "--tolerance", "a finite number"),
        (["--tolerance", "inf"], "--tolerance", "a finite number"),
        (["--most-score", "nan"], "--most-score", "a finite number"),
        (["--against", "disk", "--most-score", "-1"], "--most-score", "at least 0"),
        (["--keep-first", "4"], "--keep-first, --keep-last", "the 3 layers"),
        (["--keep-first", "2", "--keep-last", "2"], "--keep-first, --keep-last", "the 3 layers"),
        (["--servable-by", ","], "--servable-by", "transformers, vllm"),
        (["--out", "."], "--out", "a file to write"),
        (["--forbid", "layer-02-ffn-*"], "rules: layer 2, ffn", "no candidate that they allow"),
        (["--metric", "task"], "metric", "kl, lm_loss"),
        (["--format", "fp32", "--format", "int4"], "scores", "blockwright score … --format fp32 --format int4-g32"),
        (["--format", "fp32", "--format", "int4"], "scores", "Search with what was scored: --format fp32. Or score"),
        (["--format", "fp16", "--servable-by", "tensorrt"], "--format", "fp16 and bf16 are for --backend tensorrt"),
        (["--servable-by", "tensorrt"], "--servable-by tensorrt", "and with --backend tensorrt. To remove them all"),
        (["--along", "speed@chat"], "--along", "such as memory@chat, or the text of one of the budgets"),
        (["--along", "memory@chat", "--against", "memory"], "--against", "another quantity, or score"),
        (["--most-score", "1"], "--most-score", "--against QUANTITY@LOAD"),
        (["--against", "disk", "--most-score", "inf"], "--most-score", "a finite number"),
        (["--load", "serve=1,2x20+30", "--frontier", "2", "--along", "memory@serve"], "--along", "one batch for each"),
        (["--load", "chat=1x40+24"], "--load", "chat more than once"),
        (["--load", "serve=1,xx20+30"], "--load", "NAME=BATCHxPROMPT+NEW"),
        (["--load", "serve=1,0x20+30"], "--load", "numbers of at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    words: list[str], field: str, told: str, search: Run, tmp_path: Path
) -> None:
    code, printed, complaint = search(*budget_words("memory@chat <= 80%"), *LOADS[:2], *words)
    assert (code, printed) == (2, "")
    assert complaint.count("blockwright: error in ") == 1
    assert f"error in {field}\n" in complaint and told in complaint
    assert not (tmp_path / "plan.json").exists()


def test_budgets_that_contradict_each_other_are_both_named(search: Run) -> None:
    code, _, complaint = search(
        *budget_words("memory@chat <= 500kB", "memory@chat >= 600kB", "disk@chat <= 1GB"), *LOADS[:2]
    )
    assert code == 2
    assert "not all together: memory@chat <= 500kB; memory@chat >= 600kB" in complaint
    assert "disk" not in complaint


def test_two_devices_of_one_name_are_refused(search: Run, tmp_path: Path) -> None:
    words = ["--profile", f"server={tmp_path / 'edge'}"]
    code, _, complaint = search(*budget_words("memory@chat <= 80%"), *LOADS[:2], *words)
    assert code == 2 and "error in --profile\n" in complaint and "two devices of the name server" in complaint


@pytest.mark.parametrize("name", ["scores.parquet", "server", "server/measurements.csv", "../{}/scores.parquet"])
def test_an_output_that_is_an_input_is_refused_and_the_input_kept(name: str, search: Run, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    output = str(tmp_path / name.format(tmp_path.name))
    code, _, complaint = search(*budget_words("memory@chat <= 80%"), *LOADS[:2], "-o", output)
    assert code == 2 and "error in --out\n" in complaint
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
