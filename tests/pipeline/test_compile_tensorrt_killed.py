"""Building a TensorRT engine, ended from without: nothing goes on at work, and nothing is left for good."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blockwright.cli.main import main
from forked import fork_command

BUILDER = "blockwright.compile.tensorrt_build"
PATIENCE_S = 60.0


def _wait_for(claim: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


def _unfinished(folder: Path) -> list[str]:
    """The engine that was being written, its mark, and what a stage was at."""
    names = (path.name for path in folder.iterdir())
    return [name for name in names if name.startswith((".eng.", ".compile-")) or name.endswith(".unfinished")]


def _at_work(group: int) -> list[Path]:
    """The processes of a group, less those that have ended and that nobody has asked about."""
    found = list[Path]()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, _, of_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state not in "ZX":
                found.append(process)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing ends a child with its parent")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_stopped_build_leaves_is_gone_at_last_with_the_next(
    number: signal.Signals, small_parent: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    words = ["compile", str(small_parent), "--target", "tensorrt", "--for", "sm86", "--out", str(tmp_path / "eng")]
    run = fork_command(*words)
    try:
        _wait_for(lambda: bool(list(tmp_path.glob(".eng.*/*/request.json"))))
        assert run.process.pid is not None
        os.kill(run.process.pid, number)
        code, told = run.wait(PATIENCE_S)
    finally:
        run.kill()
    left = _unfinished(tmp_path)
    if number == signal.SIGTERM:
        assert code == 143 and "Stopped. Run the same command again" in told
        assert left == []
        leader = run.process.pid
        _wait_for(lambda: not _at_work(leader))  # a builder that was just being started ends as soon as it looks
    else:
        assert code == -signal.SIGKILL and len(left) == 3, "the engine, its mark, and the stage's folder"
    assert main(words) == 0
    assert _unfinished(tmp_path) == []
    assert not [path.name for path in (tmp_path / "eng").iterdir() if path.name.startswith((".", "tmp"))]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing ends a child with its parent")
def test_a_builder_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    order = tmp_path / "request.json"
    os.mkfifo(order)  # which the builder waits to read from, for ever
    program = (
        "import os, subprocess, sys\n"
        f"subprocess.run([sys.executable, '-m', {BUILDER!r}, sys.argv[1], 'answer.json', str(os.getpid())])\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, order], stdout=subprocess.PIPE)
    writers = list[int]()

    def is_read() -> bool:
        with contextlib.suppress(OSError):  # nobody reads yet
            writers.append(os.open(order, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    try:
        _wait_for(is_read)
        parent.kill()
        told, _ = parent.communicate(timeout=PATIENCE_S / 4)  # until the last of both has closed its output
        assert told == b""
    finally:
        parent.kill()
        for writer in writers:
            os.close(writer)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing ends a child with its parent")
def test_a_builder_whose_parent_has_ended_builds_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-m", BUILDER, tmp_path / "request.json", tmp_path / "answer.json", "0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "process 0, which asked for the build, has ended\n"
