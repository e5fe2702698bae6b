"""Measures what a kit holds, on the device that it was brought to: Python 3.10, numpy and onnxruntime are enough.

  python run.py                     measure everything, into results/; run again, it goes on, and measures what failed
                                    or was changed once more; results of another kit or other settings are put aside
  python run.py --seconds 1         longer, for a device that is not calm
  python run.py --threads 4         with so many threads (the clock is then the wall's)

Bring the folder results/ back, and:  blockwright profile import results/
"""

import argparse
import hashlib
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from blockwright.profiler.clock import Effort, time_in_turn  # a kit brings this one module along

_CLOCKS = "/sys/devices/system/cpu/cpu0/cpufreq/"
_CACHE = "/sys/devices/system/cpu/cpu0/cache/index"
SUMS = "SHA256SUMS"
"""The digests of the results, which `profile import` compares; sha256sum -c checks them too."""
FILES = (
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/loadavg",
    "/proc/device-tree/model",
    "/proc/device-tree/compatible",
    "/proc/device-tree/hypervisor/compatible",
    "/sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw",
    "/sys/fs/cgroup/cpu.max",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    "/sys/fs/cgroup/cpu/cpu.cfs_period_us",
    *(_CLOCKS + name for name in ("scaling_governor", "cpuinfo_min_freq", "cpuinfo_max_freq", "scaling_cur_freq")),
    *(f"{_CACHE}{index}/{name}" for index in range(8) for name in ("level", "size")),
)
_SYSCTL = (
    *("hw.memsize", "hw.model", "hw.physicalcpu", "hw.perflevel0.l2cachesize", "machdep.cpu.brand_string"),
    *("vm.loadavg", "kern.hv_vmm_present"),
    *(f"hw.optional.{word}" for word in ("neon", "AdvSIMD", "arm.FEAT_DotProd", "arm.FEAT_I8MM", "arm.FEAT_BF16")),
)
COMMANDS = ("nvpmodel -q", *(f"sysctl -n {name}" for name in _SYSCTL))
"""What the device says of itself; the workstation reads its identity and its conditions from these."""

_SETTINGS = ("system", "architecture", "software", "threads", "seconds", "backend")
"""What must be the same of all cases of a folder."""


def main(arguments: list[str] | None = None, here: Path | None = None) -> int:
    """Runs the kit; 0 where everything was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder to bring back (default: results)")
    parser.add_argument("--seconds", type=float, default=0.25, help="to measure each thing for (default: 0.25)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime (default: 1)")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    here = here or Path(__file__).resolve().parent
    kit = json.loads((here / "cases.json").read_text())
    if asked.memory_of is not None:
        print(_peak_of(here, kit, asked.memory_of, asked.threads))
        return 0
    put_aside(asked, (here / "cases.json").read_bytes())
    asked.out.mkdir(parents=True, exist_ok=True)
    make_weights(here / "graphs", kit["weights"])
    sums = read_sums(asked.out)
    _put(asked.out / "cases.json", (here / "cases.json").read_bytes())
    if not _is_unchanged(asked.out / "device.json", sums):
        _write(asked.out / "device.json", described(asked))
    return run_cases(here, kit, asked)


def put_aside(asked: argparse.Namespace, cases: bytes) -> None:
    """Moves results that these would be mixed with out of the way: cases are told apart by their names alone."""
    if not any(asked.out.glob("case-*.json")):
        return
    sums, now = read_sums(asked.out), described(asked)
    if not _is_unchanged(asked.out / "cases.json", sums) or (asked.out / "cases.json").read_bytes() != cases:
        why = "another kit's"
    elif not _is_unchanged(asked.out / "device.json", sums):
        why = "without an unharmed device.json, which says how they were measured"
    else:
        then = json.loads((asked.out / "device.json").read_text())
        differ = [name for name in _SETTINGS if then.get(name) != now[name]]
        if not differ:
            return
        why = "of another device, software or setting: " + ", ".join(f"{name} {then.get(name)}" for name in differ)
    number = next(number for number in itertools.count(1) if not _aside(asked.out, number).exists())
    asked.out.rename(_aside(asked.out, number))
    print(f"{asked.out} held results {why}. They are in {_aside(asked.out, number)} now, and all is measured anew.")


def _aside(out: Path, number: int) -> Path:
    return out.resolve().with_name(f"{out.resolve().name}.before-{number}")


def run_cases(here: Path, kit: dict[str, Any], asked: argparse.Namespace) -> int:
    """Measures the cases that have no times yet; a failed one is written down and does not stop the others."""
    started, failed, measured, sums = time.time(), 0, 0, read_sums(asked.out)
    for number, case in enumerate(kit["cases"]):
        path = asked.out / f"case-{number:04d}.json"
        if _is_unchanged(path, sums) and "error" not in json.loads(path.read_text()):
            continue
        try:
            result = measure(here, case, asked)
        except Exception as error:  # whatever a device's runtime raises: it is told, and the next case is tried
            result, failed = {"error": f"{type(error).__name__}: {error}"}, failed + 1
            print(f"\n{case['name']}: {result['error']}", file=sys.stderr)
        ended = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        _write(path, {"name": case["name"], "ended": ended} | result)
        measured += 1
        left_s = (time.time() - started) / measured * (len(kit["cases"]) - number - 1)
        print(f"\r{number + 1}/{len(kit['cases'])}, about {left_s / 60:.0f} min left  ", end="", flush=True)
    print(f"\n{len(kit['cases'])} cases in {asked.out}, {failed} failed")
    return 1 if failed else 0


def measure(here: Path, case: dict[str, Any], asked: argparse.Namespace) -> dict[str, Any]:
    """Times the graphs of one case in turn, or takes the peak of memory in a process of its own."""
    if case["kind"] == "memory":
        return {"peaks_bytes": [peak_bytes(here, graph, asked.threads) for graph in case["graphs"]]}
    runs = [bound_run(here / "graphs", graph, asked.threads) for graph in case["graphs"]]
    effort = Effort(seconds=asked.seconds)
    derive = [np.array(weights) for weights in case["derive"]]
    timings = time_in_turn(runs, effort, asked.threads, derive=derive)
    fields = ("calm_s", "low_s", "high_s", "typical_s", "num_samples", "num_rejected", "clock")
    return {"timings": [{name: getattr(timing, name) for name in fields} for timing in timings]}


def bound_run(graphs: Path, graph: dict[str, Any], threads: int) -> Callable[[], None]:
    """A graph opened and bound to its buffers, once or several times over the same caches, which it writes in place."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    for key, value in graph["session"].items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(str(graphs / graph["file"]), options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    caches: dict[str, Any] = {}
    bindings: list[tuple[Any, dict[str, Any]]] = []
    for bound in graph["bindings"]:
        given = np.load(graphs / bound["given"]) if bound["given"] else {}
        values = {name: ort.OrtValue.ortvalue_from_numpy(given[name]) for name in given}
        for name, shape in bound["random"].items():
            if name not in caches:
                made = ort.OrtValue.ortvalue_from_numpy(generator.standard_normal(shape, dtype=np.float32))
                values[name] = made
                if name in bound["in_place"].values():
                    caches[name] = made
            else:
                values[name] = caches[name]
        binding = session.io_binding()
        for one in session.get_inputs():
            binding.bind_ortvalue_input(one.name, values[one.name])
        for one in session.get_outputs():
            binding.bind_ortvalue_output(one.name, values[bound["in_place"].get(one.name, one.name)])
        bindings.append((binding, values))  # the runtime itself keeps no hold on the buffers

    def run() -> None:
        for binding, _ in bindings:
            session.run_with_iobinding(binding)

    return run


