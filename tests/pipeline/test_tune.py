"""Settings chosen by measuring: what is tried, what wins, and that the engine then runs with it."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from blockwright.cli.main import BAD_INPUT, main
from blockwright.compile.engine import GRAPH_FILE, SessionSettings, read_engine
from blockwright.compile.session import Decoder
from blockwright.pipeline import software, tune
from blockwright.pipeline.compile import CompileOrder, compile_checkpoint
from blockwright.profiler.clock import Samples
from blockwright.profiler.tuning import SettingsSamples, TuningRequest

PAIRS = [(1, False), (2, False), (2, True)]
"""Threads, and whether they spin."""


@pytest.fixture
def compiled(small_parent: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(**changes: object) -> Path:
        order = CompileOrder(**({"format": "int4", "threads": 2} | changes))  # type: ignore[arg-type]
        compile_checkpoint(str(small_parent), order, tmp_path / "engine")
        return tmp_path / "engine"

    return run


def _samples(time_s: float) -> Samples:
    return Samples(
        turns_s=((time_s,),) * 5,
        weights=(1.0,),
        reference_s=None,
        num_samples=5,
        num_rejected=0,
        clock="wall",
        is_disturbed=False,
    )


def _made_up(monkeypatch: pytest.MonkeyPatch, slowness: Callable[[SessionSettings], float]) -> list[SessionSettings]:
    """Puts made-up times in place of measured ones; returns the settings that they are asked of."""
    asked: list[SessionSettings] = []

    def sample(request: TuningRequest) -> SettingsSamples:
        asked.append(request.settings)
        time_s = slowness(request.settings)
        return SettingsSamples(token=_samples(1e-3 * time_s), prompt=_samples(5e-2 * time_s))

    monkeypatch.setattr(tune, "sample_settings", sample)
    return asked


def _session_says(folder: Path) -> SessionSettings:
    """What ONNX Runtime itself says a session was opened with."""
    options = Decoder.open(folder).session.get_session_options()
    level = options.get_session_config_entry("session.qdq_matmulnbits_accuracy_level")
    return SessionSettings(
        num_threads=options.intra_op_num_threads,
        accuracy_level=4 if level == "4" else 0,
        spins=options.get_session_config_entry("session.intra_op.allow_spinning") == "1",
        zeroes_denormals=options.get_session_config_entry("session.set_denormal_as_zero") == "1",
    )


def test_measured_on_this_machine_the_fastest_that_was_tried_is_what_runs(
    small_parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "SECONDS", 0.01)
    monkeypatch.setattr(tune, "_TURNS", 1)
    folder = tmp_path / "engine"
    words = ["compile", str(small_parent), "--format", "int4", "--threads", "2", "--tune", "--out", str(folder)]
    assert main(words) == 0
    engine = read_engine(folder)
    assert engine.tuning is not None
    times = {
        each.settings: each.time_to_first_token_s + engine.tuning.load.new_tokens * each.time_per_token_s
        for each in engine.tuning.tried
    }
    assert min(times.values()) > 0
    assert engine.session == min(times, key=lambda settings: times[settings])
    assert _session_says(folder) == engine.session
    pairs = {(each.num_threads, each.spins) for each in times}
    assert pairs == set(PAIRS)
    assert {each.accuracy_level for each in times} == {0, 4}
    assert {each.zeroes_denormals for each in times} == {False, True}
    assert capsys.readouterr().out.count("accuracy level") == len(times)


@pytest.mark.parametrize("flavour", ["standard", "contrib"])
@pytest.mark.parametrize("wanted", list(itertools.product(PAIRS, [0, 4], [False, True])))
def test_whatever_is_fastest_is_found_recorded_and_opened(
    wanted: tuple[tuple[int, bool], int, bool],
    flavour: str,
    compiled: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slowness(settings: SessionSettings) -> float:
        found = ((settings.num_threads, settings.spins), settings.accuracy_level, settings.zeroes_denormals)
        return float(np.prod([2.0 - (a == b) for a, b in zip(found, wanted, strict=True)]))

    _made_up(monkeypatch, slowness)
    folder = compiled(flavour=flavour, tunes=True)
    (threads, spins), level, zeroes = wanted
    settings = SessionSettings(
        num_threads=threads, spins=spins, accuracy_level=0 if level == 0 else 4, zeroes_denormals=zeroes
    )
    assert read_engine(folder).session == _session_says(folder) == settings
    levels = {
        attribute.i
        for node in onnx.load(folder / GRAPH_FILE, load_external_data=False).graph.node
        for attribute in node.attribute
        if attribute.name == "accuracy_level"
    }
    assert levels == ({level} if flavour == "contrib" else set())


def test_a_contrib_engine_that_adopts_full_accuracy_computes_with_it(
    compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def logits(folder: Path, settings: SessionSettings | None = None) -> np.ndarray:
        return Decoder.open(folder, settings).start(1, 8).prefill([[1, 2, 3]])

    folder = compiled(flavour="contrib")
    exact, rounded = (logits(folder, SessionSettings(num_threads=2, accuracy_level=level)) for level in (0, 4))
    _made_up(monkeypatch, lambda settings: 1.0 + settings.accuracy_level)
    assert tune.tune_engine(folder).session.accuracy_level == 0
    assert np.array_equal(logits(folder), exact)
    assert not np.array_equal(exact, rounded)
    again = SessionSettings(num_threads=2, accuracy_level=4)
    assert np.array_equal(logits(folder, again), rounded)


def test_the_time_is_that_of_the_whole_load(compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(request: TuningRequest) -> SettingsSamples:
        is_one = request.settings.num_threads == 1
        return SettingsSamples(token=_samples(1.0 if is_one else 2.0), prompt=_samples(20.0 if is_one else 1.0))

    monkeypatch.setattr(tune, "sample_settings", sample)
    engine = tune.tune_engine(compiled())
    assert engine.tuning is not None and engine.tuning.load.new_tokens == 32  # half of the context
    assert engine.session.num_threads == 1  # 20 + 32 against 1 + 64


@pytest.mark.parametrize(("threads", "numbers"), [(1, {1}), (3, {1, 2, 3}), (4, {1, 2, 4}), (6, {1, 2, 4, 6})], ids=str)
def test_threads_go_up_to_what_is_asked_and_fp32_has_no_levels(
    threads: int, numbers: set[int], compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _made_up(monkeypatch, lambda _: 1.0)
    compiled(format="fp32", threads=threads, tunes=True)
    assert {settings.num_threads for settings in asked} == numbers
    assert {settings.accuracy_level for settings in asked} == {4}
    assert {settings.spins for settings in asked if settings.num_threads == 1} == {False}


def test_an_engine_is_tuned_once_for_a_machine(compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _made_up(monkeypatch, lambda _: 1.0)
    first = read_engine(compiled(tunes=True))
    num_asked = len(asked)
    assert read_engine(compiled(tunes=True)) == first
    assert len(asked) == num_asked > 0


def test_engines_from_before_there_was_tuning_are_read(compiled: Callable[..., Path]) -> None:
    folder = compiled()
    text = (folder / "engine.json").read_text()
    assert '"tuning": null' in text and '"zeroes_denormals": true' in text
    old = text.replace(' "tuning": null,\n', "").replace(',\n  "zeroes_denormals": true', "")
    (folder / "engine.json").write_text(old)
    assert old != text and read_engine(folder).session == SessionSettings(num_threads=2)


def test_an_engine_that_could_not_be_tuned_does_not_take_the_place_of_the_one_before(
    compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_engine(compiled(format="fp32"))

    def fails(settings: SessionSettings) -> float:
        raise RuntimeError("no time")

    _made_up(monkeypatch, fails)
    with pytest.raises(RuntimeError, match="no time"):
        compiled(format="int4", tunes=True)
    assert read_engine(folder := compiled(format="fp32")) == before
    assert {path.name for path in folder.parent.iterdir()} <= {"engine", "manifest.json", ".lock"}


def test_an_engine_too_short_to_be_tuned_is_refused_before_anything(
    small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compile", str(small_parent), "--tune", "--out", str(tmp_path / "engine")]
    assert main([*words, "--context", "1"]) == BAD_INPUT
    assert "error in --context" in (complaint := capsys.readouterr().err) and "at least 2 with --tune" in complaint
    assert not list(tmp_path.iterdir())


def test_an_engine_says_whose_operators_it_was_tuned_on(
    compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _made_up(monkeypatch, lambda _: 1.0)
    monkeypatch.setattr(tune, "operators_in_use", lambda: "blockwright 7")
    folder = compiled()
    tuning = tune.tune_engine(folder).tuning
    assert tuning is not None and tuning == read_engine(folder).tuning
    assert tuning.operators == "blockwright 7"
    tune.print_tuning(tuning)
    assert "with CPU operators of blockwright 7" in capsys.readouterr().out
    text = (folder / "engine.json").read_text()
    old = text.replace('"operators": "blockwright 7",', "")
    (folder / "engine.json").write_text(old)
    assert old != text and read_engine(folder).tuning == replace(tuning, operators=None)


@pytest.mark.parametrize("tunes", [False, True])
def test_who_tunes_on_slower_operators_is_told_why(
    tunes: bool, compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _made_up(monkeypatch, lambda _: 1.0)
    monkeypatch.setattr(software, "why_missing", lambda: "there is no C compiler")
    compiled(tunes=tunes)
    assert capsys.readouterr().err.count("there is no C compiler") == tunes
