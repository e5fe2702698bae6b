"""What several tests of the profiler share."""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from blockwright.profiler import ceilings
from blockwright.profiler.kit import write_kit
from kits import ORDER, bare_python, run_kit


@pytest.fixture(scope="module", autouse=True)
def small_ceilings() -> Any:
    """The large matrix is 256 MiB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "_ROWS", 256)
        yield


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory, small_ceilings: None) -> Path:
    folder = tmp_path_factory.mktemp("kit")
    assert write_kit(ORDER, folder / "kit.zip") == len(ORDER.cases()) + len(ceilings.ceiling_cases())
    with zipfile.ZipFile(folder / "kit.zip") as archive:
        archive.extractall(folder / "kit")
    return folder / "kit"


@pytest.fixture(scope="module")
def results(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    environment = bare_python(tmp_path_factory.mktemp("python") / "packages")
    done = run_kit(unpacked, environment)
    assert done.returncode == 0, done.stderr
    assert "0 failed" in done.stdout
    return unpacked / "results"


@pytest.fixture
def copied(results: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(results, tmp_path / "results"))
