"""What a distillation says of its own end."""

from pathlib import Path

import pytest

from blockwright.model.parent import open_parent
from blockwright.pipeline.distill import distill_child
from blockwright.pipeline.distill_order import DistillOrder


def test_who_makes_a_child_worse_is_told(
    small_parent: Path, small_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = DistillOrder(
        text=str(small_text), window_tokens=16, tokens=64, batch_windows=2, learning_rate=0.1, seed=0, judging_tokens=64
    )
    distilled = distill_child(small_parent, open_parent(str(small_parent)), order, tmp_path / "child")
    assert distilled is not None and distilled.after.kl.value > distilled.before.kl.value
    told = " ".join(capsys.readouterr().err.split())
    assert "--eval-every" in told
    assert f"its KL was {distilled.before.kl.value:.3g} and is {distilled.after.kl.value:.3g}" in told


def test_one_that_stops_by_held_out_text_keeps_what_it_began_with(
    small_parent: Path, small_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = DistillOrder(
        text=str(small_text),
        window_tokens=16,
        tokens=128,
        batch_windows=2,
        learning_rate=0.1,
        seed=0,
        judging_tokens=64,
        eval_steps=1,
    )
    distilled = distill_child(small_parent, open_parent(str(small_parent)), order, tmp_path / "child")
    assert distilled is not None and distilled.after.kl.value == distilled.before.kl.value
    assert "no step made the child better" in capsys.readouterr().err
