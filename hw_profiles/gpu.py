"""NVIDIA GPUs and how they are, as ``nvidia-smi --query-gpu`` tells. Identifiers of a single card are not asked for."""

from blockwright.hw_profiles.conditions import Conditions
from blockwright.hw_profiles.device import Device
from blockwright.hw_profiles.machine import Machine, this_machine

_ASKED = ("name", "compute_cap", "memory.total", "driver_version", "power.limit", "clocks.max.sm", "clocks.sm")
_COMMAND = f"nvidia-smi --query-gpu={','.join(_ASKED)} --format=csv,noheader,nounits"
_NOT_TOLD = ("[N/A]", "N/A", "[Not Supported]", "[Unknown Error]", "")
_MHZ, _MIB = 1e6, 2**20


def nvidia_gpus(machine: Machine | None = None) -> list[tuple[Device, Conditions, dict[str, str]]]:
    """Each GPU as a device, its clocks and limit of power, and the driver's version as software.

    Returns:
        Nothing where there is no GPU or no driver. A Jetson's GPU, whose memory is the processor's, is left out: the
        driver tells neither its memory nor its limits.
    """
    lines = ((machine or this_machine()).run(_COMMAND) or "").splitlines()
    facts = [_facts(line) for line in lines if line.count(",") == len(_ASKED) - 1]
    return [_gpu(each) for each in facts if each.keys() >= {"name", "compute_cap", "memory.total"}]


def _facts(line: str) -> dict[str, str]:
    cells = zip(_ASKED, (cell.strip() for cell in line.split(",")), strict=True)
    return {name: cell for name, cell in cells if cell not in _NOT_TOLD}


def _gpu(facts: dict[str, str]) -> tuple[Device, Conditions, dict[str, str]]:
    def number(name: str, unit: float) -> float | None:
        return float(facts[name]) * unit if name in facts else None

    device = Device(
        vendor="NVIDIA",
        model=facts["name"],
        architecture="sm_" + facts["compute_cap"].replace(".", ""),
        num_cores=None,
        memory_bytes=int(facts["memory.total"]) * _MIB,
        features=(),
    )
    conditions = Conditions(
        max_hz=number("clocks.max.sm", _MHZ),
        current_hz=number("clocks.sm", _MHZ),
        power_limit_w=number("power.limit", 1.0),
    )
    return device, conditions, {"nvidia-driver": facts["driver_version"]} if "driver_version" in facts else {}
