"""A sitting at a GPU: cases that are kept, fail, are marked and repeated; and the script that holds one."""

import json
from pathlib import Path

import pytest
import torch

from blockwright.errors import InputError
from blockwright.files import write_json
from blockwright.hw_profiles.folder import read_profile
from blockwright.hw_profiles.profile import OperatorRow
from blockwright.profiler.gpu_sitting import (
    Done,
    Notes,
    Row,
    Step,
    corrected_rows,
    drift_of,
    is_marked,
    marks_of_steps,
    open_work,
    run_steps,
    with_repeats,
)
from forked import fork_script

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu" / "profile_gpu.py"


def _row(time_s: float) -> OperatorRow:
    return OperatorRow(
        backend="torch",
        kind="elementwise",
        fields={"num_values": 3, "bytes_per_value": 2},
        time_s=time_s,
        low_s=time_s,
        high_s=time_s,
        num_samples=10,
        num_rejected=0,
        origin="measured",
    )


def test_a_sitting_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    measured: list[str] = []

    def step(name: str) -> Step:
        def measure() -> list[tuple[Row, Notes]]:
            measured.append(name)
            if name == "b" and measured.count("b") == 1:
                raise KeyboardInterrupt
            return [(_row(1.0), {"throttles": ["power_cap"] if name == "a" else []})]

        return Step(name=name, measure=measure)

    steps = [step(name) for name in "abc"]
    with pytest.raises(KeyboardInterrupt):
        run_steps(steps, tmp_path, lambda: 1.0, lambda _: None, lambda: None)
    done = run_steps(steps, tmp_path, lambda: 1.0, lambda _: None, lambda: None)
    assert measured == ["a", "b", "b", "c"]
    assert [(each.name, each.look_s) for each in done] == [("a", 1.0), ("b", None), ("c", None)]
    assert [is_marked(each.notes[0]) for each in done] == [True, False, False]


def test_a_case_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    told: list[str] = []
    errors = [RuntimeError("CUDA out of memory. Tried to\nand so on"), RuntimeError("")]

    def measure() -> list[tuple[Row, Notes]]:
        if errors:
            raise errors.pop(0)
        return [(_row(1.0), {})]

    steps = [Step(name="a", measure=lambda: [(_row(2.0), {})]), Step(name="b", measure=measure)]
    for expected in ("CUDA out of memory. Tried to", "RuntimeError", None):
        done = run_steps(steps, tmp_path, lambda: 1.0, lambda _: None, lambda: told.append("released"))
        assert [each.error for each in done] == [None, expected]
        assert len(done[1].rows) == (expected is None)
    assert told == ["released"] * 2


def test_what_is_no_fault_of_the_device_stops_a_sitting(tmp_path: Path) -> None:
    def refuse() -> list[tuple[Row, Notes]]:
        raise InputError("a test", got="this", expected="that", remedy="None.")

    with pytest.raises(InputError):
        run_steps([Step(name="a", measure=refuse)], tmp_path, lambda: 1.0, lambda _: None, lambda: None)


def test_repeats_of_what_failed_tell_no_drift() -> None:
    rows: list[list[Row]] = [[_row(1.0)], [_row(1.0)], [], [_row(1.1)]]
    drift = drift_of(rows, 2)
    assert drift is not None and drift.num_repeated == 1 and drift.worst == pytest.approx(0.1)


def test_marks_name_the_row_and_what_held_the_clock_down() -> None:
    throttled: list[Notes] = [{"throttles": ["power_cap", "thermal_software"]}, {"throttles": []}]
    notes = (*throttled, {"throttles": [], "is_slow_clock": True})
    rows = tuple(_row(1.0 + place) for place in range(3))
    first, second = marks_of_steps([Done(name="a", position=0, rows=rows, notes=notes, look_s=None)])
    assert first.startswith("operator elementwise") and "power_cap, thermal_software while" in first
    assert "the clock stayed low" in second


def test_drift_is_divided_out_and_repeats_tell_the_rest(tmp_path: Path) -> None:
    done = [
        Done(
            name=str(position),
            position=position,
            rows=(_row(2.0 if position < 20 else 2.2),),
            notes=({},),
            look_s=(1.0 if position < 20 else 1.1) if position % 2 == 0 else None,
        )
        for position in range(24)
    ]
    rows = corrected_rows(done)
    assert [row.time_s for (row,) in rows if isinstance(row, OperatorRow)] == pytest.approx([2.0] * 24)
    again = drift_of(rows, 22)
    assert again is not None and again.num_repeated == 2 and again.worst == pytest.approx(0.0)


def test_the_first_twentieth_is_measured_twice() -> None:
    steps = [Step(name=str(index), measure=list) for index in range(40)]
    assert [step.name for step in with_repeats(steps)[40:]] == ["again: 0", "again: 1"]


def test_a_sitting_of_something_else_is_refused(tmp_path: Path) -> None:
    open_work(tmp_path, {"parent": "a"})
    open_work(tmp_path, {"parent": "a"})
    with pytest.raises(InputError, match="another order"):
        open_work(tmp_path, {"parent": "b"})


def test_a_field_that_an_older_version_did_not_have_is_no_other_order(tmp_path: Path) -> None:
    write_json(tmp_path / "order.json", {"digest": "of it", "order": {"parent": {"a": 1, "layers": [{"b": None}]}}})
    open_work(tmp_path, {"parent": {"a": 1, "layers": ({"b": None, "c": None},), "head_weights": None}})
    for other in ({"a": 1, "layers": [{"b": 0}]}, {"a": 1, "layers": []}, {"a": 1, "layers": [{}], "c": 0}):
        with pytest.raises(InputError, match="another order"):
            open_work(tmp_path, {"parent": other})


@pytest.mark.slow
def test_the_script_writes_a_profile_that_reads_back(tmp_path: Path) -> None:
    parent = str(ROOT / "recipes/demo-parent")
    out = tmp_path / "device"
    code, told = fork_script(SCRIPT, "--out", out, "--parent", parent, "--device", "cpu", "--quick").wait()
    assert code == 0, told
    profile = read_profile(out)
    assert {row.part for row in profile.times} == {"mixer", "ffn"}
    assert {row.kind for row in profile.operators} == {"matmul", "attend", "elementwise"}
    assert sum(row.is_anchor for row in profile.wholes) == 2 * 3 and len(profile.wholes) == 2 * 12
    assert {(row.phase, row.num_held_out) for row in profile.accuracy} == {("decode", 24), ("prefill", 24)}
    notes = json.loads((tmp_path / "device.journal.json").read_text())
    assert notes["drift_of_repeats"]["num_repeated"] > 0 and notes["looks_s"]
    assert not (tmp_path / "device.work").exists()


def test_without_a_gpu_the_script_says_what_to_do(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, told = fork_script(SCRIPT, "--out", tmp_path / "device").wait()
    assert code != 0 and "nvidia-smi names no GPU" in told
    assert not (tmp_path / "device").exists()
