"""Measures what a kit holds, on the device that it was brought to: Python 3.10, numpy and onnxruntime are enough.

  python run.py                     measure everything, into results/; run again after a kill, it goes on
  python run.py --seconds 1         longer, for a device that is not calm
  python run.py --threads 4         with so many threads (the clock is then the wall's)
  python run.py --trtexec           build and time every graph with TensorRT's trtexec instead

Bring the folder results/ back, and:  blockwright profile import results/
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from blockwright.profiler.clock import Effort, time_in_turn  # a kit brings this one module along

_FILES = (
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/loadavg",
    "/proc/device-tree/model",
    "/etc/nv_tegra_release",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq",
    "/sys/fs/cgroup/cpu.max",
)
_COMMANDS = (
    ("nvpmodel", "-q"),
    ("sysctl", "-n", "machdep.cpu.brand_string"),
    ("sysctl", "-n", "hw.memsize"),
    ("nvidia-smi", "--query-gpu=name,memory.total,driver_version,compute_cap,power.limit", "--format=csv,noheader"),
)


def main(arguments: list[str] | None = None, here: Path | None = None) -> int:
    """Runs the kit; 0 where everything was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder to bring back (default: results)")
    parser.add_argument("--seconds", type=float, default=0.25, help="to measure each thing for (default: 0.25)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime (default: 1)")
    parser.add_argument("--trtexec", action="store_true", help="build and time each graph with TensorRT's trtexec")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    here = here or Path(__file__).resolve().parent
    kit = json.loads((here / "cases.json").read_text())
    if asked.memory is not None:
        print(_peak_of(here, kit, asked.memory, asked.threads))
        return 0
    asked.out.mkdir(parents=True, exist_ok=True)
    make_weights(here / "graphs", kit["weights"])
    shutil.copy(here / "cases.json", asked.out / "cases.json")
    _write(asked.out / "device.json", {"readings": readings(), "settings": settings_of(asked)})
    return run_cases(here, kit, asked)


def run_cases(here: Path, kit: dict[str, Any], asked: argparse.Namespace) -> int:
    """Measures the cases that have no result yet; a failed one is written down and does not stop the others."""
    started, failed, measured = time.time(), 0, 0
    for number, case in enumerate(kit["cases"]):
        path = asked.out / f"case-{number:04d}.json"
        if path.exists():
            continue
        try:
            result = measure_by_trtexec(here, case) if asked.trtexec else measure(here, case, asked)
        except Exception as error:  # whatever a device's runtime raises: it is told, and the next case is tried
            result, failed = {"error": f"{type(error).__name__}: {error}"}, failed + 1
            print(f"\n{case['name']}: {result['error']}", file=sys.stderr)
        _write(path, {"name": case["name"]} | result)
        measured += 1
        left_s = (time.time() - started) / measured * (len(kit["cases"]) - number - 1)
        print(f"\r{number + 1}/{len(kit['cases'])}, about {left_s / 60:.0f} min left  ", end="", flush=True)
    print(f"\n{len(kit['cases'])} cases in {asked.out}, {failed} failed")
    return 1 if failed else 0


def measure(here: Path, case: dict[str, Any], asked: argparse.Namespace) -> dict[str, Any]:
    """Times the graphs of one case in turn, or takes the peak of memory in a process of its own."""
    if case["kind"] == "memory":
        command = [sys.executable, str(here / "run.py"), "--memory", case["name"], "--threads", str(asked.threads)]
        return {"peak_bytes": int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)}
    runs = [bound_run(here / "graphs", graph, asked.threads) for graph in case["graphs"]]
    effort = Effort(seconds=asked.seconds)
    derive = [np.array(weights) for weights in case["derive"]]
    timings = time_in_turn(runs, effort, asked.threads, derive=derive)
    fields = ("median_s", "low_s", "high_s", "num_samples", "num_rejected", "clock")
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


def measure_by_trtexec(here: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Builds each graph by trtexec and gives the times that it exports, in milliseconds as it writes them."""
    if case["kind"] == "memory":
        return {"error": "trtexec does not tell the peak of memory"}
    times = []
    for graph in case["graphs"]:
        exported = here / "graphs" / (graph["file"] + ".times.json")
        command = [
            "trtexec",
            f"--onnx={here / 'graphs' / graph['file']}",
            "--stronglyTyped",
            f"--exportTimes={exported}",
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)
        times.append(json.loads(exported.read_text()))
    return {"trtexec": times}


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
    """What the system says of itself: texts of files and of commands, as they are; nothing that names a person."""
    import onnxruntime

    found = {
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "onnxruntime": onnxruntime.__version__,
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }
    for file in _FILES:
        try:
            text = Path(file).read_text().strip("\0\n")
        except OSError:
            continue
        found[file] = "\n".join(line for line in text.splitlines() if not line.lower().startswith("serial"))
    for command in _COMMANDS:
        try:
            found[" ".join(command)] = subprocess.run(
                command, check=True, capture_output=True, text=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            continue
    return found


def settings_of(asked: argparse.Namespace) -> dict[str, Any]:
    """What the measurements were asked for with."""
    return {
        "threads": asked.threads,
        "seconds": asked.seconds,
        "backend": "tensorrt" if asked.trtexec else "onnxruntime",
        "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    }


def _peak_of(here: Path, kit: dict[str, Any], name: str, threads: int) -> int:
    """The peak that opening and running a case's graphs adds to what the empty runtime takes."""
    case = next(case for case in kit["cases"] if case["name"] == name)
    bound_run(here / "graphs", kit["empty"], threads)()
    before = _peak_resident_bytes()
    for graph in case["graphs"]:
        bound_run(here / "graphs", graph, threads)()
    return _peak_resident_bytes() - before


def _peak_resident_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _write(path: Path, data: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=1))
    os.replace(partial, path)


if __name__ == "__main__":
    sys.exit(main())
