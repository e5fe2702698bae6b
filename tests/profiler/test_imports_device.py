"""A file's device by its name, against the profile's that it is read in for."""

import pytest

from blockwright.errors import InputError
from blockwright.hw_profiles.folder import read_profile
from blockwright.profiler.imports_device import check_device


@pytest.mark.parametrize(
    ("told", "into"),
    [
        ("NVIDIA H100 80GB HBM3", "h100_sxm"),
        ("NVIDIA H100 PCIe", "h100_pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100_sxm"),
        ("NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("Intel(R) UHD Graphics, NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("Orin (nvgpu)", "jetson_agx_orin"),
        ("Apple M2", "apple_m2"),
        ("Cortex-A76", "raspberry_pi_5"),
        ("Intel(R) N100", "intel_n100"),
        ("CPU", "raspberry_pi_5"),
        (None, "h100_sxm"),
    ],
)
def test_a_files_device_is_known_by_its_name(told: str | None, into: str) -> None:
    check_device(told, read_profile(into).device, "bench.json")


@pytest.mark.parametrize(
    ("told", "into"),
    [
        ("NVIDIA H100 80GB HBM3", "h100_pcie"),
        ("NVIDIA H100 PCIe", "h100_sxm"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx_4090"),
        ("NVIDIA GeForce RTX 5090", "rtx_4090"),
        ("Apple M2 Max", "apple_m2"),
        ("AMD Ryzen 7 7800X3D 8-Core Processor", "rtx_4090"),
        ("Thor", "jetson_agx_orin"),
    ],
)
def test_another_device_is_refused_and_both_are_named(told: str, into: str) -> None:
    device = read_profile(into).device
    with pytest.raises(InputError, match="--into") as error:
        check_device(told, device, "bench.json")
    assert told in str(error.value) and device.model in str(error.value)
