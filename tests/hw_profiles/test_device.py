"""Machines by what they say of themselves.

The texts are written after the kernel's and the makers' documentation: /proc/cpuinfo and cpufreq of Linux, the device
tree of Raspberry Pi OS and of NVIDIA's L4T, ``nvpmodel -q``, ``nvidia-smi --query-gpu``, and macOS' ``sysctl -n``.
"""

from dataclasses import replace

import pytest

from blockwright.hw_profiles.conditions import Conditions, clock_hz, conditions_now
from blockwright.hw_profiles.device import cache_bytes, this_device
from blockwright.hw_profiles.gpu import nvidia_gpus
from blockwright.hw_profiles.machine import Machine, this_machine

_CLOCKS = "/sys/devices/system/cpu/cpu0/cpufreq"
_CACHES = "/sys/devices/system/cpu/cpu0/cache"


def _machine(
    files: dict[str, str] | None = None,
    commands: dict[str, str] | None = None,
    *,
    system: str = "Linux",
    architecture: str = "aarch64",
    num_usable_cores: int | None = None,
) -> Machine:
    return Machine(
        system=system,
        architecture=architecture,
        num_usable_cores=num_usable_cores,
        read=(files or {}).get,
        run=(commands or {}).get,
    )


N100 = _machine(
    {
        "/proc/cpuinfo": "\n\n".join(
            f"processor\t: {core}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) N100\n"
            "cpu MHz\t\t: 2899.998\nflags\t\t: fpu sse4_2 avx2 avx_vnni sha_ni"
            for core in range(4)
        ),
        "/proc/meminfo": "MemTotal:       16165456 kB\nMemFree:          543210 kB\n",
        "/proc/loadavg": "0.52 0.48 0.40 1/312 4711",
        f"{_CLOCKS}/scaling_governor": "powersave",
        f"{_CLOCKS}/cpuinfo_min_freq": "700000",
        f"{_CLOCKS}/cpuinfo_max_freq": "3400000",
        f"{_CLOCKS}/scaling_cur_freq": "2899998",
        "/sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw": "6000000",
        "/sys/fs/cgroup/cpu.max": "150000 100000",
        f"{_CACHES}/index0/level": "1",
        f"{_CACHES}/index0/size": "32K",
        f"{_CACHES}/index3/level": "3",
        f"{_CACHES}/index3/size": "6144K",
    },
    architecture="x86_64",
)
_ARM_FEATURES = "fp asimd evtstrm aes crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
RASPBERRY_PI = _machine(
    {
        "/proc/cpuinfo": "\n\n".join(
            f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {_ARM_FEATURES}\nCPU implementer\t: 0x41\n"
            "CPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1"
            for core in range(4)
        )
        + "\n\nRevision\t: d04170\nSerial\t\t: 0123456789abcdef\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0",
        "/proc/meminfo": "MemTotal:        8245632 kB\n",
        "/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0",
        "/proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712",
        f"{_CLOCKS}/scaling_governor": "ondemand",
        f"{_CLOCKS}/cpuinfo_max_freq": "2400000",
    }
)
JETSON = _machine(
    {
        "/proc/cpuinfo": "\n\n".join(
            f"processor\t: {core}\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nFeatures\t: {_ARM_FEATURES}\n"
            "CPU implementer\t: 0x41\nCPU part\t: 0xd42"
            for core in range(6)
        ),
        "/proc/meminfo": "MemTotal:        7802536 kB\n",
        "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit",
        "/proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234",
    },
    {"nvpmodel -q": "NV Power Mode: 15W\n0"},
)
_SYSCTL = {
    "hw.memsize": "17179869184",
    "hw.model": "Mac14,2",
    "hw.physicalcpu": "8",
    "machdep.cpu.brand_string": "Apple M2",
    "hw.optional.AdvSIMD": "1",
    "hw.optional.arm.FEAT_DotProd": "1",
    "hw.optional.arm.FEAT_I8MM": "0",
    "hw.perflevel0.l2cachesize": "16777216",
    "kern.hv_vmm_present": "0",
    "vm.loadavg": "{ 1.77 1.86 1.91 }",
}
MAC = _machine({}, {f"sysctl -n {key}": value for key, value in _SYSCTL.items()}, system="Darwin", architecture="arm64")
_QUERY = (
    "nvidia-smi --query-gpu=name,compute_cap,memory.total,driver_version,power.limit,clocks.max.sm,clocks.sm"
    " --format=csv,noheader,nounits"
)


def test_an_x86_is_known_by_its_model_and_instructions() -> None:
    device = this_device(N100)
    assert (device.vendor, device.model, device.num_cores) == ("GenuineIntel", "Intel(R) N100", 4)
    assert device.features == ("avx2", "avx_vnni")
    assert device.memory_bytes == 16165456 * 1024
    assert device.name.startswith("intel-n100-4c-")


def test_a_raspberry_pi_is_known_by_its_board_and_core() -> None:
    device = this_device(RASPBERRY_PI)
    assert (device.vendor, device.model, device.num_cores) == ("ARM", "Cortex-A76", 4)
    assert device.board == "Raspberry Pi 5 Model B Rev 1.0" and device.power_mode is None
    assert device.features == ("asimd", "asimddp")
    assert device.name.startswith("raspberry-pi-5-model-b-rev-1-0-4c-")
    assert "0123456789abcdef" not in str(device), "a serial number is kept"


