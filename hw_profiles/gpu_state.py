"""How an NVIDIA GPU is at a moment: its clock, its temperature, and what holds the clock down.

``nvidia-smi --query-gpu`` tells. Older drivers know the reasons by another name, which newer ones still answer to.
"""

from dataclasses import dataclass

from blockwright.hw_profiles.machine import Machine, this_machine

_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_THROTTLES = {
    0x04: "power_cap",
    0x08: "hardware_slowdown",
    0x20: "thermal_software",
    0x40: "thermal_hardware",
    0x80: "power_brake",
}
"""Bits of nvml.h's nvmlClocksEventReasons; those left out, such as being idle, are no fault."""
_MHZ, _MIB = 1e6, 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """What the driver tells of a GPU now; None is what it does not tell."""

    sm_hz: float | None
    celsius: float | None
    used_bytes: int | None
    """By all processes, contexts and graphs included."""
    throttles: tuple[str, ...]
    """What holds the clock down."""


def gpu_state(machine: Machine | None = None, index: int = 0) -> GpuState | None:
    """The state of one GPU.

    Args:
        machine: to ask; this one where none is given.
        index: of the GPU, as the driver counts them.

    Returns:
        None where there is no driver or no such GPU.
    """
    machine = machine or this_machine()
    for reasons in _REASONS:
        asked = f"clocks.sm,temperature.gpu,memory.used,{reasons}"
        answer = machine.run(f"nvidia-smi --query-gpu={asked} --format=csv,noheader,nounits --id={index}")
        cells = [cell.strip() for cell in (answer or "").split(",")]
        if len(cells) == 4:
            return _state(cells)
    return None


def _state(cells: list[str]) -> GpuState:
    clock, celsius, used = (_number(cell) for cell in cells[:3])
    return GpuState(
        sm_hz=None if clock is None else clock * _MHZ,
        celsius=celsius,
        used_bytes=None if used is None else int(used * _MIB),
        throttles=_throttles(cells[3]),
    )


def _throttles(cell: str) -> tuple[str, ...]:
    try:
        mask = int(cell, 16)
    except ValueError:
        return ()
    return tuple(name for bit, name in _THROTTLES.items() if mask & bit)


def _number(cell: str) -> float | None:
    """The driver writes ``[N/A]`` and the like for what it does not tell."""
    try:
        return float(cell)
    except ValueError:
        return None
