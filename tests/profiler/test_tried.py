"""Children that a search chose and that were tried: times on a line through the parent."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from blockwright.cost import Load
from blockwright.hw_profiles.profile import Profile
from blockwright.hw_profiles.tried import Share, TriedChild
from blockwright.profiler.cost_model import predict
from blockwright.spec import Attention, Block, Format, GatedFFN, LinearMixer, Model, with_format

LOAD = Load(batch=1, prompt_tokens=40, new_tokens=24)
OTHER = Load(batch=1, prompt_tokens=80, new_tokens=24)
INT4 = Format(name="int4", group_size=32)
SMALL = (Block(mixer=LinearMixer(), ffn=GatedFFN(width=64)),) * 3
BETWEEN = (Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=64)),) * 3


def _share(value: float) -> Share:
    return Share(median=value, low=value, high=value, num_processes=1)


def _tried(child: Model, decode: float, prefill: float = 0.5, load: Load = LOAD) -> TriedChild:
    shares = {"time_per_token": _share(decode), "time_to_first_token": _share(prefill)}
    return TriedChild(child=child, parent_format="fp32", load=load, **shares)


@pytest.fixture
def profile(make_profile: Callable[..., Profile]) -> Profile:
    return make_profile([LOAD, OTHER])


def _time(profile: Profile, model: Model, load: Load = LOAD) -> float:
    return predict(profile, model, load)["time_per_token"].value


def test_a_tried_child_takes_the_share_that_it_took_and_the_parent_its_own_time(
    profile: Profile, made_up_parent: Model
) -> None:
    child, parent_s = replace(made_up_parent, layers=SMALL), _time(profile, made_up_parent)
    foretold = _time(profile, child) / parent_s
    told = replace(profile, tried=(_tried(child, foretold + 0.05, 0.6),))
    assert _time(told, made_up_parent) == pytest.approx(parent_s)
    assert _time(told, child) / parent_s == pytest.approx(foretold + 0.05, abs=0.002)  # but for the ridge
    between = replace(made_up_parent, layers=BETWEEN)
    assert _time(profile, between) < _time(told, between) < parent_s
    prefill = predict(told, child, LOAD)["time_to_first_token"].value
    assert prefill / predict(told, made_up_parent, LOAD)["time_to_first_token"].value == pytest.approx(0.6, abs=0.01)


def test_what_follows_from_times_follows_from_the_tried_ones_too(profile: Profile, made_up_parent: Model) -> None:
    child = replace(made_up_parent, layers=SMALL)
    told = predict(replace(profile, tried=(_tried(child, 0.7, 0.6),)), child, LOAD)
    latency = told["time_to_first_token"].value + (LOAD.new_tokens - 1) * told["time_per_token"].value
    assert told["request_latency"].value == pytest.approx(latency)
    assert told["memory"] == predict(profile, child, LOAD)["memory"]


def test_intervals_stay_as_wide_for_their_size(profile: Profile, made_up_parent: Model) -> None:
    child = replace(made_up_parent, layers=SMALL)
    before = predict(profile, child, LOAD)["time_per_token"]
    after = predict(replace(profile, tried=(_tried(child, 0.8),)), child, LOAD)["time_per_token"]
    assert after.value > 1.1 * before.value
    assert after.high / after.value == pytest.approx(before.high / before.value)
    assert after.low / after.value == pytest.approx(before.low / before.value)


def test_children_of_other_loads_or_formats_say_nothing(profile: Profile, made_up_parent: Model) -> None:
    child = replace(made_up_parent, layers=SMALL)
    own = predict(profile, child, LOAD)
    for tried in (
        _tried(child, 0.9, load=OTHER),
        _tried(with_format(child, INT4), 0.9),
        replace(_tried(child, 0.9), parent_format="int4-g32"),
    ):
        assert predict(replace(profile, tried=(tried,)), child, LOAD) == own


def test_a_child_with_nearly_the_parents_time_hardly_tilts_the_line(profile: Profile, made_up_parent: Model) -> None:
    near = replace(made_up_parent, layers=(*made_up_parent.layers[:2], BETWEEN[0]))
    far = replace(made_up_parent, layers=SMALL)
    share = _time(profile, near) / _time(profile, made_up_parent)
    assert 0.8 < share < 1
    told = replace(profile, tried=(_tried(near, 1.02),))  # slower than the parent: a line would run the wrong way
    assert _time(told, far) < _time(told, near) < _time(told, made_up_parent)


def test_several_children_are_met_in_the_mean(profile: Profile, made_up_parent: Model) -> None:
    child = replace(made_up_parent, layers=SMALL)
    foretold = _time(profile, child) / _time(profile, made_up_parent)
    both = replace(profile, tried=(_tried(child, foretold - 0.04), _tried(child, foretold + 0.04)))
    assert _time(both, child) == pytest.approx(_time(profile, child))


@pytest.mark.parametrize("ends", [(0.0, 0.5, 0.6), (0.6, 0.5, 0.7), (0.4, 0.5, float("inf"))])
def test_a_share_that_cannot_be_is_refused(ends: tuple[float, float, float]) -> None:
    low, median, high = ends
    with pytest.raises(ValueError, match="low <= median <= high"):
        Share(median=median, low=low, high=high, num_processes=3)
