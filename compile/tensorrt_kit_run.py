"""Builds the engine of a kit on the device that is to run it. Needs Python 3.10 and the tensorrt package, nothing else.

    python3 build.py [--out engine] [--plan model.plan --version 10.15.1]

TensorRT builds for the GPU of this device. What was parsed is held against the model, and the plan's size against its
weights, for TensorRT drops some things without an error. With --plan nothing is built: a plan that trtexec made
(sh build.sh) is taken in, of the version of TensorRT that is named.

`blockwright generate` opens the folder that comes out, on such a device and with that version of TensorRT, where Python
is 3.11 or later. It cannot with JetPack 6, which has 3.10: there the plan runs from a program of your own. Its inputs
and outputs are named in Blockwright's repository, in compile/decoder.py and compile/decomposed.py.
"""

import argparse
import ctypes
import hashlib
import json
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if sys.version_info < (3, 10):  # noqa: UP036 — a device's Python is not chosen by our package
    sys.exit(
        "error: Python 3.10 or later is needed, this is " + platform.python_version() + ". sh build.sh needs none."
    )
HERE = Path(__file__).resolve().parent
if (HERE / "kit.json").exists():
    sys.path.insert(0, str(HERE))

try:
    from blockwright.compile.replaced import check_may_be_replaced
    from blockwright.compile.tensorrt_build import BuildRequest, TokenRange, build_apart
    from blockwright.compile.tensorrt_checks import Expected, check_plan_size
    from blockwright.compile.tensorrt_package import Package, PackageName, find_package
    from blockwright.errors import InputError
    from blockwright.files import new_folder, write_json
    from blockwright.strict import from_data, to_data
except ImportError as error:
    sys.exit(f"error: kit: got one without {error.name}; expected the kit as it was packed. Unzip it again.")

PLAN_FILE, ENGINE_FILE, TIMING_FILE = "model.plan", "engine.json", "timing.cache"
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of CUDA's driver interface."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """What kit.json says, but for what is known of the engine before it is built."""

    schema_version: Literal[1]
    capabilities: tuple[str, ...] | None
    """As ``sm86``, for TensorRT-RTX; None for the GPU at hand."""
    expected: Expected
    int4_bytes: int
    profiles: dict[PackageName, tuple[TokenRange, ...]]
    digests: dict[str, str]
    """Of all other files."""


def main(argv: list[str] | None = None, kit: Path = HERE) -> int:
    """Builds, and says what became of it.

    Returns:
        0, or 2 where something has to be mended.
    """
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("engine"), help="the engine's folder (default: engine)")
    parser.add_argument("--plan", type=Path, help="take in this plan instead of building one")
    parser.add_argument("--version", help="of the TensorRT that made --plan")
    arguments = parser.parse_args(argv)
    try:
        build_kit(kit, arguments.out, arguments.plan, arguments.version)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build_kit(kit: Path, output: Path, plan: Path | None = None, version: str | None = None) -> None:
    """Writes the engine of a kit, whole or not at all.

    Args:
        kit: the unpacked kit.
        output: the engine's folder, a new one or an earlier engine's for TensorRT.
        plan: made by trtexec; None to build one.
        version: of the TensorRT that made it.

    Raises:
        InputError: the kit is incomplete or damaged, the folder is another's, there is no GPU or no TensorRT, or it
            refuses the network.
    """
    told, known = _read(kit)
    check_may_be_replaced(output, "tensorrt")
    if output.exists() and any(output.iterdir()) and not (output / ENGINE_FILE).exists():
        raise InputError("--out", got=f"{output}, with other things in it", expected="a new folder", remedy="Name one.")
    with new_folder(output) as folder:
        for name in (*known["files"], "tokenizer.json"):
            shutil.copyfile(kit / name, folder / name)
        built = _build(told, known, folder, output) if plan is None else _taken_in(plan, version, folder)
        plan_bytes, profiles = (folder / PLAN_FILE).stat().st_size, told.profiles[built["package"]]
        weight_bytes = sum(file["size_bytes"] for name, file in known["files"].items() if name != "model.onnx")
        check_plan_size(plan_bytes, weight_bytes, told.int4_bytes, len(profiles))
        engine: dict[str, Any] = known | built | {"weight_bytes": weight_bytes, "profiles": to_data(profiles)}
        plan_file = {"size_bytes": plan_bytes, "sha256": _sha256(folder / PLAN_FILE)}
        engine |= {
            "files": engine["files"] | {PLAN_FILE: plan_file},
            "versions": engine["versions"] | {"python": platform.python_version()},
        }
        write_json(folder / ENGINE_FILE, engine)
    gpus = ", ".join(engine["compute_capabilities"])
    print(f"{output}: for {gpus}, {plan_bytes / 1e6:.2f} MB, {engine['package']} {engine['package_version']}")