def test_a_jetson_is_known_by_its_power_mode_too() -> None:
    device = this_device(JETSON)
    assert (device.board, device.power_mode) == ("NVIDIA Jetson Orin Nano Developer Kit", "15W")
    other = this_device(replace(JETSON, run={"nvpmodel -q": "NV Power Mode: MAXN_SUPER\n2"}.get))
    assert other.power_mode == "MAXN_SUPER" and other.name != device.name
    assert this_device(replace(JETSON, run={}.get)).power_mode is None


def test_only_a_jetson_is_asked_for_its_power_mode() -> None:
    asked: list[str] = []
    this_device(replace(RASPBERRY_PI, run=asked.append))
    assert asked == []


def test_a_mac_is_known_by_sysctl() -> None:
    device = this_device(MAC)
    assert (device.vendor, device.model, device.num_cores) == ("Apple", "Apple M2", 8)
    assert device.features == ("asimd", "asimddp")
    assert (device.board, device.memory_bytes) == ("Mac14,2", 2**34)


def test_a_process_may_use_fewer_cores_than_there_are() -> None:
    assert this_device(replace(N100, num_usable_cores=2)).num_cores == 2


def test_a_machine_that_does_not_tell_its_memory_is_no_machine_without_any() -> None:
    with pytest.raises(ValueError, match="MemTotal"):
        this_device(_machine())
    with pytest.raises(ValueError, match=r"hw\.memsize"):
        this_device(_machine(system="Darwin"))


def test_the_last_cache_is_told_from_the_first() -> None:
    assert cache_bytes(N100) == 6 * 2**20
    assert cache_bytes(MAC) == 16 * 2**20
    assert cache_bytes(_machine()) is cache_bytes(_machine(system="Darwin")) is None
    megabytes = {f"{_CACHES}/index2/level": "2", f"{_CACHES}/index2/size": "2M"}
    assert cache_bytes(_machine(megabytes)) == 2 * 2**20


def test_clocks_limits_and_load_are_in_base_units() -> None:
    assert conditions_now(N100) == Conditions(
        governor="powersave",
        min_hz=7e8,
        max_hz=3.4e9,
        current_hz=2.899998e9,
        is_virtual=False,
        quota_cores=1.5,
        load=0.52,
        power_limit_w=6.0,
    )


def test_what_a_machine_does_not_tell_is_absent() -> None:
    assert conditions_now(_machine()) == Conditions()
    assert conditions_now(RASPBERRY_PI).min_hz is None
    assert conditions_now(MAC) == Conditions(is_virtual=False, load=1.77)


@pytest.mark.parametrize(
    ("files", "is_virtual"),
    [
        ({"/proc/cpuinfo": "processor : 0\nflags : fpu hypervisor lahf_lm"}, True),
        ({"/proc/cpuinfo": "processor : 0\nflags : fpu hypervisor_like"}, False),
        ({"/proc/device-tree/hypervisor/compatible": "linux,kvm"}, True),
        ({"/proc/device-tree/model": "Raspberry Pi 5"}, False),
        ({}, None),
    ],
)
def test_a_virtual_machine_is_told(files: dict[str, str], is_virtual: bool | None) -> None:
    assert conditions_now(_machine(files)).is_virtual is is_virtual


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"/sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"/sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 2.0),
    ],
)
def test_a_containers_share_is_in_cores(files: dict[str, str], cores: float | None) -> None:
    assert conditions_now(_machine(files)).quota_cores == cores


def test_gpus_are_read_from_what_the_driver_lists() -> None:
    listed = (
        "NVIDIA H200, 9.0, 143771, 570.86.15, 700.00, 1980, 345\nNVIDIA L4, 8.9, 23034, 570.86.15, [N/A], 2040, 210"
    )
    (first, conditions, software), (second, others, _) = nvidia_gpus(_machine({}, {_QUERY: listed}))
    assert (first.vendor, first.model, first.architecture) == ("NVIDIA", "NVIDIA H200", "sm_90")
    assert first.memory_bytes == 143771 * 2**20 and first.num_cores is None
    assert first.name == f"nvidia-h200-{first.digest[:6]}" != second.name
    assert conditions == Conditions(max_hz=1.98e9, current_hz=3.45e8, power_limit_w=700.0)
    assert others.power_limit_w is None
    assert software == {"nvidia-driver": "570.86.15"}


@pytest.mark.parametrize(
    "listed", [None, "", "No devices were found", "Orin (nvgpu), 8.7, [N/A], 540.4.0, [N/A], N/A, N/A"]
)
def test_no_gpu_is_made_up(listed: str | None) -> None:
    assert nvidia_gpus(_machine({}, {} if listed is None else {_QUERY: listed})) == []


def test_this_machine_can_be_asked() -> None:
    machine = this_machine()
    assert machine.read("/no/such/file") is None
    assert machine.run("no-such-command-anywhere --flag") is None
    assert machine.run("python3 -c exit(3)") is None
    assert machine.run("echo some words") == "some words"
    assert conditions_now().load is None or conditions_now().load >= 0  # type: ignore[operator]


def test_the_clock_is_the_fastest_processors_as_linux_or_the_processor_tells_it() -> None:
    def machine(files: dict[str, str]) -> Machine:
        return Machine(
            system="Linux", architecture="x86_64", num_usable_cores=2, read=files.get, run=lambda command: None
        )

    folder = "/sys/devices/system/cpu"
    told = {f"{folder}/cpu{n}/cpufreq/scaling_cur_freq": f"{800000 * (n + 1)}" for n in range(2)}
    assert clock_hz(machine(told)) == 1.6e9
    assert clock_hz(machine({"/proc/cpuinfo": "cpu MHz\t\t: 2250.5\ncpu MHz\t\t: 1800.0\n"})) == 2.2505e9
    assert clock_hz(machine({})) is None
