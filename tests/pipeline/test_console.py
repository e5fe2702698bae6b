"""What people see while they wait."""

import pytest

from blockwright.pipeline import console
from blockwright.pipeline.console import progress


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_LINE_EVERY_S", 0.0)
    with progress("library", total=8, done=3) as advance:
        advance("layer 1")
        advance(to=7)
    assert capsys.readouterr().err.splitlines() == ["library 4/8, 0 s left: layer 1", "library 7/8, 0 s left"]


def test_short_work_writes_nothing_to_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("score", total=2) as advance:
        advance()
        advance()
    assert capsys.readouterr().err == ""
