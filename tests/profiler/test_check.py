"""Times that no device can have made: confusions of units and of variants are found by the ceilings."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Figure
from blockwright.hw_profiles.folder import read_profile, shipped_profiles
from blockwright.hw_profiles.profile import OperatorRow, Profile
from blockwright.hw_profiles.table import OPERATOR_COLUMNS
from blockwright.hw_profiles.variants import parse_variant
from blockwright.profiler.check import check_utilisation, least_time_s, operator_of, operators_of
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


@pytest.mark.parametrize("change", [{"backend": "torch"}, {"origin": "modelled"}])
def test_the_runtimes_ceilings_are_held_against_what_was_measured_in_it(change: dict[str, Any]) -> None:
    check_utilisation(replace(SHIPPED, times=(replace(_faster(PREFILL, 1000), **change),)))


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