def device_capability() -> str | None:
    """Of the GPU at hand, as ``sm87``, asked of CUDA's driver; None without one."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, numbers = ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for number, attribute in zip(numbers, (_MAJOR, _MINOR), strict=True):
        if cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device):
            return None
    return f"sm{numbers[0].value}{numbers[1].value}"


def _build(told: Kit, known: dict[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    package = find_package(("tensorrt", "tensorrt_rtx"), known["form"], is_in_kit=True)
    request = BuildRequest(
        package=package.name,
        graph=str(folder / "model.onnx"),
        plan=str(folder / PLAN_FILE),
        capabilities=_capabilities(told.capabilities, package),
        profiles=told.profiles[package.name],
        most_sequences=known["most_sequences"],
        expected=told.expected,
        timing_cache=str(folder / TIMING_FILE) if package.name == "tensorrt" else None,
    )
    if request.timing_cache is not None and (output / TIMING_FILE).exists():
        shutil.copyfile(output / TIMING_FILE, folder / TIMING_FILE)
    built = build_apart(request, package)
    return {
        "package": package.name,
        "package_version": package.version,
        "compute_capabilities": list(request.capabilities),
        "census": to_data(built.census),
        "is_attention_decomposed": built.is_attention_decomposed,
        "build_s": built.build_s,
    }


def _capabilities(asked: tuple[str, ...] | None, package: Package) -> tuple[str, ...]:
    gpu = device_capability()
    if package.name == "tensorrt_rtx" and asked:
        return asked
    if gpu is None:
        raise InputError(
            "GPU",
            got="none that CUDA's driver tells of",
            expected=f"the GPU that {package.title} is to build for",
            remedy="Run this on the device, or pack the kit with --for and install TensorRT-RTX.",
        )
    return (gpu,)


def _taken_in(plan: Path, version: str | None, folder: Path) -> dict[str, Any]:
    gpu = device_capability()
    if version is None or gpu is None:
        raise InputError(
            "--version" if version is None else "GPU",
            got="none",
            expected="the version of the TensorRT that made the plan, and the GPU that it made it for",
            remedy="Name it, as trtexec prints it, on the device that the plan was made on.",
        )
    if not plan.is_file():
        raise InputError("--plan", got=str(plan), expected="a plan", remedy="Run sh build.sh first.")
    shutil.copyfile(plan, folder / PLAN_FILE)
    package = {"package": "tensorrt", "package_version": version, "compute_capabilities": [gpu]}
    return package | {"census": None, "is_attention_decomposed": None, "build_s": None}  # trtexec tells none of it


def _read(kit: Path) -> tuple[Kit, dict[str, Any]]:
    """What is to be done, and what is known of the engine; all files are held against their digests.

    Raises:
        InputError: something is missing, or was changed.
    """
    try:
        described = json.loads((kit / "kit.json").read_text())
        engine = described.pop("engine")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise _incomplete(f"{kit / 'kit.json'}, {error!r}") from error
    told = from_data(Kit, described, str(kit / "kit.json"))
    for name, digest in told.digests.items():
        if not (kit / name).is_file():
            raise _incomplete(f"no {name}")
        if _sha256(kit / name) != digest:
            raise _incomplete(f"a {name} that was changed or cut short")
    if not isinstance(engine, dict) or not engine.keys() >= {"form", "files", "most_sequences", "versions"}:
        raise _incomplete(f"{kit / 'kit.json'}, which says too little of the engine")
    return told, engine


def _incomplete(got: str) -> InputError:
    return InputError("kit", got=got, expected="the kit as it was packed", remedy="Unzip it again, or copy it again.")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
