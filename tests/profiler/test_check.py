"""Times that no device can have made: confusions of units and of variants are found by the ceilings."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Figure
from blockwright.hw_profiles.folder import read_profile, shipped_profiles
from blockwright.hw_profiles.profile import Backend, OperatorRow, Point, Profile
from blockwright.hw_profiles.table import OPERATOR_COLUMNS
from blockwright.hw_profiles.variants import parse_variant
from blockwright.llama import LLAMA_8B
from blockwright.profiler.check import check_utilisation, least_time_s, operator_of, operators_of, too_fast
from blockwright.profiler.operators import Attend, Elementwise, Matmul
from blockwright.spec import Attention, GatedFFN, LinearFFN, LinearMixer, NoOp, Window, variant_name

SHIPPED = read_profile(shipped_profiles()[0])
PREFILL = next(row for row in SHIPPED.times if row.variant == "ffn-384" and row.point.new_tokens == 128)
PRODUCT = OperatorRow(
    backend="onnxruntime",
    kind="matmul",
    fields={"rows": 1, "inputs": 1000, "outputs": 100, "weights": "fp32", "weight_bytes": 400000, "bytes_per_value": 4},
    time_s=1e-4,
    low_s=1e-4,
    high_s=1e-4,
    num_samples=3,
    num_rejected=0,
    origin="measured",
)


def _faster(row: Any, factor: float) -> Any:
    return replace(row, time_s=row.time_s / factor, low_s=row.low_s / factor, high_s=row.high_s / factor)


def test_what_was_really_measured_is_within_the_ceilings() -> None:
    check_utilisation(SHIPPED)
    assert 0.85 < least_time_s(operators_of(SHIPPED, PREFILL), SHIPPED.ceilings) / PREFILL.time_s < 0.95


def test_the_least_time_of_an_ffn_is_its_three_products_at_the_devices_rate() -> None:
    by_hand = 3 * 2 * 128 * (128 * 384) / SHIPPED.ceilings.flop_per_s["fp32"].high
    assert least_time_s(operators_of(SHIPPED, PREFILL), SHIPPED.ceilings) == pytest.approx(by_hand)


def test_a_whole_model_takes_at_least_what_its_layers_and_its_head_take() -> None:
    whole = SHIPPED.wholes[0]
    parts = [
        replace(PREFILL, part=part, variant=name, point=whole.point)
        for names in whole.layers
        for part, name in zip(("mixer", "ffn"), names, strict=True)
    ]
    head = 2 * 128 * 2048 / SHIPPED.ceilings.flop_per_s["fp32"].high
    by_hand = head + sum(least_time_s(operators_of(SHIPPED, part), SHIPPED.ceilings) for part in parts)
    assert least_time_s(operators_of(SHIPPED, whole), SHIPPED.ceilings) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    "change",
    [
        lambda profile: {"times": tuple(_faster(row, 1000) for row in profile.times)},
        lambda profile: {"wholes": tuple(_faster(row, 1000) for row in profile.wholes)},
        lambda profile: {"times": (_faster(PREFILL, 1.3),)},
        lambda profile: {"times": (replace(PREFILL, variant="ffn-512"),)},
        lambda profile: {"operators": (_faster(PRODUCT, 1000),)},
    ],
    ids=["parts in ms", "wholes in ms", "a faster part", "another variant", "an operator in ms"],
)
def test_a_time_that_is_too_good_is_refused(change: Callable[[Profile], dict[str, Any]]) -> None:
    with pytest.raises(InputError, match="ceilings allow"):
        check_utilisation(replace(SHIPPED, **change(SHIPPED)))


def test_five_percent_above_the_ceiling_is_noise() -> None:
    least_s = 2e5 / SHIPPED.ceilings.flop_per_s["fp32"].high
    check_utilisation(replace(SHIPPED, operators=(_faster(PRODUCT, 1.04e-4 / least_s),)))
    with pytest.raises(InputError):
        check_utilisation(replace(SHIPPED, operators=(_faster(PRODUCT, 1.06e-4 / least_s),)))


def test_weights_come_no_faster_than_from_the_cache_where_that_was_measured() -> None:
    row = _faster(PRODUCT, 20)
    check_utilisation(replace(SHIPPED, operators=(row,)))
    slow = Figure(value=7e10, low=6e10, high=7.5e10, origin="measured", source="a test")
    with pytest.raises(InputError, match=r"at least the 5\.33e-06 s"):
        check_utilisation(
            replace(SHIPPED, operators=(row,), ceilings=replace(SHIPPED.ceilings, cache_read_bytes_per_s=slow))
        )


def test_a_small_part_may_come_out_as_nothing_but_a_whole_may_not() -> None:
    small = next(row for row in SHIPPED.times if row.variant == "linear" and row.point.new_tokens == 1)
    check_utilisation(replace(SHIPPED, times=(replace(small, time_s=0.0, low_s=0.0),)))


def test_only_what_was_measured_is_held_against_the_ceilings() -> None:
    check_utilisation(replace(SHIPPED, times=(replace(_faster(PREFILL, 1000), origin="modelled"),)))


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_parts_of_every_backend_are_held_against_the_ceilings(backend: Backend) -> None:
    rows = (replace(PREFILL, backend=backend), replace(_faster(PREFILL, 1000), backend=backend))
    (found,) = too_fast(replace(SHIPPED, times=rows, wholes=(), operators=()))
    assert found.row == rows[1] and found.least_s > 300 * rows[1].time_s
    with pytest.raises(InputError, match="ffn-384"):
        check_utilisation(replace(SHIPPED, times=rows))


@pytest.mark.parametrize("backend", ["llama.cpp", "vllm", "tensorrt"])
@pytest.mark.parametrize(("new_tokens", "least_s"), [(1, 2.4e-3), (512, 30e-3)])
def test_imported_times_of_every_backend_are_too(backend: Backend, new_tokens: int, least_s: float) -> None:
    """Reading 8 GB of weights once at 3.35 TB/s; two operations for each weight and token at 1979 TFLOP/s in fp8."""
    layers = tuple((variant_name(block.mixer), variant_name(block.ffn)) for block in LLAMA_8B.layers)
    point = Point(batch=8, new_tokens=new_tokens, slots=512)
    row = replace(SHIPPED.wholes[0], backend=backend, format="int8", layers=layers, point=point, is_anchor=True)
    profile = replace(read_profile("h100_sxm"), model=LLAMA_8B)
    for time_s, number in ((1.1 * least_s, 0), (0.8 * least_s, 1)):
        timed = replace(row, time_s=time_s, low_s=time_s, high_s=time_s)
        assert len(too_fast(replace(profile, wholes=(timed,)))) == number


def test_weights_that_no_cache_has_room_for_come_from_memory() -> None:
    """A step of decoding does too few products for its rate to tell microseconds from nanoseconds."""
    fields = {"rows": 1, "inputs": 4096, "outputs": 14336, "weights": "bf16", "bytes_per_value": 2}
    row = replace(PRODUCT, backend="torch", fields=fields | {"weight_bytes": 2 * 4096 * 14336})
    profile = read_profile("h200_sxm")
    assert profile.ceilings.cache_bytes is not None
    least_s = (2 * 4096 * 14336 - profile.ceilings.cache_bytes) / profile.ceilings.read_bytes_per_s.high
    for time_s, number in ((0.99 * least_s, 0), (0.9 * least_s, 1)):
        timed = replace(row, time_s=time_s, low_s=time_s, high_s=time_s)
        assert len(too_fast(replace(profile, operators=(timed,)))) == number
    cached = replace(profile, ceilings=replace(profile.ceilings, cache_bytes=2**28))
    assert not too_fast(replace(cached, operators=(_faster(row, 100),)))


def test_a_format_without_a_measured_rate_is_held_against_nothing() -> None:
    check_utilisation(replace(SHIPPED, times=(replace(_faster(PREFILL, 1000), format="int4-g32"),)))


def test_the_columns_of_an_operator_are_the_fields_of_its_class() -> None:
    for kind, cls in {"matmul": Matmul, "attend": Attend, "elementwise": Elementwise}.items():
        assert set(OPERATOR_COLUMNS[kind]) == {field.name for field in fields(cls)}
    assert operator_of(PRODUCT) == Matmul(
        rows=1, inputs=1000, outputs=100, weights="fp32", weight_bytes=400000, bytes_per_value=4
    )


def test_every_variant_is_found_again_by_its_name() -> None:
    for part, variants in {
        "mixer": (Attention(num_kv_heads=2), Attention(num_kv_heads=8, reach=Window(num_tokens=64)), LinearMixer()),
        "ffn": (GatedFFN(width=384), LinearFFN()),
    }.items():
        for variant in (*variants, NoOp()):
            assert parse_variant(part, variant_name(variant)) == variant  # type: ignore[arg-type]
    for part, name in (("ffn", "attention-kv2"), ("mixer", "ffn-3"), ("mixer", "attention-kv0"), ("ffn", "ffn--1")):
        with pytest.raises(ValueError, match="the name of a variant"):
            parse_variant(part, name)  # type: ignore[arg-type]
