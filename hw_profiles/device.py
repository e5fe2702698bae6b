"""Which machine this is: enough to tell it from others and to know what its figures hold for.

Serial numbers, host names and addresses are never read. What changes from minute to minute is in `conditions`.
"""

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from blockwright.hw_profiles.machine import Machine, this_machine

_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
_APPLE_FEATURES = {"asimd": "AdvSIMD", "asimddp": "arm.FEAT_DotProd", "i8mm": "arm.FEAT_I8MM"}
"""Linux' names and those of sysctl's hw.optional."""
OPERATORS = "cpu operators"
"""The key of software under which stands whose operators an engine's layers run on: ours and their version, or the
runtime's."""
RUNTIMES_OWN = "onnxruntime"
"""What stands there, or what is meant where nothing does, where they are the runtime's."""
OPERATORS_SWITCH = "BLOCKWRIGHT_CPU_OPERATORS"
"""The environment variable that chooses (`compile.cpu_library`, which this room may not know)."""
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch", "transformers")
_ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd04"): "Cortex-A35",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x4e", "0x004"): "Carmel",
}
"""By implementer and part, as util-linux' lscpu names them (sys-utils/lscpu-arm.c)."""
_VENDORS = {"0x41": "ARM", "0x4e": "NVIDIA"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a machine is."""

    vendor: str
    model: str
    architecture: str
    num_cores: int | None
    """Cores that this process may use; None for a GPU whose driver does not tell."""
    memory_bytes: int
    features: tuple[str, ...]
    """Instructions that matrix kernels look for."""
    board: str | None = None
    """What the processor is soldered to, where that has a name: ``Raspberry Pi 5 Model B Rev 1.0``."""
    power_mode: str | None = None
    """A Jetson's budget of power, which decides its clocks: ``15W``, ``MAXN``."""

    @property
    def compute_capability(self) -> str | None:
        """Of an NVIDIA GPU, as compilers write it without a line: ``sm87``; None of others."""
        told = (word for word in (self.architecture, *self.features) if re.fullmatch(r"sm_\d{2,3}", word))
        return next(told, "").replace("_", "") or None

    @property
    def name(self) -> str:
        """A name fit for files: ``amd-epyc-2c-1a2b3c``."""
        words = re.sub(r"\(.*?\)|@.*|cpu|processor", " ", (self.board or self.model).lower())
        slug = "-".join(re.findall(r"[a-z0-9]+", words)) or self.architecture
        cores = [] if self.num_cores is None else [f"{self.num_cores}c"]
        return "-".join([slug, *cores, self.digest[:6]])

    @property
    def digest(self) -> str:
        """The same for machines of one kind. Memory counts in whole GiB, for kernels take some."""
        known = {name: value for name, value in asdict(self).items() if value is not None or name == "num_cores"}
        facts = known | {"memory_bytes": round(self.memory_bytes / 2**30)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def this_device(machine: Machine | None = None) -> Device:
    """The processor and its memory, of the machine that this runs on or of another one.

    Raises:
        ValueError: the machine does not tell how much memory it has.
    """
    machine = machine or this_machine()
    return _apple_device(machine) if machine.system == "Darwin" else _linux_device(machine)


def installed_software() -> dict[str, str]:
    """Versions of what decides how fast things run."""
    versions = {"python": platform.python_version(), "kernel": platform.release()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def software_digest(software: Mapping[str, str]) -> str:
    """A short name for a set of versions: rows that carry different ones must not be mixed."""
    return hashlib.sha256(json.dumps(software, sort_keys=True).encode()).hexdigest()[:12]


def cache_bytes(machine: Machine | None = None) -> int | None:
    """The size of the last level of cache that a core sees; None where the system does not tell."""
    machine = machine or this_machine()
    if machine.system == "Darwin":
        size = machine.run("sysctl -n hw.perflevel0.l2cachesize")
        return None if size is None else int(size)
    folders = [f"/sys/devices/system/cpu/cpu0/cache/index{index}" for index in range(8)]
    sizes = [(int(machine.read(f"{folder}/level") or 0), machine.read(f"{folder}/size")) for folder in folders]
    last = max(((level, size) for level, size in sizes if size), default=None)
    return None if last is None else _bytes_of(last[1])


def _linux_device(machine: Machine) -> Device:
    facts, num_processors = _cpu_facts(machine)
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    implementer = facts.get("CPU implementer", "")
    core = _ARM_CORES.get((implementer, facts.get("CPU part", "")))
    memory = re.search(r"MemTotal:\s+(\d+) kB", machine.read("/proc/meminfo") or "")
    if memory is None:
        raise ValueError("/proc/meminfo says nothing of MemTotal")
    mode = re.search(r"NV Power Mode: (\S+)", machine.run("nvpmodel -q") or "") if _is_jetson(machine) else None
    return Device(
        vendor=facts.get("vendor_id") or _VENDORS.get(implementer, implementer) or machine.system,
        model=facts.get("model name") or core or machine.architecture,
        architecture=machine.architecture,
        num_cores=machine.num_usable_cores or num_processors or 1,
        memory_bytes=1024 * int(memory[1]),
        features=tuple(name for name in _FEATURES if name in flags),
        board=machine.read("/proc/device-tree/model"),
        power_mode=None if mode is None else mode[1],
    )


def _is_jetson(machine: Machine) -> bool:
    return "tegra" in (machine.read("/proc/device-tree/compatible") or "")


def _apple_device(machine: Machine) -> Device:
    def ask(name: str) -> str:
        return machine.run(f"sysctl -n {name}") or ""

    if not ask("hw.memsize"):
        raise ValueError("sysctl says nothing of hw.memsize")
    return Device(
        vendor="Apple",
        model=ask("machdep.cpu.brand_string") or ask("hw.model"),
        architecture=machine.architecture,
        num_cores=machine.num_usable_cores or int(ask("hw.physicalcpu") or 1),
        memory_bytes=int(ask("hw.memsize")),
        features=tuple(name for name, word in _APPLE_FEATURES.items() if ask(f"hw.optional.{word}") == "1"),
        board=ask("hw.model") or None,
    )


def _cpu_facts(machine: Machine) -> tuple[dict[str, str], int]:
    """What /proc/cpuinfo says of the first processor, and how many there are."""
    text = machine.read("/proc/cpuinfo") or ""
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}, len(re.findall(r"^processor\s*:", text, re.M))


def _bytes_of(size: str) -> int:
    """``32768K``, ``8M``."""
    number, unit = re.fullmatch(r"(\d+)([KMG]?)", size).groups()  # type: ignore[union-attr]
    return int(number) * 1024 ** " KMG".index(unit or " ")
