"""Profiles in memory: figures that can be, kept to the machine and the versions they were measured with."""

import itertools
from dataclasses import fields, replace
from typing import Any

import pytest

from blockwright.compile import cpu_library
from blockwright.cost import ORIGINS
from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.hw_profiles.device import OPERATORS, OPERATORS_SWITCH, RUNTIMES_OWN, Device, software_digest
from blockwright.hw_profiles.folder import measured_profiles, read_profile, shipped_profiles
from blockwright.hw_profiles.profile import OperatorRow, check_is_this_machine, parent_of
from blockwright.hw_profiles.provenance import AccuracyRow, Coverage, Method
from blockwright.profiler.clock import Effort

DEVICE = Device(
    vendor="GenuineMade",
    model="Made-up(R) CPU 9000 @ 2.0GHz",
    architecture="x86_64",
    num_cores=2,
    memory_bytes=24 * 2**30,
    features=("avx2",),
)
SHIPPED = read_profile(shipped_profiles()[0])
LEAST_CHILDREN = 12
"""For each format, that a profile is tried on before it ships."""
PROFILE = replace(SHIPPED, device=DEVICE, software={"onnxruntime": "1.30.0"})
FIGURE = Figure(value=2.0, low=1.0, high=3.0, origin="measured", source="a test")
COVERAGE = Coverage(status="complete", asked=3, done=3, failed=0, started=None, ended="2026-01-01", wall_s=None)
ACCURACY = AccuracyRow(
    quantity="time_per_token",
    format="fp32",
    phase="decode",
    num_held_out=8,
    mean_error=0.02,
    median_error=0.015,
    p90_error=0.04,
    worst_error=0.05,
    bias=-0.01,
    kendall_tau=0.9,
    interval_coverage=0.875,
)


@pytest.mark.parametrize("name", measured_profiles())
def test_a_shipped_profile_is_read_by_its_name_which_is_its_device(name: str) -> None:
    profile = read_profile(name)
    assert profile.name == profile.device.name == name
    assert profile.times and profile.wholes and profile.memory
    assert all(row.origin == "measured" and row.num_samples >= Effort().min_turns for row in profile.times)


@pytest.mark.parametrize("name", measured_profiles())
def test_what_a_shipped_profile_tells_was_measured_and_tried(name: str) -> None:
    profile = read_profile(name)
    ceilings = profile.ceilings
    figures = [getattr(ceilings, field.name) for field in fields(ceilings)]
    figures = [each for each in (*figures, *ceilings.flop_per_s.values()) if isinstance(each, Figure)]
    assert ceilings.read_bytes_per_s in figures and {figure.origin for figure in figures} == {"measured"}
    timed = {row.format for row in profile.times}
    assert timed <= ceilings.flop_per_s.keys() and "fp32" in timed
    tried = [(row.quantity, row.format) for row in profile.accuracy]
    assert sorted(tried) == sorted(itertools.product(("time_per_token", "time_to_first_token", "memory"), timed))
    assert all(row.num_held_out >= LEAST_CHILDREN for row in profile.accuracy)


def test_another_machine_is_told_apart() -> None:
    with pytest.raises(InputError, match="4 cores"):
        check_is_this_machine(PROFILE, replace(DEVICE, num_cores=4), PROFILE.software)


def test_another_version_of_the_runtime_is_refused() -> None:
    with pytest.raises(InputError, match=r"1\.31\.0"):
        check_is_this_machine(PROFILE, DEVICE, {"onnxruntime": "1.31.0"})


def test_the_machine_it_was_measured_on_is_accepted() -> None:
    check_is_this_machine(PROFILE, DEVICE, PROFILE.software | {"kernel": "another"})


def test_a_profile_of_other_operators_is_refused_and_one_that_names_none_is_of_the_runtimes() -> None:
    unnamed = {name: version for name, version in PROFILE.software.items() if name != OPERATORS}
    plain, ours = unnamed | {OPERATORS: "onnxruntime"}, unnamed | {OPERATORS: "blockwright 7"}
    for measured, here in ((unnamed, plain), (plain, unnamed), (ours, ours)):
        check_is_this_machine(replace(PROFILE, software=measured), DEVICE, here)
    for measured, here in ((unnamed, ours), (ours, plain), (ours, unnamed | {OPERATORS: "blockwright 8"})):
        with pytest.raises(InputError, match=OPERATORS):
            check_is_this_machine(replace(PROFILE, software=measured), DEVICE, here)


