"""An error that advises --extrapolate is about something that --extrapolate can tell."""

from dataclasses import replace

import pytest

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.folder import measured_profiles, read_profile
from blockwright.hw_profiles.profile import Profile, parent_of
from blockwright.profiler.cost_model import part_costs, predict
from blockwright.spec import Model

ONE_LOAD = read_profile(measured_profiles()[0])
PARENT = parent_of(ONE_LOAD)
ADVICE = "with --extrapolate"


def _at_two_batches() -> Profile:
    """As if at batch 4 everything took twice as long."""
    rows = {
        name: tuple(
            replace(
                row,
                point=replace(row.point, batch=4),
                time_s=2 * row.time_s,
                low_s=2 * row.low_s,
                high_s=2 * row.high_s,
            )
            for row in getattr(ONE_LOAD, name)
        )
        for name in ("times", "wholes")
    }
    memory = tuple(replace(row, batch=4) for row in ONE_LOAD.memory)
    return replace(
        ONE_LOAD,
        times=(*ONE_LOAD.times, *rows["times"]),
        wholes=(*ONE_LOAD.wholes, *rows["wholes"]),
        memory=(*ONE_LOAD.memory, *memory),
    )


def _error(profile: Profile, load: Load, model: Model = PARENT, may_extrapolate: bool = False) -> InputError | None:
    try:
        predict(profile, model, load, may_extrapolate=may_extrapolate)
    except InputError as error:
        return error
    return None


@pytest.mark.parametrize(
    "load",
    [
        Load(batch=8, prompt_tokens=256, new_tokens=128),
        Load(batch=1, prompt_tokens=64, new_tokens=192),
        Load(batch=1, prompt_tokens=200, new_tokens=56),
        Load(batch=1, prompt_tokens=256, new_tokens=256),
        Load(batch=8, prompt_tokens=128, new_tokens=128),
        Load(batch=2, prompt_tokens=128, new_tokens=128),
    ],
)
@pytest.mark.parametrize("profile", [ONE_LOAD, _at_two_batches()], ids=["one", "two"])
def test_advice_is_given_where_it_helps_and_nowhere_else(profile: Profile, load: Load) -> None:
    strict, loose = _error(profile, load), _error(profile, load, may_extrapolate=True)
    if strict is None:
        assert loose is None
    else:
        assert (ADVICE in strict.remedy) == (loose is None)
        assert "blockwright profile --load" in strict.remedy


def test_both_kinds_of_error_are_met() -> None:
    far = Load(batch=8, prompt_tokens=128, new_tokens=128)
    helped, not_helped = _error(_at_two_batches(), far), _error(ONE_LOAD, far)
    assert helped is not None and ADVICE in helped.remedy
    assert not_helped is not None and "needs two measured points in line" in not_helped.remedy


def test_a_token_that_could_be_foretold_does_not_promise_a_prompt_that_cannot() -> None:
    """Decode at batch 8 lies in line with two measured points, prefill with one."""
    two = _at_two_batches()
    kept = [row for row in (*two.times, *two.wholes) if row.point.batch == 1 or row.point.new_tokens == 1]
    names = {id(row) for row in kept}
    half = replace(
        two,
        times=tuple(row for row in two.times if id(row) in names),
        wholes=tuple(row for row in two.wholes if id(row) in names),
    )
    load = Load(batch=8, prompt_tokens=128, new_tokens=128)
    part_costs(half, PARENT, load, "time_per_token", may_extrapolate=True)
    with pytest.raises(InputError) as caught:
        part_costs(half, PARENT, load, "time_per_token")
    assert ADVICE not in caught.value.remedy
