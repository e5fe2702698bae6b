"""What a kit brought back, damaged or not what its runner wrote, is refused by name."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockwright.errors import InputError
from blockwright.profiler.kit_results import read_kit_results
from kits import cut_short, edit_results, fail_case, sum_anew


def _ceiling(folder: Path) -> Path:
    """The result of the ceiling that every profile needs."""
    [path] = [
        path
        for path in folder.glob("case-*.json")
        if json.loads(path.read_text())["name"].startswith("ceiling rate fp32")
    ]
    return path


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("cases.json", lambda data: data.update(schema_version=9), "schema_version"),
        ("case-0002.json", lambda data: data.update(name="another"), "two kits"),
        ("case-0002.json", lambda data: data["timings"].pop(), "measurements"),
        ("case-0002.json", lambda data: data["timings"][0].update(median_s="soon"), "median_s"),
        ("device.json", lambda data: data.update(backend="tensorrt"), "backend"),
        ("device.json", lambda data: data.pop("software"), "software"),
    ],
)
def test_damaged_results_are_refused_by_name(
    copied: Path, file: str, change: Callable[[Any], None], words: str
) -> None:
    edit_results(copied / file, change)
    with pytest.raises(InputError, match=words):
        read_kit_results(copied)


def test_results_without_ceilings_are_refused(copied: Path) -> None:
    _ceiling(copied).unlink()
    sum_anew(copied)
    with pytest.raises(InputError, match="rate fp32"):
        read_kit_results(copied)


def test_a_ceiling_that_failed_is_refused_by_name(copied: Path) -> None:
    edit_results(_ceiling(copied), fail_case)
    with pytest.raises(InputError, match="none of rate fp32"):
        read_kit_results(copied)


def test_a_ceiling_without_times_is_damaged(copied: Path) -> None:
    edit_results(_ceiling(copied), lambda data: data.update(timings=[]))
    with pytest.raises(InputError, match="ceiling rate fp32: got 0 measurements"):
        read_kit_results(copied)


def test_an_empty_folder_is_no_result(copied: Path) -> None:
    for path in copied.glob("case-*.json"):
        path.unlink()
    sum_anew(copied)
    with pytest.raises(InputError, match="no result that succeeded"):
        read_kit_results(copied)


def _doubled(data: dict[str, Any]) -> None:
    for timing in data["timings"]:
        timing |= {name: 2 * timing[name] for name in ("calm_s", "low_s", "high_s", "typical_s")}


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: edit_results(folder / "case-0002.json", _doubled, remake_sums=False), "case-0002.json"),
        (cut_short, "case-0002.json"),
        (lambda folder: (folder / "case-0002.json").unlink(), "case-0002.json: got no such file"),
        (lambda folder: shutil.copy(folder / "case-0002.json", folder / "case-9999.json"), "case-9999.json"),
        (
            lambda folder: edit_results(folder / "device.json", lambda d: d.update(threads=2), remake_sums=False),
            "device.json",
        ),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "SHA256SUMS: got no such file"),
        (lambda folder: (folder / "SHA256SUMS").write_text("no sums"), "a line of SHA256SUMS for it"),
    ],
)
def test_results_that_are_not_what_the_runner_wrote_are_refused(
    copied: Path, harm: Callable[[Path], object], words: str
) -> None:
    harm(copied)
    with pytest.raises(InputError, match=words) as caught:
        read_kit_results(copied)
    assert "run the kit again" in caught.value.remedy


def test_digests_are_those_that_sha256sum_checks(results: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=results, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count(": OK") == len(list(results.glob("*.json")))
