"""Contestants of race.py as processes: asked with a time limit, and listed with how far they came when they end."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from race_players import Entry

_CONTESTANT = Path(__file__).with_name("race_contestant.py")


def told(answer: dict[str, Any], returncode: int, said: str) -> dict[str, Any]:
    """What a case found, with `why` it went no further, None where it came to its end."""
    why = answer.get("why")
    if why is None and returncode:
        how = f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit code {returncode}"
        last = (said.strip().splitlines() or ["nothing said"])[-1]
        why = f"the process ended with {how}: {last}"
    return answer | {"why": why}


class Contestant:
    """A process that plays; `why` it does no more, once it does not."""

    def __init__(self, entry: Entry, log: Path) -> None:
        self.entry = entry
        self.why: str | None = None
        self.came: dict[str, dict[str, Any]] = {}
        """What it has told of itself, by stage."""
        self._log, self._unread = log, b""
        command = [sys.executable, str(_CONTESTANT), json.dumps(asdict(entry))]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)

    def set_up(self, deadline: float) -> None:
        """Waits until it is ready, or takes it out."""
        while self.why is None and "ready" not in self.came:
            answer = self._hear(deadline)
            if answer is not None:
                self.came[answer.pop("stage")] = answer
                self.why = answer.get("why")

    def ask(self, order: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Its answer; that with `why` where it gives none, which takes it out."""
        assert self._process.stdin is not None
        if self.why is None:
            try:
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError:  # it has ended meanwhile, and `_hear` finds out how
                pass
            answer = self._hear(time.monotonic() + limit_s)
            if answer is not None:
                return answer
        return {"why": self.why}

    def end(self, why: str | None = None) -> None:
        """Ends the process, which is this one's own."""
        self.why = self.why or why
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _hear(self, deadline: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            left_s = max(0.0, deadline - time.monotonic())  # what it said in time counts, however late it is read
            if not select.select([pipe], [], [], left_s)[0]:
                self.end("it took longer than there was time for")
                return None
            more = os.read(pipe, 65536)
            if not more:
                self._ended()
                return None
            self._unread += more
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)

    def _ended(self) -> None:
        returncode = self._process.wait()
        self.why = told({}, returncode, self._log.read_text(errors="replace"))["why"] or "the process ended"
