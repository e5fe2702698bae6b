"""How a machine was when it was measured: clocks, limits, and who else was at work. None is what it does not tell."""

import re
from dataclasses import dataclass

from blockwright.hw_profiles.machine import Machine, this_machine

_CLOCKS = "/sys/devices/system/cpu/cpu0/cpufreq"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What may make the same machine run at another speed on another day."""

    governor: str | None = None
    """What sets the clock: ``performance``, ``schedutil``."""
    min_hz: float | None = None
    max_hz: float | None = None
    current_hz: float | None = None
    is_virtual: bool | None = None
    """Whether other machines may share the cores."""
    quota_cores: float | None = None
    """Cores' worth of time that a container may take; None for no limit."""
    load: float | None = None
    """Processes that wanted to run, averaged over the minute before."""
    power_limit_w: float | None = None
    """Of a GPU, or of a CPU's package."""


def conditions_now(machine: Machine | None = None) -> Conditions:
    """How a machine's processor is at this moment."""
    machine = machine or this_machine()
    load = (machine.read("/proc/loadavg") or machine.run("sysctl -n vm.loadavg") or "").strip("{ }").split()
    limit_uw = machine.read("/sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw")
    return Conditions(
        governor=machine.read(f"{_CLOCKS}/scaling_governor"),
        min_hz=_clock_hz(machine, "cpuinfo_min_freq"),
        max_hz=_clock_hz(machine, "cpuinfo_max_freq"),
        current_hz=_clock_hz(machine, "scaling_cur_freq"),
        is_virtual=_is_virtual(machine),
        quota_cores=_quota_cores(machine),
        load=float(load[0]) if load else None,
        power_limit_w=None if limit_uw is None else int(limit_uw) / 1e6,
    )


def clock_hz(machine: Machine | None = None) -> float | None:
    """The clock of the fastest processor at this moment; None where the system does not tell."""
    machine = machine or this_machine()
    folders = [f"/sys/devices/system/cpu/cpu{index}/cpufreq" for index in range(machine.num_usable_cores or 1)]
    told = [1000.0 * int(clock) for folder in folders if (clock := machine.read(f"{folder}/scaling_cur_freq"))]
    if not told:
        megahertz = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", machine.read("/proc/cpuinfo") or "", re.M)
        told = [1e6 * float(each) for each in megahertz]
    return max(told, default=None)


def _clock_hz(machine: Machine, name: str) -> float | None:
    """Linux tells kilohertz."""
    clock = machine.read(f"{_CLOCKS}/{name}")
    return None if clock is None else 1000.0 * int(clock)


def _is_virtual(machine: Machine) -> bool | None:
    """Under a hypervisor an x86 says so among its flags and an ARM in its device tree; Apple's kernel knows as well."""
    if machine.system == "Darwin":
        answer = machine.run("sysctl -n kern.hv_vmm_present")
        return None if answer is None else answer == "1"
    flags = re.search(r"^flags\s*:(.*)$", machine.read("/proc/cpuinfo") or "", re.M)
    if flags is not None:
        return "hypervisor" in flags[1].split()
    tree = machine.read("/proc/device-tree/hypervisor/compatible")
    return True if tree is not None else False if machine.read("/proc/device-tree/model") is not None else None


def _quota_cores(machine: Machine) -> float | None:
    """cgroup 2 tells ``quota period`` in one file, cgroup 1 in two; "max" and -1 are no limit."""
    words = (machine.read("/sys/fs/cgroup/cpu.max") or "").split()
    if not words:
        names = ("cfs_quota_us", "cfs_period_us")
        words = [machine.read(f"/sys/fs/cgroup/cpu/cpu.{name}") or "max" for name in names]
    quota, period = words
    return None if quota in ("max", "-1") else int(quota) / int(period)
