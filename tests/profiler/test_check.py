"""Times that no device can have made: confusions of units and of variants are found by the ceilings."""

from dataclasses import fields, replace
from typing import Any

import pytest

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.hw_profiles.folder import measured_profiles, read_profile
from blockwright.hw_profiles.profile import Backend, OperatorRow, Point, TimeRow, WholeRow
from blockwright.hw_profiles.table import OPERATOR_COLUMNS
from blockwright.hw_profiles.variants import parse_variant
from blockwright.llama import LLAMA_8B, llama
from blockwright.profiler.check import (
    MOST_UTILISATION,
    check_utilisation,
    least_time_of,
    operator_of,
    too_fast,
)
from blockwright.profiler.measure import layer_names
from blockwright.profiler.operators import Attend, Elementwise, Matmul
from blockwright.spec import Attention, Block, GatedFFN, LinearFFN, LinearMixer, NoOp, Window, variant_name

FLOP_PER_S = 90e9
MODEL = llama(
    (Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=384)),) * 2,
    vocab_size=2048,
    hidden_size=128,
    num_heads=8,
    head_dim=16,
    max_positions=512,
)


def _figure(value: float) -> Figure:
    return Figure(value=0.99 * value, low=0.98 * value, high=value, origin="measured", source="made up")


CEILINGS = Ceilings(
    read_bytes_per_s=_figure(20e9),
    flop_per_s={"fp32": _figure(FLOP_PER_S)},
    launch_s=_figure(1e-6),
    cache_bytes=2**25,
)
PREFILL_POINT, DECODE_POINT = (Point(batch=1, new_tokens=count, slots=256) for count in (128, 1))
FFN_FLOP = 3 * 2 * 128 * (128 * 384)
"""Of 128 tokens, three products of 128 by 384 each."""
LAYER_FLOP = FFN_FLOP + 2 * 128 * 128 * (128 + 64 + 64 + 128)
"""And the queries, four heads each of keys and values, the output."""
HEAD_FLOP = 2 * 128 * 2048
"""Of the last token alone."""


def _took(time_s: float) -> dict[str, Any]:
    times = {"time_s": time_s, "low_s": 0.9 * time_s, "high_s": 1.1 * time_s, "num_samples": 9, "num_rejected": 0}
    return times | {"backend": "onnxruntime", "format": "fp32", "origin": "measured"}


PREFILL = TimeRow(part="ffn", variant="ffn-384", point=PREFILL_POINT, **_took(FFN_FLOP / FLOP_PER_S / 0.9))
SMALL = TimeRow(part="mixer", variant="linear", point=DECODE_POINT, **_took(2e-6))
WHOLE = WholeRow(
    layers=layer_names(MODEL),
    is_anchor=True,
    point=PREFILL_POINT,
    **_took((HEAD_FLOP + 2 * LAYER_FLOP) / FLOP_PER_S / 0.9),
)
MADE_UP = replace(
    read_profile(measured_profiles()[0]),
    name="made-up",
    model=MODEL,
    ceilings=CEILINGS,
    times=(PREFILL, SMALL),
    wholes=(WHOLE,),
    memory=(),
    operators=(),
    accuracy=(),
)
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


@pytest.mark.parametrize("name", measured_profiles())
def test_what_was_really_measured_is_within_the_ceilings_and_near_them(name: str) -> None:
    """At best, that is: a ceiling that nothing comes near would let every mistake pass."""
    profile = read_profile(name)
    check_utilisation(profile)
    assert 0.5 < max(least_time_of(profile, row) / row.time_s for row in profile.times) <= MOST_UTILISATION


@pytest.mark.parametrize("name", measured_profiles())
@pytest.mark.parametrize("kind", ["times", "wholes"])
def test_what_was_really_measured_is_refused_in_milliseconds(kind: str, name: str) -> None:
    profile = read_profile(name)
    with pytest.raises(InputError, match="ceilings allow"):
        check_utilisation(replace(profile, **{kind: tuple(_faster(row, 1000) for row in getattr(profile, kind))}))


def test_the_least_time_of_an_ffn_is_its_three_products_at_the_devices_rate() -> None:
    check_utilisation(MADE_UP)
    assert least_time_of(MADE_UP, PREFILL) == pytest.approx(FFN_FLOP / FLOP_PER_S)


