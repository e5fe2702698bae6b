"""A distillation whose process is killed at moments that nobody chose."""

import json
from pathlib import Path

from forked import fork_script


def test_a_distillation_killed_at_any_moment_ends_with_the_same_weights_to_the_bit(tmp_path: Path) -> None:
    script = Path(__file__).with_name("distilled_and_killed.py")
    code, told = fork_script(script, tmp_path).wait()
    assert code == 0, told
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kills, history = (json.loads((killed / name).read_text()) for name in ("kills.json", "history.json"))
    assert sorted({0, *kills, len(history)}) == [0, *kills, len(history)], "kills not each after further steps"
    assert history == json.loads((whole / "history.json").read_text())
    assert (killed / "child.safetensors").read_bytes() == (whole / "child.safetensors").read_bytes()