def make_weights(graphs: Path, sizes: dict[str, int]) -> None:
    """Makes the files of random weights that the graphs point into, where they are not there yet."""
    generator = np.random.default_rng(0)
    for kind, size in sizes.items():
        path = graphs / f"{kind}.bin"
        if path.exists() and path.stat().st_size == size:
            continue
        print(f"making {size / 1e6:.0f} MB of random weights, {kind}")
        with open(f"{path}.partial", "wb") as file:
            for start in range(0, size, 1 << 26):
                num_bytes = min(1 << 26, size - start)
                if kind == "float32":
                    file.write((0.02 * generator.standard_normal(num_bytes // 4, dtype=np.float32)).tobytes())
                else:
                    file.write(generator.integers(0, 256, num_bytes, dtype=np.uint8).tobytes())
        os.replace(f"{path}.partial", path)


def readings() -> dict[str, str]:
    """What the system says of itself: texts of files and of commands, as they are; no serial numbers."""
    found: dict[str, str] = {}
    for file in FILES:
        try:
            text = Path(file).read_text(errors="replace").strip("\0\n ")
        except OSError:
            continue
        found[file] = "\n".join(line for line in text.splitlines() if not line.startswith("Serial"))
    for command in COMMANDS:
        try:
            done = subprocess.run(command.split(), check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        found[command] = done.stdout.strip()
    return found


def software() -> dict[str, str]:
    """Versions of what decides how fast things run."""
    import onnxruntime

    versions = {"python": platform.python_version(), "kernel": platform.release()}
    return versions | {"onnxruntime": onnxruntime.__version__}


def described(asked: argparse.Namespace) -> dict[str, Any]:
    """The device, its software, and what the measurements were asked for with."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "num_usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "readings": readings(),
        "software": software(),
        "threads": asked.threads,
        "seconds": asked.seconds,
        "backend": "onnxruntime",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    }


def peak_bytes(here: Path, graph: dict[str, Any], threads: int) -> int:
    """The peak of memory of one graph, in a process of its own."""
    command = [sys.executable, str(here / "run.py"), "--memory-of", graph["file"], "--threads", str(threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _peak_of(here: Path, kit: dict[str, Any], file: str, threads: int) -> int:
    """The peak that opening and running a graph adds to what the empty runtime takes."""
    graph = next(graph for case in kit["cases"] for graph in case["graphs"] if graph["file"] == file)
    bound_run(here / "graphs", kit["empty"], threads)()
    before = _peak_resident_bytes()
    bound_run(here / "graphs", graph, threads)()
    return _peak_resident_bytes() - before


def _peak_resident_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_sums(folder: Path) -> dict[str, str]:
    """The digests of what was written into a folder of results, by names; none where nothing was."""
    path = folder / SUMS
    lines = [line.split("  ", 1) for line in path.read_text().splitlines()] if path.exists() else []
    return {line[1]: line[0] for line in lines if len(line) == 2}


def _is_unchanged(path: Path, sums: dict[str, str]) -> bool:
    return path.exists() and sums.get(path.name) == hashlib.sha256(path.read_bytes()).hexdigest()


def _write(path: Path, data: dict[str, Any]) -> None:
    _put(path, json.dumps(data, indent=1).encode())


def _put(path: Path, content: bytes) -> None:
    """A file whole or not at all, and its digest beside it. A kill between the two makes it measured again."""
    _replace(path, content)
    sums = {**read_sums(path.parent), path.name: hashlib.sha256(content).hexdigest()}
    _replace(path.parent / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode())


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


if __name__ == "__main__":
    sys.exit(main())
