"""Profiles as files: read strictly, kept to the machine and the versions they were measured with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from blockwright.errors import InputError
from blockwright.hw_profiles.device import Device
from blockwright.hw_profiles.profile import (
    Ceilings,
    MemoryRow,
    Point,
    PowerRow,
    Profile,
    TimeRow,
    WholeRow,
    check_is_this_machine,
    read_profile,
    shipped_profiles,
    write_profile,
)
from blockwright.spec import Attention, Block, GatedFFN, Model, Rope
from blockwright.strict import to_data

DEVICE = Device(
    vendor="GenuineMade",
    model="Made-up(R) CPU 9000 @ 2.0GHz",
    architecture="x86_64",
    num_cores=2,
    memory_bytes=24 * 2**30,
    features=("avx2",),
)
ROW = TimeRow(
    backend="onnxruntime",
    format="fp32",
    part="ffn",
    variant="ffn-128",
    point=Point(batch=1, new_tokens=1, slots=256),
    time_s=2e-5,
    low_s=1e-5,
    high_s=3e-5,
    num_samples=30,
    num_rejected=1,
    origin="measured",
)
WHOLE = WholeRow(
    backend="onnxruntime",
    format="fp32",
    layers=(("attention-2", "ffn-128"),),
    is_anchor=True,
    point=ROW.point,
    time_s=2e-4,
    low_s=1e-4,
    high_s=3e-4,
    num_samples=30,
    num_rejected=1,
    origin="measured",
)
MEMORY = MemoryRow(
    backend="onnxruntime",
    format="fp32",
    batch=1,
    prompt_tokens=16,
    new_tokens=16,
    peak_bytes=2000,
    exact_bytes=1000,
    origin="measured",
)
POWER = PowerRow(power_w=60.0, low_w=55.0, high_w=70.0, num_samples=40, origin="measured")
PROFILE = Profile(
    schema_version=1,
    name="made-up",
    device=DEVICE,
    software={"onnxruntime": "1.30.0"},
    num_threads=1,
    created="2026-01-01T00:00:00+00:00",
    model=Model(
        family="llama",
        vocab_size=96,
        hidden_size=64,
        num_heads=4,
        head_dim=16,
        max_positions=256,
        norm_eps=1e-6,
        rope=Rope(theta=1e4),
        activation="silu",
        has_tied_embeddings=True,
        has_qkv_bias=False,
        has_output_bias=False,
        has_ffn_bias=False,
        has_qk_norm=False,
        layers=(Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=128)),),
    ),
    ceilings=Ceilings(read_bytes_per_s=1e10, fp32_flop_per_s=1e11, reference_s=2e-4),
    times=(ROW,),
    wholes=(WHOLE,),
    memory=(MEMORY,),
)


def _written(folder: Path, change: dict) -> Path:
    path = folder / "profile.json"
    write_profile(PROFILE, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return path


def test_a_profile_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_profile(PROFILE, tmp_path / "profile.json")
    assert read_profile(tmp_path / "profile.json") == PROFILE


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"temperature_c": 40}, "temperature_c"),
        ({"num_threads": "1"}, "num_threads"),
        ({"ceilings": {"read_bytes_per_s": 1e10}}, "fp32_flop_per_s"),
    ],
)
def test_what_no_profile_holds_is_refused_by_name(tmp_path: Path, change: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        read_profile(_written(tmp_path, change))


def test_a_time_outside_its_interval_is_refused(tmp_path: Path) -> None:
    row = json.loads(_written(tmp_path, {}).read_text())["times"][0]
    with pytest.raises(InputError, match="low_s <= time_s"):
        read_profile(_written(tmp_path, {"times": [row | {"time_s": 9e-5}]}))


@pytest.mark.parametrize(
    ("rows", "change"),
    [
        ("times", {"time_s": float("nan")}),
        ("times", {"low_s": -1e-5}),
        ("times", {"high_s": float("inf")}),
        ("wholes", {"time_s": float("nan")}),
        ("wholes", {"low_s": float("nan")}),
        ("wholes", {"high_s": float("inf")}),
        ("wholes", {"low_s": -1e-4}),
        ("wholes", {"time_s": 0.0, "low_s": 0.0}),
        ("wholes", {"time_s": 9e-4}),
        ("memory", {"peak_bytes": 0}),
        ("memory", {"exact_bytes": -1}),
    ],
)
def test_a_row_with_a_figure_that_cannot_be_is_refused(tmp_path: Path, rows: str, change: dict) -> None:
    row = json.loads(_written(tmp_path, {}).read_text())[rows][0]
    with pytest.raises(InputError, match=next(iter(change))):
        read_profile(_written(tmp_path, {rows: [row | change]}))


@pytest.mark.parametrize("figure", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["read_bytes_per_s", "fp32_flop_per_s", "reference_s"])
def test_a_ceiling_that_cannot_be_is_refused(tmp_path: Path, name: str, figure: float) -> None:
    ceilings = json.loads(_written(tmp_path, {}).read_text())["ceilings"]
    with pytest.raises(InputError, match="finite ceilings above 0"):
        read_profile(_written(tmp_path, {"ceilings": ceilings | {name: figure}}))


def test_power_is_kept_where_it_is_known(tmp_path: Path) -> None:
    write_profile(replace(PROFILE, power=POWER), tmp_path / "profile.json")
    assert read_profile(tmp_path / "profile.json").power == POWER


def test_a_profile_from_before_power_was_kept_is_read(tmp_path: Path) -> None:
    data = json.loads(_written(tmp_path, {}).read_text())
    assert data.pop("power") is None
    (tmp_path / "profile.json").write_text(json.dumps(data))
    assert read_profile(tmp_path / "profile.json") == PROFILE


@pytest.mark.parametrize(
    "change",
    [
        {"power_w": 0.0, "low_w": 0.0},
        {"low_w": 0.0},
        {"low_w": -1.0},
        {"power_w": 54.0},
        {"power_w": 71.0},
        {"high_w": float("inf")},
        {"power_w": float("nan")},
        {"num_samples": 0},
        {"power_w": "60"},
        {"watts": 60.0},
    ],
)
def test_a_power_that_cannot_be_is_refused(tmp_path: Path, change: dict) -> None:
    row = json.loads(_written(tmp_path, {"power": to_data(POWER)}).read_text())["power"]
    with pytest.raises(InputError, match=r"power|low_w <= power_w|num_samples > 0"):
        read_profile(_written(tmp_path, {"power": row | change}))


def test_a_part_that_takes_no_measurable_time_is_no_mistake() -> None:
    assert replace(ROW, time_s=0.0, low_s=0.0).time_s == 0


def test_an_unknown_name_lists_those_that_ship(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_profile(tmp_path / "no-such-device")
    assert all(name in str(error.value) for name in shipped_profiles())


@pytest.mark.parametrize("name", shipped_profiles())
def test_a_shipped_profile_is_read_by_its_name_which_is_its_device(name: str) -> None:
    profile = read_profile(name)
    assert profile.name == profile.device.name == name
    assert profile.times and profile.wholes and profile.memory
    assert all(row.origin == "measured" and row.num_samples >= 30 for row in profile.times)


def test_some_profile_ships() -> None:
    assert shipped_profiles()


def test_another_machine_is_told_apart() -> None:
    other = replace(DEVICE, num_cores=4)
    with pytest.raises(InputError, match="4 cores"):
        check_is_this_machine(PROFILE, other, PROFILE.software)


def test_another_version_of_the_runtime_is_refused() -> None:
    with pytest.raises(InputError, match=r"1\.31\.0"):
        check_is_this_machine(PROFILE, DEVICE, {"onnxruntime": "1.31.0"})


def test_the_machine_it_was_measured_on_is_accepted() -> None:
    check_is_this_machine(PROFILE, DEVICE, PROFILE.software | {"kernel": "another"})


def test_memory_that_the_kernel_takes_changes_no_machine() -> None:
    assert replace(DEVICE, memory_bytes=DEVICE.memory_bytes - 2**20).digest == DEVICE.digest
    assert replace(DEVICE, memory_bytes=DEVICE.memory_bytes // 2).digest != DEVICE.digest


def test_a_name_is_fit_for_a_file() -> None:
    assert DEVICE.name == f"made-up-9000-2c-{DEVICE.digest[:6]}"
