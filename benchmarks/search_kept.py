"""What `search.py` measured, kept in a folder, so that a killed run goes on."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from provenance import REPOSITORY
from search_peers import Given, Record, judged, timed

from blockwright.search.arrays import Arrays

SOLVER = ("arrays", "core", "decisions", "enumerate", "frontier", "general", "pool", "problem", "relaxation", "solve")
"""Files of search/ that matter here."""
OWN = ("ours", "CP-SAT")
"""Solvers that are called through them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What was measured before: ours of the same search, and peers, of the same instances."""

    folder: Path
    search: str
    """Digest of the solver's files."""

    def get(self, key: str, solver: str, make: Callable[[], Record]) -> Record:
        """A record, made unless it is there."""
        folder = self.folder / (self.search if solver.startswith(OWN) else "peers")
        path = folder / (key.replace(" ", "-").replace("×", "x") + f"_{solver.replace(' ', '-')}.json")
        if not path.exists():
            load = os.getloadavg()[0]
            record = {"case": key, "solver": solver, "load_average": load, "at": datetime.now(UTC).isoformat()} | make()
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record))
            shown = {name: record.get(name) for name in ("wall_s", "cpu_s", "status", "score")}
            print(f"{key}, {solver}: {shown}", file=sys.stderr, flush=True)
        return json.loads(path.read_text())

    def solve(self, key: str, solver: str, arrays: Arrays, run: Callable[[], Given]) -> Record:
        """One solve, timed."""

        def make() -> Record:
            given, seconds = timed(run)
            return seconds | judged(arrays, given)

        return self.get(key, solver, make)


def digest() -> str:
    """Of the solver, whose timings are kept under it."""
    files = [REPOSITORY / "search" / f"{name}.py" for name in SOLVER]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