@pytest.mark.parametrize("weights", ["fp16", "int4-g32"])
def test_tensorrts_products_are_held_against_the_fastest_rate_of_any(weights: str) -> None:
    """It may sum fp16 up in fp16, which torch's products, the rates, do not."""
    rates = {"fp16": _figure(FLOP_PER_S), "fp8": _figure(2 * FLOP_PER_S)}
    part, whole = (replace(row, backend="tensorrt", format=weights) for row in (PREFILL, WHOLE))
    profile = replace(MADE_UP, ceilings=replace(CEILINGS, flop_per_s=rates), times=(part,), wholes=(whole,))
    assert least_time_of(profile, part) == pytest.approx(FFN_FLOP / FLOP_PER_S / 2)
    assert least_time_of(profile, whole) == pytest.approx((HEAD_FLOP + 2 * LAYER_FLOP) / FLOP_PER_S / 2)
    own = replace(part, backend="torch", format="fp16")
    assert least_time_of(replace(profile, times=(own,)), own) == pytest.approx(FFN_FLOP / FLOP_PER_S)


def test_a_whole_model_takes_at_least_what_its_layers_and_its_head_take() -> None:
    by_hand = (HEAD_FLOP + 2 * LAYER_FLOP) / FLOP_PER_S
    assert least_time_of(MADE_UP, WHOLE) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    "change",
    [
        {"times": (_faster(PREFILL, 1.3),)},
        {"times": (replace(PREFILL, variant="ffn-512"),)},
        {"wholes": (_faster(WHOLE, 1.3),)},
        {"operators": (_faster(PRODUCT, 1000),)},
    ],
    ids=["a faster part", "another variant", "a faster whole", "an operator in ms"],
)
def test_a_time_that_is_too_good_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="ceilings allow"):
        check_utilisation(replace(MADE_UP, **change))


def test_five_percent_above_the_ceiling_is_noise() -> None:
    least_s = 2e5 / FLOP_PER_S
    check_utilisation(replace(MADE_UP, operators=(_faster(PRODUCT, 1.04e-4 / least_s),)))
    with pytest.raises(InputError):
        check_utilisation(replace(MADE_UP, operators=(_faster(PRODUCT, 1.06e-4 / least_s),)))


def test_weights_come_no_faster_than_from_the_cache_where_that_was_measured() -> None:
    row = _faster(PRODUCT, 20)
    check_utilisation(replace(MADE_UP, operators=(row,)))
    slow = Figure(value=7e10, low=6e10, high=7.5e10, origin="measured", source="a test")
    with pytest.raises(InputError, match=r"at least the 5\.33e-06 s"):
        check_utilisation(replace(MADE_UP, operators=(row,), ceilings=replace(CEILINGS, cache_read_bytes_per_s=slow)))


def test_a_small_part_may_come_out_as_nothing_but_a_whole_may_not() -> None:
    check_utilisation(replace(MADE_UP, times=(replace(SMALL, time_s=0.0, low_s=0.0),)))
    head_s = HEAD_FLOP / FLOP_PER_S
    no_layers = replace(WHOLE, layers=(), point=DECODE_POINT, time_s=0.9 * head_s, low_s=0.9 * head_s)
    assert 0.1 * head_s < 5e-6, "what a part is let off with"
    with pytest.raises(InputError, match="a whole model of 0 layers"):
        check_utilisation(replace(MADE_UP, wholes=(no_layers,)))


def test_only_what_was_measured_is_held_against_the_ceilings() -> None:
    check_utilisation(replace(MADE_UP, times=(replace(_faster(PREFILL, 1000), origin="modelled"),)))


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_parts_of_every_backend_are_held_against_the_ceilings(backend: Backend) -> None:
    rows = (replace(PREFILL, backend=backend), replace(_faster(PREFILL, 1000), backend=backend))
    (found,) = too_fast(replace(MADE_UP, times=rows))
    assert found.row == rows[1] and found.least_s > 300 * rows[1].time_s
    with pytest.raises(InputError, match="ffn-384"):
        check_utilisation(replace(MADE_UP, times=rows))


@pytest.mark.parametrize("backend", ["llama.cpp", "vllm", "tensorrt"])
@pytest.mark.parametrize(("new_tokens", "least_s"), [(1, 2.4e-3), (512, 30e-3)])
def test_imported_times_of_every_backend_are_too(backend: Backend, new_tokens: int, least_s: float) -> None:
    """Reading 8 GB of weights once at 3.35 TB/s; two operations for each weight and token at 1979 TFLOP/s in fp8."""
    layers = tuple((variant_name(block.mixer), variant_name(block.ffn)) for block in LLAMA_8B.layers)
    point = Point(batch=8, new_tokens=new_tokens, slots=512)
    row = replace(WHOLE, backend=backend, format="int8", layers=layers, point=point)
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
    check_utilisation(replace(MADE_UP, times=(replace(_faster(PREFILL, 1000), format="int4-g32"),)))


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
