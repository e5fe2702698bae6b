"""How far from the loads that were read in a runtime's times may be foretold, and how surely."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from blockwright.cost import Cost, Load, Quantity
from blockwright.errors import InputError
from blockwright.hw_profiles.folder import measured_profiles, read_profile
from blockwright.hw_profiles.profile import Point, Profile, WholeRow, parent_of
from blockwright.profiler.cost_model import part_costs, predict
from blockwright.profiler.imports import decode, prefill
from blockwright.spec import parse_format, variant_name, with_format

MODEL = with_format(parent_of(read_profile(measured_profiles()[0])), parse_format("bf16"))
PHASES: tuple[Quantity, ...] = ("time_per_token", "time_to_first_token")


def _profile(*points: Point) -> Profile:
    """Times at some points that do not hang on the point, so that they agree as a memory-bound device's would."""
    layers = tuple((variant_name(block.mixer), variant_name(block.ffn)) for block in MODEL.layers)
    kind = {"backend": "vllm", "format": "bf16", "layers": layers, "is_anchor": True, "origin": "measured"}
    times = {"time_s": 1e-3, "low_s": 1e-3, "high_s": 1e-3, "num_samples": 5, "num_rejected": 0}
    rows = tuple(WholeRow(point=point, **kind, **times) for point in points)  # type: ignore[arg-type]
    return replace(read_profile("h100_sxm"), model=MODEL, wholes=rows, software={"vllm": "1"})


def _cost(profile: Profile, load: Load, quantity: Quantity, may_extrapolate: bool = False) -> Cost:
    return part_costs(profile, MODEL, load, quantity, "vllm", may_extrapolate=may_extrapolate).of_model(MODEL)


def _width(cost: Cost) -> float:
    return math.log(cost.high / cost.value)


ALONE = _profile(prefill(1, 128), decode(1, 192))


@pytest.mark.parametrize("quantity", PHASES)
@pytest.mark.parametrize("batch", [5, 64])
def test_a_batch_far_beyond_those_read_in_is_refused_unless_asked_for(batch: int, quantity: Quantity) -> None:
    load = Load(batch=batch, prompt_tokens=128, new_tokens=128)
    with pytest.raises(InputError, match=rf"batch {batch}.*at most 4 times beyond.*batch 1.*--extrapolate"):
        _cost(ALONE, load, quantity)
    cost = _cost(ALONE, load, quantity, may_extrapolate=True)
    assert _width(cost) > 0.02 + 0.9 * 0.12 * math.log(batch)


def test_batch_64_from_batch_1_is_no_surer_than_a_datasheet() -> None:
    load = Load(batch=64, prompt_tokens=128, new_tokens=128)
    assert _width(_cost(ALONE, load, "time_per_token", may_extrapolate=True)) > 0.35


def test_energy_and_requests_are_refused_where_their_times_are() -> None:
    load = Load(batch=64, prompt_tokens=128, new_tokens=128)
    for quantity in ("energy", "request_latency"):
        with pytest.raises(InputError, match="--extrapolate"):
            _cost(ALONE, load, quantity)


@pytest.mark.parametrize("quantity", PHASES)
def test_the_interval_widens_with_every_step_away(quantity: Quantity) -> None:
    steps = [Load(batch=1, prompt_tokens=tokens, new_tokens=128) for tokens in (128, 200, 320, 500)]
    widths = [_width(_cost(ALONE, load, quantity)) for load in steps]
    assert widths[0] == pytest.approx(0.02)
    assert all(more > less + 0.02 for less, more in pairwise(widths))
    assert _width(_cost(ALONE, replace(steps[0], batch=2), quantity)) > widths[0] + 0.08


@pytest.mark.parametrize("tokens", [31, 513])
def test_short_prompts_are_as_far_as_long_ones(tokens: int) -> None:
    with pytest.raises(InputError, match=f"prompts of {tokens}"):
        _cost(ALONE, Load(batch=1, prompt_tokens=tokens, new_tokens=1), "time_to_first_token")
    _cost(ALONE, Load(batch=1, prompt_tokens=32 if tokens < 128 else 512, new_tokens=1), "time_to_first_token")


def test_between_two_that_were_read_in_nothing_is_beyond() -> None:
    both = _profile(decode(1, 192), decode(256, 192))
    load = Load(batch=16, prompt_tokens=128, new_tokens=128)
    assert _width(_cost(both, load, "time_per_token")) > 0.12 * math.log(16)


def test_a_missing_phase_says_that_a_request_needs_both() -> None:
    profile = _profile(decode(1, 192))
    assert "request_latency" not in predict(profile, MODEL, Load(batch=1, prompt_tokens=128, new_tokens=128), "vllm")
    with pytest.raises(InputError, match=r"no format of its prefill.*reading the prompt and writing"):
        _cost(profile, Load(batch=1, prompt_tokens=128, new_tokens=128), "request_latency")
