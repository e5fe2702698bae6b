"""`blockwright generate` on what a machine lacks: a GPU, memory, operators of our own."""

from pathlib import Path

import pytest

from blockwright.cli.main import main
from blockwright.compile.device_session import DeviceDecoder
from blockwright.compile.runtime import ort
from blockwright.compile.session import Decoder
from blockwright.hw_profiles.folder import read_profile, shipped_profiles
from blockwright.pipeline import device_profile, software
from blockwright.pipeline.compile import CompileOrder, compile_checkpoint

WRITE = ["--prompt", "the cat", "--tokens", "6"]


@pytest.fixture(scope="module")
def engine(small_parent: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("engine") / "engine"
    compile_checkpoint(str(small_parent), CompileOrder(format="fp32", threads=1), folder)
    return str(folder)


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="ONNX Runtime for GPUs is here")
def test_a_gpu_that_is_not_there_is_refused_in_words(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", engine, "--device", "cuda", *WRITE]) == 2
    said = capsys.readouterr()
    assert "CUDAExecutionProvider" in said.err and "pip install 'blockwright[cuda]' in place of" in said.err
    assert not said.out


def test_text_is_the_same_on_a_device_and_nodes_elsewhere_are_told(
    engine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["generate", engine, *WRITE]) == 0
    expected = capsys.readouterr()
    in_host_memory = DeviceDecoder.open(Path(engine), "cpu")
    monkeypatch.setattr(DeviceDecoder, "open", lambda folder, device: in_host_memory)
    assert main(["generate", engine, "--device", "cuda", *WRITE]) == 0
    found = capsys.readouterr()
    assert found.out == expected.out
    assert "--device cuda: the CPU runs " in found.err and " MatMul" in found.err and "--device" not in expected.err


def test_a_machine_without_the_memory_is_told_in_words(
    engine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise MemoryError("Unable to allocate 16 TiB")

    monkeypatch.setattr(Decoder, "start", too_large)
    assert main(["generate", engine, *WRITE]) == 2
    said = capsys.readouterr()
    assert "error in memory" in said.err and "16 TiB" in said.err and "Traceback" not in said.err


def test_who_writes_with_slower_operators_is_told_why_once(
    engine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software, "why_missing", lambda: None)
    assert main(["generate", engine, *WRITE]) == 0
    before = capsys.readouterr()
    monkeypatch.setattr(software, "why_missing", lambda: "there is no C compiler")
    assert main(["generate", engine, *WRITE]) == 0
    said = capsys.readouterr()
    assert said.out == before.out
    assert said.err.count("there is no C compiler") == 1 and not before.err


def test_who_profiles_slower_operators_is_told_why_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software, "why_missing", lambda: "there is no C compiler")
    monkeypatch.setattr(device_profile, "profile_device", lambda *_: read_profile(shipped_profiles()[0]))
    assert main(["profile", "--out", str(tmp_path / "profile")]) == 0
    assert capsys.readouterr().err.count("there is no C compiler") == 1
