"""The command `profile show`: what it prints, what it draws, and what it refuses."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from blockwright.cli.main import BAD_INPUT, main
from blockwright.cost import ORIGINS
from blockwright.hw_profiles.folder import measured_profiles, read_profile, write_profile
from blockwright.hw_profiles.provenance import AccuracyRow
from blockwright.pipeline.profile_show import roofline_of

SHIPPED = measured_profiles()[0]


def test_a_measured_profile_shows_its_device_its_ceilings_and_what_was_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["profile", "show", SHIPPED]) == 0
    printed, profile = capsys.readouterr().out, read_profile(SHIPPED)
    for words in ("AMD EPYC", "2 cores", "21 of 21", "onnxruntime 1.31.1", "21.55 GB/s", "91.07 GFLOP/s", "not tried"):
        assert words in printed
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
