"""Which machine this is: enough to tell it from others and to know what its figures hold for."""

import hashlib
import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a machine is."""

    vendor: str
    model: str
    architecture: str
    num_cores: int
    """Cores that this process may use."""
    memory_bytes: int
    features: tuple[str, ...]
    """Instructions that matrix kernels look for."""

    @property
    def name(self) -> str:
        """A name fit for files: ``amd-epyc-2c-1a2b3c``."""
        words = re.sub(r"\(.*?\)|@.*|cpu|processor", " ", self.model.lower())
        slug = "-".join(re.findall(r"[a-z0-9]+", words)) or self.architecture
        return f"{slug}-{self.num_cores}c-{self.digest[:6]}"

    @property
    def digest(self) -> str:
        """The same for machines of one kind. Memory counts in whole GiB, for kernels take some."""
        facts = asdict(self) | {"memory_bytes": round(self.memory_bytes / 2**30)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def this_device() -> Device:
    """The machine that this runs on."""
    facts = _cpu_facts()
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    return Device(
        vendor=facts.get("vendor_id") or facts.get("CPU implementer") or platform.system(),
        model=facts.get("model name") or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        features=tuple(name for name in _FEATURES if name in flags),
    )


def installed_software() -> dict[str, str]:
    """Versions of what decides how fast things run."""
    versions = {"python": platform.python_version(), "kernel": platform.release()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _cpu_facts() -> dict[str, str]:
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return {}
    first = file.read_text().split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
