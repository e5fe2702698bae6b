"""What several tests of the command line share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from blockwright.cli.main import main
from blockwright.hw_profiles.folder import write_profile
from blockwright.hw_profiles.profile import Profile
from blockwright.search.scores import ScoreTable, write_scores
from blockwright.spec import FP32, Format
from searching import CHAT, SERVE, Run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must be refused; gives the message."""

    def run(*command: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in command]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("blockwright: error in ") == 1
        for word in ("got", "expected", "remedy"):
            assert f"\n  {word} " in captured.err
        assert captured.out == ""
        return captured.err[captured.err.index("blockwright: error in ") :]

    return run


@pytest.fixture
def profiles(tmp_path: Path, make_profile: Callable[..., Profile]) -> dict[str, Profile]:
    """Two devices, in the folders server and edge."""
    found = {
        "server": make_profile([CHAT, *SERVE], formats=[FP32, Format(name="int4", group_size=32)], name="big-one"),
        "edge": make_profile([CHAT, *SERVE], slowness=3.0, name="small-one"),
    }
    for name, profile in found.items():
        write_profile(profile, tmp_path / name)
    return found


@pytest.fixture
def search(
    tmp_path: Path,
    profiles: dict[str, Profile],
    make_table: Callable[..., ScoreTable],
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs the command with budgets and flags; gives its exit code, what it printed and what it complained of."""
    write_scores(make_table(metrics=["kl", "lm_loss"]), tmp_path / "scores.parquet")

    def run(*words: str, devices: int = 1, frontier: int = 0) -> tuple[int, str, str]:
        capsys.readouterr()
        command = ["search", "--scores", str(tmp_path / "scores.parquet"), "--out", str(tmp_path / "plan.json")]
        for name in list(profiles)[:devices]:
            command += ["--profile", f"{name}={tmp_path / name}"]
        code = main([*command, "--frontier", str(frontier), *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
