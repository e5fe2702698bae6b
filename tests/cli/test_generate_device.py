"""`blockwright generate --device cuda`, as far as it goes without a GPU."""

from pathlib import Path

import pytest

from blockwright.cli.main import main
from blockwright.compile.device_session import DeviceDecoder
from blockwright.compile.runtime import ort
from blockwright.compile.session import Decoder
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
    assert "--device cuda: the CPU runs " in found.err and " MatMul" in found.err and not expected.err


def test_a_machine_without_the_memory_is_told_in_words(
    engine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise MemoryError("Unable to allocate 16 TiB")

    monkeypatch.setattr(Decoder, "start", too_large)
    assert main(["generate", engine, *WRITE]) == 2
    said = capsys.readouterr()
    assert "error in memory" in said.err and "16 TiB" in said.err and "Traceback" not in said.err
