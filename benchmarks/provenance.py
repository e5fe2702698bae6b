"""Where a result comes from, and its two files; linked into the folders beside, whose scripts import it too."""

import json
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blockwright.hw_profiles.device import Device, installed_software

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"


def origin(command: str, device: Device) -> dict[str, Any]:
    """What every result begins with; the commit is that of now."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "commit": commit(),
        "device": asdict(device),
        "software": installed_software() | {"system": platform.platform()},
    }


def commit() -> str:
    """The commit that is measured, marked where files differ from it."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write_results(results: dict[str, Any], text: str, stem: Path) -> None:
    """Writes the results as JSON, and for people as Markdown, which it prints too."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    print(text)
