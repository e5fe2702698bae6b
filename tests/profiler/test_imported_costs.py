"""Costs in a runtime of which whole models alone were timed, against the sums that they are scaled from."""

import math
from dataclasses import replace

import pytest

from blockwright.cost import UNIT_OF, Load, Quantity
from blockwright.count import parameters
from blockwright.errors import InputError
from blockwright.hw_profiles.folder import measured_profiles, read_profile
from blockwright.hw_profiles.profile import IMPORTED, Backend, Point, Profile, WholeRow, parent_of
from blockwright.profiler.cost_model import known_quantities, part_costs, predict
from blockwright.profiler.imported_costs import check_imported
from blockwright.profiler.imports import decode, prefill
from blockwright.profiler.served_costs import decode_phase, prefill_phase
from blockwright.spec import Attention, Block, GatedFFN, Model, NoOp, parse_format, variant_name, with_format

MODEL = replace(
    parent_of(read_profile(measured_profiles()[0])),
    hidden_size=2048,
    num_heads=16,
    head_dim=128,
    vocab_size=32000,
    layers=(Block(mixer=Attention(num_kv_heads=8), ffn=GatedFFN(width=8192)),) * 16,
)
BF16 = with_format(MODEL, parse_format("bf16"))
LOAD = Load(batch=1, prompt_tokens=512, new_tokens=129)
READ, WRITTEN = prefill(1, 512), decode(1, 512 + 64)
SHARE = 0.35


def _row(point: Point, time_s: float, backend: Backend = "llama.cpp", spread: float = 1.0) -> WholeRow:
    return WholeRow(
        backend=backend,
        format="bf16",
        layers=tuple((variant_name(block.mixer), variant_name(block.ffn)) for block in MODEL.layers),
        is_anchor=True,
        point=point,
        time_s=time_s,
        low_s=time_s / spread,
        high_s=time_s * spread,
        num_samples=5,
        num_rejected=0,
        origin="measured",
    )


def _profile(*rows: WholeRow, device: str = "rtx_4090") -> Profile:
    return replace(read_profile(device), model=MODEL, wholes=rows, software={"llama.cpp": "b1"})


def _foretold(context: int, backend: Backend = "llama.cpp", device: str = "rtx_4090", model: Model = BF16) -> float:
    load = Load(batch=1, prompt_tokens=context, new_tokens=1)
    return decode_phase(read_profile(device), backend, model, load).times.of_model(model).value


@pytest.mark.parametrize("backend", IMPORTED)
def test_the_parent_takes_what_its_anchors_did(backend: Backend) -> None:
    profile = _profile(_row(READ, 0.02, backend), _row(WRITTEN, 0.007, backend))
    costs = predict(profile, BF16, LOAD, backend)
    assert set(costs) == set(UNIT_OF)
    assert costs["time_per_token"].value == pytest.approx(0.007)
    assert costs["time_to_first_token"].value == pytest.approx(0.02)
    assert costs["request_latency"].value == pytest.approx(0.02 + 128 * 0.007)
    for quantity in ("time_per_token", "time_to_first_token"):
        cost = costs[quantity]
        assert cost.origin == "transferred"
        assert cost.high / cost.value == pytest.approx(math.exp(0.02)) == cost.value / cost.low


def test_the_ratio_is_the_anchors_geometric_mean_and_the_interval_their_scatter() -> None:
    near, far = _foretold(576), _foretold(4000)
    profile = _profile(_row(WRITTEN, 2 * near), _row(decode(1, 4000), 3 * far))
    cost = part_costs(profile, BF16, LOAD, "time_per_token", "llama.cpp").of_model(BF16)
    assert cost.value == pytest.approx(near * math.sqrt(6))
    assert math.log(cost.high / cost.value) == pytest.approx(math.log(3 / 2) / 2)


def test_the_interval_is_never_narrower_than_the_anchors_own() -> None:
    profile = _profile(_row(WRITTEN, 0.007, spread=1.2))
    cost = part_costs(profile, BF16, LOAD, "time_per_token", "llama.cpp").of_model(BF16)
    assert (cost.low, cost.high) == (pytest.approx(0.007 / 1.2), pytest.approx(0.007 * 1.2))


def test_what_a_child_has_of_its_own_widens_its_interval_by_a_share_of_the_difference() -> None:
    profile = _profile(_row(WRITTEN, 0.007))
    parts = part_costs(profile, BF16, LOAD, "time_per_token", "llama.cpp")
    own = parts.of_ffn(BF16.layers[0].ffn)
    assert own.high == pytest.approx(own.value * math.exp(0.02))
    half, gone = parts.of_ffn(GatedFFN(width=4096, weights=parse_format("bf16"))), parts.of_ffn(NoOp())
    assert half.high == pytest.approx(half.value * math.exp(0.02) + SHARE * (own.value - half.value))
    assert (gone.value, gone.low, gone.high) == (0.0, 0.0, pytest.approx(SHARE * own.value))


