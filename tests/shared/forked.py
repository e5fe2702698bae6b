"""Python in processes of its own that start at once.

A new interpreter takes seconds to import torch and transformers. Here a server, itself a new interpreter, imports them
once; each process is forked from it, with nothing of the test's own in it and no thread or backward pass begun.
"""

import contextlib
import fcntl
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch.distributed.fsdp", "transformers.models.llama.modeling_llama", "blockwright.pipeline.run"]
)
"""What forks from the server."""
_TOLD_BYTES = 2**20
"""What a process may tell before anybody listens, as Linux grants it to all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """A process at work, which leads a group of its own."""

    process: ForkServerProcess
    reader: Connection

    @property
    def is_running(self) -> bool:
        """Whether it has not come to its end yet."""
        return self.process.is_alive()

    def kill(self) -> None:
        """Kills it and whatever it has started, where it still runs."""
        if self.is_running and self.process.pid is not None:
            self.process.kill()
            with contextlib.suppress(ProcessLookupError):  # it has not come to lead a group yet, or has nothing in it
                os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self, timeout_s: float = 240.0) -> tuple[int, str]:
        """How it ended, below 0 by a signal, and all that it told, on whatever stream."""
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, "it does not end"
        os.set_blocking(self.reader.fileno(), False)  # what it has started may be at work still
        told = b""
        with contextlib.suppress(BlockingIOError):
            while read := os.read(self.reader.fileno(), 2**16):
                told += read
        self.reader.close()
        return self.process.exitcode, told.decode(errors="replace")


def fork_command(*words: object, file_bytes: int = 0) -> Forked:
    """Starts `python -m blockwright` with these words, whose files may grow to so many bytes; 0 for any size."""
    return _fork(None, words, {}, file_bytes)


def fork_script(script: Path, *words: object) -> Forked:
    """Starts a file of Python with these words."""
    return _fork(script, words, {}, 0)


def fork_ranks(num_ranks: int, script: Path | None, *words: object) -> str:
    """Runs a file, or `python -m blockwright` for None, in so many ranks to their good end; says what they told."""
    runs = [_fork(script, words, environment, 0) for environment in _ranks(num_ranks)]
    ended = [run.wait() for run in runs]
    told = "".join(words for _, words in ended)
    assert [code for code, _ in ended] == [0] * num_ranks, told
    return told


def _ranks(num_ranks: int) -> list[dict[str, str]]:
    """What torchrun sets in the environment of each of so many processes on one machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)]


def _fork(script: Path | None, words: tuple[object, ...], environment: Mapping[str, str], file_bytes: int) -> Forked:
    reader, writer = CONTEXT.Pipe(duplex=False)
    fcntl.fcntl(writer.fileno(), fcntl.F_SETPIPE_SZ, _TOLD_BYTES)
    arguments = (script, [str(word) for word in words], dict(environment), file_bytes, writer)
    process = CONTEXT.Process(target=_run, args=arguments)
    process.start()
    writer.close()
    return Forked(process=process, reader=reader)


def _run(script: Path | None, words: list[str], environment: dict[str, str], file_bytes: int, told: Connection) -> None:
    os.setsid()
    for stream in (1, 2):
        os.dup2(told.fileno(), stream)
    os.environ.update(environment)
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    sys.argv[1:] = words
    if script is None:
        runpy.run_module("blockwright", run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
