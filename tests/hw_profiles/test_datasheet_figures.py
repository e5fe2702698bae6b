"""The table of datasheet figures: what it says agrees with what the chips are made of."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Figure
from blockwright.hw_profiles.datasheet_figures import (
    Datasheet,
    datasheet,
    datasheet_ceilings,
    known_devices,
    read_cell,
    read_table,
)

README = Path(__file__).parents[2] / "hw_profiles" / "README.md"
GPUS = [name for name in known_devices() if datasheet(name).vendor == "NVIDIA"]
GEFORCE = ["rtx_4090", "rtx_5090"]
RATES = [(name, key) for name in known_devices() for key in datasheet(name).flop_per_s]


def figures(sheet: Datasheet) -> Iterator[Figure]:
    """Every figure of a device."""
    for name in Datasheet.__dataclass_fields__:
        value = getattr(sheet, name)
        yield from (
            item for item in (value.values() if isinstance(value, dict) else [value]) if isinstance(item, Figure)
        )


@pytest.mark.parametrize(("name", "key"), RATES)
def test_a_rate_is_units_times_operations_times_clock(name: str, key: str) -> None:
    sheet = datasheet(name)
    clock_hz = sheet.fp32_clock_hz if key == "fp32" else sheet.clock_hz
    built = sheet.num_units.value * sheet.flop_per_clock[key].value * clock_hz.value
    assert sheet.flop_per_s[key].value == pytest.approx(built, rel=0.02)


@pytest.mark.parametrize("name", known_devices())
def test_bandwidth_is_bus_width_times_data_rate(name: str) -> None:
    sheet = datasheet(name)
    built = sheet.memory_bits.value * sheet.transfers_per_s.value / 8
    assert sheet.read_bytes_per_s.value == pytest.approx(built, rel=0.02)


@pytest.mark.parametrize(
    ("name", "lanes"),
    [
        ("raspberry_pi_5", {"fp32": 2 * 4 * 2, "int8": 2 * 16 * 2}),
        ("intel_n100", {"fp32": 2 * 4 * 2, "int8": 2 * 16 * 2}),
    ],
)
def test_a_cpu_core_does_pipes_times_lanes_times_two(name: str, lanes: dict[str, int]) -> None:
    assert {key: figure.value for key, figure in datasheet(name).flop_per_clock.items()} == lanes


# Operations per clock and SM by generation, from the tensor cores' sizes: a sparse rate would be twice as high.
@pytest.mark.parametrize(
    ("name", "fp16_per_clock"),
    [
        ("a100_sxm", 2048),
        ("h100_sxm", 4096),
        ("h200_sxm", 4096),
        ("b200_sxm", 8192),
        ("l40s", 1024),
        ("jetson_agx_orin", 2048),
    ],
)
def test_rates_are_dense(name: str, fp16_per_clock: int) -> None:
    sheet = datasheet(name)
    built = sheet.flop_per_s["fp16"].value / sheet.num_units.value / sheet.clock_hz.value
    assert built == pytest.approx(fp16_per_clock, rel=0.02)


@pytest.mark.parametrize("name", [name for name in GPUS if name not in GEFORCE])
def test_half_the_bits_are_twice_the_rate(name: str) -> None:
    rates = {key: figure.value for key, figure in datasheet(name).flop_per_s.items()}
    ladder = [("fp16", "fp8"), ("fp16", "int8"), ("int8", "int4"), ("fp8", "fp4")]
    for slow, fast in ladder:
        if slow in rates and fast in rates:
            assert rates[fast] / rates[slow] == pytest.approx(2, rel=0.03), (slow, fast)


@pytest.mark.parametrize("name", GEFORCE)
def test_geforce_runs_16_bit_with_fp32_accumulation_at_half_rate(name: str) -> None:
    rates = datasheet(name).flop_per_s
    assert rates["int8"].value / rates["bf16"].value == pytest.approx(4, rel=0.01)
    assert rates["bf16"].value / rates["fp32"].value == pytest.approx(2, rel=0.01)


def test_super_mode_is_the_same_chip_at_another_clock() -> None:
    plain, fast = datasheet("jetson_orin_nano"), datasheet("jetson_orin_nano_super")
    per_clock = [[figure.value for figure in sheet.flop_per_clock.values()] for sheet in (plain, fast)]
    assert per_clock[0] == per_clock[1]
    assert fast.flop_per_s["int8"].value / plain.flop_per_s["int8"].value == pytest.approx(1020 / 625, rel=0.02)
    assert fast.read_bytes_per_s.value / plain.read_bytes_per_s.value == pytest.approx(1.5, rel=0.01)


def test_orin_counts_its_gpu_alone() -> None:
    """275 TOPS are advertised: twice 85 for sparsity, and 105 of the DLA."""
    assert 2 * datasheet("jetson_agx_orin").flop_per_s["int8"].value + 105e12 == pytest.approx(275e12, rel=0.01)


def test_what_a_chip_has_no_instructions_for_is_absent() -> None:
    assert not {"fp8", "fp4"} & datasheet("a100_sxm").flop_per_s.keys()
    assert "int4" not in datasheet("h100_sxm").flop_per_s
    assert "fp8" not in datasheet("jetson_agx_orin").flop_per_s
    assert datasheet("raspberry_pi_5").flop_per_s.keys() == {"fp32", "int8"}


@pytest.mark.parametrize("name", known_devices())
def test_every_figure_has_a_source_an_interval_and_is_modelled(name: str) -> None:
    for figure in figures(datasheet(name)):
        assert figure.origin == "modelled"
        assert len(figure.source) > 10
        if "not verified" in figure.source:
            assert figure.high / figure.low > 1.25
        elif "second-hand" in figure.source:
            assert figure.high / figure.low > 1.02
    assert sum(1 for _ in figures(datasheet(name))) >= 14


@pytest.mark.parametrize("name", known_devices())
def test_launches_are_known_within_a_factor_of_ten_at_best(name: str) -> None:
    launch_s = datasheet(name).launch_s
    assert launch_s.high / launch_s.low >= 10
    assert 1e-7 < launch_s.low < launch_s.high < 1e-4
    assert launch_s.source.startswith("modelled")


@pytest.mark.parametrize("name", known_devices())
def test_bandwidth_by_power_is_what_memories_of_this_decade_do(name: str) -> None:
    sheet = datasheet(name)
    assert 1e9 < sheet.read_bytes_per_s.value / sheet.busy_w.value < 1e10
    assert max(sheet.power_modes_w) == sheet.busy_w.value
    assert list(sheet.power_modes_w) == sorted(sheet.power_modes_w)


@pytest.mark.parametrize("name", known_devices())
def test_memory_is_read_in_less_than_a_second_and_exceeds_the_cache(name: str) -> None:
    sheet = datasheet(name)
    assert 0.01 < sheet.memory_bytes.value / sheet.read_bytes_per_s.value < 0.6
    assert sheet.cache_bytes.value < sheet.memory_bytes.value / 100


def test_devices_are_those_asked_for_and_fit_for_file_names() -> None:
    assert len(known_devices()) == len(set(known_devices())) == 17
    assert all(name.isidentifier() and name.islower() for name in known_devices())


def test_ceilings_are_the_figures_of_the_table() -> None:
    ceilings = datasheet_ceilings("h100_sxm")
    assert ceilings.read_bytes_per_s.value == 3350e9
    assert ceilings.flop_per_s["bf16"].value == 989.4e12
    assert (ceilings.num_units, ceilings.cache_bytes) == (132, 50 * 2**20)
    assert ceilings.busy_w is not None and ceilings.busy_w.value == 700
    assert ceilings.idle_w is None and ceilings.reference_s is None


@pytest.mark.parametrize("name", known_devices())
def test_every_device_has_ceilings(name: str) -> None:
    assert datasheet_ceilings(name).num_units == datasheet(name).num_units.value


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("h100-sxm", "h100_sxm"),
        ("H100_SXM", "h100_sxm"),
        ("rtx4090", "rtx_4090"),
        ("jetson orin nano", "jetson_orin_nano"),
    ],
)
def test_an_unknown_device_is_refused_with_near_misses(name: str, meant: str) -> None:
    with pytest.raises(InputError) as error:
        datasheet_ceilings(name)
    assert f"Did you mean {meant}" in error.value.remedy
    assert all(known in error.value.expected for known in known_devices())


def test_a_device_like_no_other_gets_the_way_to_add_it() -> None:
    with pytest.raises(InputError, match="Add a row"):
        datasheet("zzz")


@pytest.mark.parametrize(
    ("cell", "is_count", "expected"),
    [
        ("100", False, (99, 100, 101)),
        ("100~", False, (95, 100, 105)),
        ("100?", False, (85, 100, 115)),
        ("100", True, (100, 100, 100)),
        ("100?", True, (85, 100, 115)),
        ("100(50..120)", False, (50, 100, 120)),
        ("100(50..120)?", True, (50, 100, 120)),
        ("0.5(.25..1.0)", False, (0.25, 0.5, 1)),
    ],
)
def test_a_cell_says_how_surely_it_is_known(cell: str, is_count: bool, expected: tuple[float, float, float]) -> None:
    figure = read_cell(cell, 1e3, "a datasheet", is_count=is_count)
    assert (figure.low, figure.value, figure.high) == pytest.approx([part * 1e3 for part in expected])
    assert figure.source.endswith("a datasheet")
    assert ("not verified" in figure.source) == cell.endswith("?")


@pytest.mark.parametrize(
    "cell", ["-", "", "1e3", "100!", "100(50)", "100(50..)", "100(120..150)", "100~?", "1.2.3", "0"]
)
def test_another_cell_is_refused(cell: str) -> None:
    with pytest.raises(ValueError):
        read_cell(cell, 1, "a datasheet")


@pytest.mark.parametrize(
    "text",
    ["device b\nx 1", "device a b\nx 1 2", "a\nx", "device a\nx", "device a\nx 1 2", "device a\nx 1\nx 2"],
)
def test_another_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_table(text, ["a"])


def test_a_table_is_read_by_its_first_column() -> None:
    assert read_table("\ndevice a  b\nx 1 -\ny 3(1..4)~ 4\n", ["a", "b"]) == {
        "x": {"a": "1", "b": "-"},
        "y": {"a": "3(1..4)~", "b": "4"},
    }


def readme_row(sheet: Datasheet) -> str:
    """The README's row of a device."""
    formats = ("fp32", "bf16", "fp8", "int8")
    rates = [f"{sheet.flop_per_s[key].value / 1e12:.4g}" if key in sheet.flop_per_s else "–" for key in formats]
    memory = [f"{sheet.memory_bytes.value / 2**30:.4g}", f"{sheet.read_bytes_per_s.value / 1e9:.4g}"]
    chip = [sheet.architecture, sheet.compute_capability or "–", f"{sheet.num_units.value:.0f}"]
    last = [f"{sheet.cache_bytes.value / 2**20:.4g}", f"{sheet.busy_w.value:.0f}", sheet.flop_per_s["fp32"].source]
    return "| " + " | ".join([f"`{sheet.name}`", *chip, *rates, *memory, *last]) + " |"


@pytest.mark.parametrize("name", known_devices())
def test_the_readme_shows_the_table_as_it_is(name: str) -> None:
    row = readme_row(datasheet(name))
    assert row in README.read_text().splitlines(), row
