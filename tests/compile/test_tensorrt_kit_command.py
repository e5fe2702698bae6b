"""The command that packs a kit, and what no kit can be made of."""

import json
import sys
import zipfile
from pathlib import Path

import pytest

from blockwright.cli.main import main


@pytest.mark.parametrize(
    ("flags", "form", "version"),
    [([], "fused", "10.15"), (["--form", "fused"], "fused", "10.15"), (["--form", "decomposed"], "decomposed", "10.3")],
)
def test_the_command_packs_a_kit_without_tensorrt(
    flags: list[str],
    form: str,
    version: str,
    small_parent: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    command = ["compile", str(small_parent), "--target", "tensorrt", "--format", "fp16", "--kit"]
    assert main([*command, *flags, "--out", str(tmp_path / "kit.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "kit.zip") as archive:
        assert json.loads(archive.read("kit.json"))["engine"]["form"] == form
    told = capsys.readouterr().out
    assert f"TensorRT {version} or later" in told
    assert ("with JetPack 6 the plan runs from a program of your own" in told) == (form == "decomposed")
    assert "build.py" in told and "sh kit/build.sh" in told, (
        "unpacking by Python drops the bit that makes it executable"
    )


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--out", "kit"], "ends in .zip"),
        (["--out", "kit.zip", "--for", "orin"], "compute capabilities as sm86"),
        (["--out", "kit.zip", "--for", "sm86,sm999"], "some of sm75, sm80, sm86"),
        (["--out", "kit.zip", "--for", "sm75", "--format", "bf16"], "sm75 with bf16"),
        (["--out", "kit.zip", "--context", "100000"], "context"),
        (["--out", "kit.zip", "--target", "onnxruntime"], "--kit"),
    ],
)
def test_what_no_kit_can_be_made_of_is_refused(
    small_parent: Path,
    tmp_path: Path,
    flags: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compile", str(small_parent), "--target", "tensorrt", "--kit", *flags]) == 2
    assert named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
