"""Chooses an engine's settings by what it takes with them on this machine.

One kind of settings after another is varied, those chosen so far kept: threads together with spinning, for what
spinning gains depends on them, then the accuracy of integer products, then denormals. Those of a kind are timed in
turn, in processes of their own. Settings that were timed for several kinds have the times of all of them; the fastest
of all that were tried are chosen.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from blockwright.compile.cpu_library import operators_in_use
from blockwright.compile.engine import Engine, SessionSettings, Tried, Tuning, adopt_tuning, read_engine
from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.device import this_device
from blockwright.profiler.clock import Samples, timing_of
from blockwright.profiler.tuning import SettingsSamples, TuningRequest, sample_settings
from blockwright.spec import Model, NoOp
from blockwright.units import format_time

NUM_KINDS = 3
SECONDS = 0.3
"""To time a token and to time a prompt, for each settings and turn."""
_TURNS = 2
_HALF_TOKENS = 128
"""Of the prompt, and of what is written, where the engine's context is so long."""
_LEAST_POSITIONS = 2

Choices = Callable[[SessionSettings], list[SessionSettings]]
"""What to compare with settings: they themselves and others that differ in one kind."""
_Samples = dict[SessionSettings, list[SettingsSamples]]


def tune_engine(folder: Path, on_kind: Callable[[], object] = lambda: None) -> Engine:
    """Times an engine with up to as many threads as it was built for, and gives it the fastest settings.

    Args:
        folder: the engine's; its description, and its graph where that names an accuracy, are written anew.
        on_kind: called after each of the `NUM_KINDS` kinds of settings.

    Raises:
        InputError: the engine is broken or cannot run here.
    """
    engine = read_engine(folder)
    half = min(_HALF_TOKENS, engine.num_positions // 2)
    load = Load(batch=1, prompt_tokens=half, new_tokens=half)
    most_threads, best = engine.session.num_threads, engine.session
    tuning = Tuning(device=this_device().name, operators=operators_in_use(), load=load, tried=())
    samples = _Samples()
    for choices in _kinds(engine.model, most_threads):
        settings = choices(best)
        for each in settings * (_TURNS * (len(settings) > 1)):
            request = TuningRequest(
                folder=str(folder), settings=each, load=load, num_threads=most_threads, seconds=SECONDS
            )
            samples.setdefault(each, []).append(sample_settings(request))
        tuning = replace(tuning, tried=_times(samples))
        best = tuning.fastest.settings if tuning.tried else best
        on_kind()
    return adopt_tuning(folder, tuning)


def check_can_be_tuned(num_positions: int) -> None:
    """Refuses an engine that is too short to read a token and to write one.

    Raises:
        InputError: it is.
    """
    if num_positions < _LEAST_POSITIONS:
        raise InputError(
            "--context",
            got=num_positions,
            expected=f"at least {_LEAST_POSITIONS} with --tune, which reads a token and writes one",
            remedy="Ask for a longer one, or compile without --tune.",
        )


def print_tuning(tuning: Tuning) -> None:
    """Prints what was tried, the fastest first."""
    words = f"{tuning.load.prompt_tokens} tokens read and {tuning.load.new_tokens} written"
    where = tuning.device if tuning.operators is None else f"{tuning.device} with CPU operators of {tuning.operators}"
    print(f"settings by the time that {words} take on {where}, the first one chosen:")
    for tried in sorted(tuning.tried, key=tuning.time_s):
        times = f"{format_time(tried.time_to_first_token_s)} to read, {format_time(tried.time_per_token_s)} a token"
        print(f"  {settings_words(tried.settings)}: {times}")


def settings_words(settings: SessionSettings) -> str:
    """Settings in a line."""
    threads = f"{settings.num_threads} thread{'s' * (settings.num_threads > 1)}"
    spinning = "spinning" if settings.spins else "not spinning"
    denormals = "zero" if settings.zeroes_denormals else "kept"
    return f"{threads}, {spinning}, accuracy level {settings.accuracy_level}, denormals {denormals}"


def _kinds(model: Model, most_threads: int) -> Iterator[Choices]:
    """The kinds of settings, in the order in which they are varied; the ones to begin with come first in each."""
    numbers = [most_threads, *(2**power for power in range(most_threads.bit_length()) if 2**power < most_threads)]
    pairs = [(number, spins) for number in numbers for spins in ((False, True) if number > 1 else (False,))]
    yield lambda best: [replace(best, num_threads=number, spins=spins) for number, spins in pairs]
    yield lambda best: [replace(best, accuracy_level=level) for level in ((4, 0) if _has_integers(model) else (4,))]
    yield lambda best: [replace(best, zeroes_denormals=zeroes) for zeroes in (True, False)]


def _has_integers(model: Model) -> bool:
    parts = [part for block in model.layers for part in (block.mixer, block.ffn) if not isinstance(part, NoOp)]
    return any(weights.group_size for weights in (model.embedding_weights, *(part.weights for part in parts)))


def _times(samples: _Samples) -> tuple[Tried, ...]:
    """What each settings took, over all turns, as if the machine had been at its best in all of them."""
    looks_s = [each.token.reference_s for of_one in samples.values() for each in of_one]
    best_s = min((look_s for look_s in looks_s if look_s is not None), default=None)

    def time_s(turns: list[Samples]) -> float:
        return timing_of(turns, best_s).calm_s

    return tuple(
        Tried(
            settings=settings,
            time_per_token_s=time_s([each.token for each in of_one]),
            time_to_first_token_s=time_s([each.prompt for each in of_one]),
        )
        for settings, of_one in samples.items()
    )