def test_a_child_is_the_same_sum_scaled() -> None:
    profile = _profile(_row(WRITTEN, 3 * _foretold(576)))
    child = replace(BF16, layers=(replace(BF16.layers[0], ffn=NoOp()), *BF16.layers[1:12]))
    cost = part_costs(profile, BF16, LOAD, "time_per_token", "llama.cpp").of_model(child)
    assert cost.value == pytest.approx(3 * _foretold(576, model=child))


def test_away_from_the_anchors_load_the_interval_widens_by_a_share_of_the_difference() -> None:
    profile = _profile(_row(WRITTEN, _foretold(576)))
    long = replace(LOAD, prompt_tokens=30000, new_tokens=2)
    cost = part_costs(profile, BF16, long, "time_per_token", "llama.cpp", may_extrapolate=True).of_model(BF16)
    distance = 1 - _foretold(576) / _foretold(30001)
    assert distance > 0.1
    assert math.log(cost.high / cost.value) == pytest.approx(0.02 + SHARE * distance + 0.12 * math.log(30001 / 576))


def test_a_phase_that_was_not_timed_is_unknown_with_all_that_needs_it() -> None:
    profile = _profile(_row(WRITTEN, 0.007))
    gone: set[Quantity] = {"time_to_first_token", "request_latency", "throughput", "energy"}
    assert set(UNIT_OF) - set(known_quantities(profile, "llama.cpp")) == gone
    with pytest.raises(InputError, match="no format"):
        part_costs(profile, BF16, LOAD, "time_to_first_token", "llama.cpp")
    only_read = _profile(_row(READ, 0.02))
    assert "time_per_token" not in predict(only_read, BF16, LOAD, "llama.cpp")


def test_other_runtimes_and_formats_are_not_taken_for_it() -> None:
    profile = _profile(_row(WRITTEN, 0.007))
    with pytest.raises(InputError, match="no times of it"):
        predict(profile, BF16, LOAD, "vllm")
    with pytest.raises(InputError, match="some in fp32"):
        predict(profile, MODEL, LOAD, "llama.cpp")
    datasheet = read_profile("rtx_4090")
    for quantity in ("time_per_token", "energy"):
        here, there = (part_costs(each, BF16, LOAD, quantity).of_model(BF16) for each in (profile, datasheet))
        assert here == there


def test_energy_is_the_datasheets_scaled_and_as_uncertain() -> None:
    read_s = prefill_phase(read_profile("rtx_4090"), "llama.cpp", BF16, LOAD).times.of_model(BF16).value
    rows = _row(READ, 2 * read_s), _row(WRITTEN, 2 * _foretold(576))
    twice, once = (
        _profile(*rows),
        _profile(*(replace(r, time_s=r.time_s / 2, low_s=r.low_s / 2, high_s=r.high_s / 2) for r in rows)),
    )
    first, second = (part_costs(each, BF16, LOAD, "energy", "llama.cpp").of_model(BF16) for each in (once, twice))
    assert second.value == pytest.approx(2 * first.value)
    assert second.high / second.value == pytest.approx(first.high / first.value) and first.high > 1.5 * first.value


def test_a_measured_processor_without_operators_takes_its_ceilings() -> None:
    shipped = read_profile(measured_profiles()[0])
    parent = parent_of(shipped)
    model, names = (
        with_format(parent, parse_format("bf16")),
        [(variant_name(block.mixer), variant_name(block.ffn)) for block in parent.layers],
    )
    row = replace(_row(WRITTEN, 0.004), layers=tuple(names))
    profile = replace(shipped, wholes=(*shipped.wholes, row))
    assert predict(profile, model, LOAD, "llama.cpp")["time_per_token"].value == pytest.approx(0.004)
    usual = Load(batch=1, prompt_tokens=128, new_tokens=128)
    assert predict(profile, parent, usual) == predict(shipped, parent, usual)


def test_a_time_in_another_unit_is_refused() -> None:
    weights_s = 2 * 1.1e9 / 1.008e12  # a bf16 model of about 1.1 billion parameters, read once
    profile = _profile()
    check_imported(profile, _row(WRITTEN, 1.2 * weights_s))
    with pytest.raises(InputError, match="another unit"):
        check_imported(profile, _row(WRITTEN, 1.2e-3 * weights_s))
    with pytest.raises(InputError, match="another unit"):
        check_imported(profile, _row(prefill(1, 4096), 5e-6))


def test_integers_with_smaller_scales_than_ours_are_no_faster_than_the_device() -> None:
    row, profile = replace(_row(WRITTEN, 1.0), format="int4-g32"), _profile()
    matrices = parameters(replace(MODEL, has_tied_embeddings=True))
    at_full_speed_s = 4.5 / 8 * matrices / profile.ceilings.read_bytes_per_s.high  # Q4_0: 18 bytes for 32 weights
    check_imported(profile, replace(row, time_s=at_full_speed_s, low_s=at_full_speed_s))
    with pytest.raises(InputError, match="another unit"):
        check_imported(profile, replace(row, time_s=at_full_speed_s / 2, low_s=0.0))