@pytest.mark.parametrize(
    ("measured", "here", "remedy"),
    [
        (RUNTIMES_OWN, "blockwright 1", "Set BLOCKWRIGHT_CPU_OPERATORS=onnxruntime"),
        ("blockwright 1", RUNTIMES_OWN, "install a C compiler"),
        ("blockwright 1", "blockwright 2", "profile again"),
    ],
)
def test_who_has_a_profile_of_other_operators_is_told_how_to_run_those(measured: str, here: str, remedy: str) -> None:
    """A kit measures the runtime's alone, so another kit would be refused as the first one was."""
    profile = replace(PROFILE, software=PROFILE.software | {OPERATORS: measured})
    with pytest.raises(InputError) as caught:
        check_is_this_machine(profile, DEVICE, PROFILE.software | {OPERATORS: here})
    assert remedy in caught.value.remedy and "rofile again" in caught.value.remedy


def test_the_variable_that_chooses_operators_has_one_name() -> None:
    assert (OPERATORS_SWITCH, RUNTIMES_OWN) == (cpu_library.SWITCH, cpu_library.RUNTIMES_OWN)


def test_a_profile_without_times_of_onnx_runtime_may_be_of_any_operators() -> None:
    elsewhere = [replace(row, backend="torch") for row in PROFILE.times]
    profile = replace(PROFILE, times=tuple(elsewhere), wholes=(), memory=(), operators=())
    ours = PROFILE.software | {OPERATORS: "blockwright 1"}
    check_is_this_machine(profile, DEVICE, ours)
    with pytest.raises(InputError, match=OPERATORS):
        check_is_this_machine(replace(profile, times=PROFILE.times[:1]), DEVICE, ours)


def test_a_profile_of_a_device_alone_has_no_parent_to_give() -> None:
    assert parent_of(SHIPPED) == SHIPPED.model
    with pytest.raises(InputError, match="of a device, not of a parent") as caught:
        parent_of(replace(SHIPPED, model=None))
    assert "--for PARENT" in caught.value.remedy


def test_versions_have_one_digest_whatever_their_order() -> None:
    assert software_digest({"a": "1", "b": "2"}) == software_digest({"b": "2", "a": "1"})
    assert software_digest({"a": "1"}) != software_digest({"a": "2"})


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_figure_may_be_known_in_any_way(origin: Any) -> None:
    assert replace(FIGURE, origin=origin).origin == origin


@pytest.mark.parametrize(
    "change",
    [{"value": 0.5}, {"value": 4.0}, {"low": 0.0}, {"high": float("inf")}, {"value": float("nan")}, {"source": ""}],
)
def test_a_figure_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"low <= value|a source"):
        replace(FIGURE, **change)


@pytest.mark.parametrize("change", [{"flop_per_s": {}}, {"num_units": 0}, {"cache_bytes": -1}, {"reference_s": 0.0}])
def test_ceilings_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a rate of products|above 0"):
        replace(Ceilings(read_bytes_per_s=FIGURE, flop_per_s={"fp32": FIGURE}, launch_s=FIGURE), **change)


@pytest.mark.parametrize("change", [{"done": 2}, {"status": "partial"}, {"failed": 1}, {"asked": -1}, {"wall_s": -1.0}])
def test_coverage_adds_up(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(COVERAGE, **change)
    assert replace(COVERAGE, status="partial", done=2, failed=1).failed == 1


@pytest.mark.parametrize(
    "change",
    [
        {"num_held_out": 0},
        {"median_error": 0.06},
        {"mean_error": float("nan")},
        {"bias": 0.03},
        {"kendall_tau": 1.1},
        {"interval_coverage": 1.1},
    ],
)
def test_an_accuracy_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(ACCURACY, **change)


def test_a_measurement_takes_some_time() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Method(clock="wall", warm_up="none", outlier_rule="none", seconds=0.0)


def test_an_operator_that_takes_no_time_is_refused_but_a_part_is_no_mistake() -> None:
    times: dict[str, Any] = {"time_s": 0.0, "low_s": 0.0, "high_s": 1.0, "num_samples": 3, "num_rejected": 0}
    with pytest.raises(ValueError, match="time_s > 0"):
        OperatorRow(backend="onnxruntime", kind="elementwise", fields={"num_values": 1}, origin="measured", **times)
    assert replace(SHIPPED.times[0], **times).time_s == 0  # a difference of two times


def test_memory_that_the_kernel_takes_changes_no_machine() -> None:
    assert replace(DEVICE, memory_bytes=DEVICE.memory_bytes - 2**20).digest == DEVICE.digest
    assert replace(DEVICE, memory_bytes=DEVICE.memory_bytes // 2).digest != DEVICE.digest


def test_a_name_is_fit_for_a_file() -> None:
    assert DEVICE.name == f"made-up-9000-2c-{DEVICE.digest[:6]}"


def test_another_power_mode_is_another_device() -> None:
    assert replace(DEVICE, power_mode="15W").digest != replace(DEVICE, power_mode="25W").digest != DEVICE.digest
