"""The command `profile show`: what it prints, what it draws, and what it refuses."""

import csv
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from blockwright.cli.main import BAD_INPUT, main
from blockwright.cost import ORIGINS
from blockwright.hw_profiles.folder import HEAD, SUMS, TABLE, measured_profiles, read_profile, write_profile
from blockwright.hw_profiles.profile import Point
from blockwright.hw_profiles.provenance import AccuracyRow
from blockwright.pipeline.marks import write_marked
from blockwright.pipeline.profile_show import roofline_of

SHIPPED = measured_profiles()[0]
PREFILL = Point(batch=1, new_tokens=128, slots=256)


def test_a_measured_profile_shows_its_device_its_ceilings_and_what_was_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["profile", "show", SHIPPED]) == 0
    printed, profile = capsys.readouterr().out, read_profile(SHIPPED)
    coverage, ceilings = profile.coverage, profile.ceilings
    words = [
        profile.device.model,
        f"{profile.device.num_cores} cores",
        f"{coverage.done} of {coverage.asked} measurements",
        f"onnxruntime {profile.software['onnxruntime']}",
        f"{ceilings.read_bytes_per_s.value / 1e9:.4g} GB/s",
        f"{ceilings.flop_per_s['fp32'].value / 1e9:.4g} GFLOP/s",
    ]
    assert [word for word in words if word not in printed] == []
    assert ("How well it foretells was not tried" in printed) == (not profile.accuracy)
    assert f"part rows: {len(profile.times)} measured" in printed
    assert profile.ceilings.launch_s.source in printed


def test_a_datasheet_says_that_nothing_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "show", "h100_sxm"]) == 0
    printed = capsys.readouterr().out
    assert "nothing measured" in printed and "rows:" not in printed
    assert re.search(r"reads from memory +3\.35 TB/s +3\.317 TB/s to 3\.384 TB/s +modelled +\[1\]", printed)
    assert "[1] NVIDIA H100" in printed


def test_how_well_it_foretells_is_shown_where_it_was_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = AccuracyRow(
        quantity="time_per_token",
        format="fp32",
        phase="decode",
        num_held_out=31,
        mean_error=0.021,
        median_error=0.018,
        p90_error=0.04,
        worst_error=0.055,
        bias=-0.003,
        kendall_tau=0.97,
        interval_coverage=0.9,
    )
    write_profile(replace(read_profile(SHIPPED), accuracy=(row,)), tmp_path / "tried")
    assert main(["profile", "show", str(tmp_path / "tried")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "decode" in line)
    assert line.split()[3:7] == ["fp32", "decode", "31", "2.1"]
    for words in ("Time per token", "1.8 %", "4.0 %", "5.5 %", "-0.3 %", "0.97", "90 %"):
        assert words in line


@pytest.mark.parametrize("name", [SHIPPED, "raspberry_pi_5"])
def test_programs_get_the_same_as_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "show", name, "--json"]) == 0
    data, profile = json.loads(capsys.readouterr().out), read_profile(name)
    assert data["name"] == name and data["is_datasheet"] == (name != SHIPPED)
    assert data["ceilings"]["read_bytes_per_s"]["value"] == profile.ceilings.read_bytes_per_s.value
    assert data["coverage"]["asked"] == profile.coverage.asked
    counted = {kind: sum(origins.values()) for kind, origins in data["rows"].items()}
    expected = {"part": len(profile.times), "whole": len(profile.wholes), "memory": len(profile.memory)}
    assert counted == {kind: count for kind, count in expected.items() if count}
    assert all(set(origins) <= set(ORIGINS) for origins in data["rows"].values())


def _edited(folder: Path, time_factor: float, kind: str) -> Path:
    """The shipped profile with some times changed by hand, its digests made anew."""
    write_profile(read_profile(SHIPPED), folder)
    table = folder / TABLE
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        if row["kind"] == kind:
            row |= {name: repr(time_factor * float(row[name])) for name in ("time_s", "low_s", "high_s")}
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in (HEAD, TABLE)]
    (folder / SUMS).write_text("".join(sums))
    return folder


def test_a_profile_whose_units_were_swapped_shows_its_rows_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited = str(_edited(tmp_path / "edited", 1e-3, "whole"))
    assert main(["profile", "show", edited]) == 0
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    number = int(re.search(r"marked, not to be relied on: (\d+) rows", printed)[1])  # type: ignore[index]
    assert f"and {number - 10} more" in printed and "ceilings allow no less than" in printed
    assert main(["profile", "show", edited, "--json"]) == 0
    marked = json.loads(capsys.readouterr().out)["marked"]
    assert len(marked) == number <= len(read_profile(SHIPPED).wholes) and all("a whole model of" in m for m in marked)


@pytest.mark.parametrize("factor", [1.0, 0.98, 40.0])
def test_a_profile_that_can_be_true_shows_no_marks(
    factor: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "show", str(_edited(tmp_path / "edited", factor, "part")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["marked"] == []


def test_an_edited_profile_is_not_searched_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited = str(_edited(tmp_path / "edited", 1e-3, "part"))
    parent = str(Path(__file__).parents[2] / "recipes/demo-parent")
    assert main(["predict", "--parent", parent, "--profile", edited]) == BAD_INPUT
    assert "ceilings allow" in capsys.readouterr().err


def test_marks_are_written_with_the_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = read_profile(SHIPPED)
    fast = replace(profile.times[0], backend="torch", time_s=0.0, low_s=0.0, point=PREFILL)
    throttled = replace(profile.coverage, marked=("operator matmul: thermal_software",))
    marked = write_marked(replace(profile, times=(fast,), wholes=(), coverage=throttled), tmp_path / "marked")
    assert "2 rows" in capsys.readouterr().err
    again = read_profile(tmp_path / "marked")
    assert again == marked and again.coverage.marked[0] == "operator matmul: thermal_software"
    assert fast.variant in again.coverage.marked[1] and "0 s" in again.coverage.marked[1]
    assert write_marked(again, tmp_path / "again").coverage.marked == again.coverage.marked  # each once


@pytest.mark.parametrize("name", [SHIPPED, "l4"])
def test_the_roofline_is_drawn_as_what_its_name_ends_in(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in ("svg", "png", "html"):
        assert main(["profile", "show", name, "--plot", str(tmp_path / f"roof.{suffix}")]) == 0
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")
    svg = ElementTree.parse(tmp_path / "roof.svg").getroot()
    words = " ".join("".join(each.itertext()) for each in svg.iter("{http://www.w3.org/2000/svg}text"))
    assert name in words and "fp32 at most" in words
    assert ("measured: attention" in words) == (name == SHIPPED)
    page = (tmp_path / "roof.html").read_text()
    assert page.startswith("<!doctype html>") and page.count("<svg") == 1
    assert {file.name for file in tmp_path.iterdir()} == {"roof.svg", "roof.png", "roof.html"}


def test_measurements_lie_below_the_roof() -> None:
    roofline = roofline_of(read_profile(SHIPPED))
    assert {dot.kind for dot in roofline.dots} == {"attention", "products"}
    assert len(roofline.dots) == len(read_profile(SHIPPED).times)
    assert all(0 < dot.flop_per_s < roofline.ceilings.flop_per_s["fp32"].value for dot in roofline.dots)


@pytest.mark.parametrize("words", [["no-such-device"], ["l4", "--plot", "roof.pdf"], ["l4", "--plot", "/"]])
def test_what_cannot_be_shown_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "show", *words]) == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("blockwright: error in ")
