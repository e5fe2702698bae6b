"""llama.cpp, HAT's Transformers, MLPerf and published figures: the parts of `serving.py` beside ML.ENERGY."""

from pathlib import Path

import numpy as np
from serving_fit import fit_additive, fit_stream, llama_runtime, streamed_s, streams
from serving_judge import Records, bounds, covered, floors, left_out, nearest, record
from serving_tables import METAL, PUBLISHED, Generated, ceilings, hat, llamacpp, mlperf, model

from blockwright.cost import Load
from blockwright.hw_profiles.datasheet_figures import datasheet
from blockwright.profiler.serving import NVLINK, PCIE, Server, serve, step_time
from blockwright.profiler.serving_operators import STORAGES, Step, step_operators
from blockwright.profiler.serving_runtimes import RUNTIMES, Runtime

HAT = {
    "Raspberry Pi": "wmt14ende_cpu_raspberrypi_all",
    "Xeon": "wmt14ende_cpu_xeon_all",
    "TITAN Xp": "wmt14ende_gpu_titanxp_all",
    "TITAN Xp, IWSLT": "iwslt14deen_gpu_titanxp_all",
}


def llamas(folder: Path, constants: dict) -> Records:
    """llama.cpp on NVIDIA and on Apple's GPUs: writing, and reading on one device."""
    records: Records = []
    everything = llamacpp(folder)
    for name, is_metal in (("llama.cpp-cuda", False), ("llama.cpp-metal", True)):
        rows = [row for row in everything if row.device.startswith(METAL) == is_metal]
        columns, truth = streams(rows), np.array([row.token_s for row in rows])
        groups = {
            "device left out": np.array([row.device for row in rows]),
            "model left out": np.array([f"{row.model} {row.storage}" for row in rows]),
        }
        for setting, named in groups.items():
            found = left_out(named, lambda at, c=columns, t=truth: streamed_s(fit_stream(c, t, at), c))
            coverage, width = covered(named, found, truth)
            entry = record(name, setting, "time per token", "serving", found, truth)
            records.append(entry | {"coverage": coverage, "width": width})
            if setting == "device left out":
                constants[f"{name} bounds"] = {"time_bounds": bounds(np.log(truth / found))}
        logs = fit_stream(columns, truth, np.arange(len(rows)))
        constants[name] = dict(
            zip(
                ("layer_s", "read_share", "unit_bytes_per_s", "unpack_flop", "hop_s", "cache_reads"),
                np.exp(logs).tolist(),
                strict=True,
            )
        )
        records += floors_of_llamas(name, rows, truth) + prompts(name, rows, logs, constants)
    return records


def floors_of_llamas(name: str, rows: list[Generated], truth: np.ndarray) -> Records:
    """The baselines of writing."""
    least, two, features = [], [], []
    for row in rows:
        of = ceilings(row.device)
        step = Step(sequences=1, context=row.num_tokens // 2)
        counts = step_operators(model(row.model), step, STORAGES[row.storage], "fp16")
        for kept, value in zip((least, two), floors(counts, of), strict=True):
            kept.append(value)
        total = sum(each.num_bytes * times for each, times in counts.items())
        features.append((total, row.num_devices, of.read_bytes_per_s.value, of.flop_per_s["fp32"].value))
    devices, least = np.array([row.device for row in rows]), np.array(least)
    near = nearest(devices, np.array(features), least, truth)
    named = {"roofline": least, "two constants": np.array(two), "nearest": near}
    return [record(name, "device left out", "time per token", key, value, truth) for key, value in named.items()]


def prompts(name: str, rows: list[Generated], logs: np.ndarray, constants: dict) -> Records:
    """Reading on one device, by one more constant: what a unit multiplies in a second."""
    single = [row for row in rows if row.num_devices == 1]
    truth, devices = np.array([row.prompt_s for row in single]), np.array([row.device for row in single])
    grid = np.geomspace(0.1e12, 2.5e12, 14)
    times = np.array(
        [[prompt_s(llama_runtime(name, logs, unit, RUNTIMES[name]), row) for row in single] for unit in grid]
    )

    def best(at: np.ndarray) -> int:
        return int(np.abs(np.log(times[:, at] / truth[at])).mean(axis=1).argmin())

    found = left_out(devices, lambda at: times[best(at)])
    coverage, width = covered(devices, found, truth)
    constants[name]["unit_flop_per_s"] = grid[best(np.arange(len(single)))]
    constants[f"{name} bounds"]["prompt_bounds"] = bounds(np.log(truth / found))
    entry = record(name, "device left out, one device", "time to first token", "serving", found, truth)
    return [entry | {"coverage": coverage, "width": width}]


def prompt_s(runtime: Runtime, row: Generated) -> float:
    """Reading a prompt of the row's length, in batches of 512 tokens as llama.cpp does."""
    server = Server(
        model=model(row.model), ceilings=ceilings(row.device), runtime=runtime, storage=STORAGES[row.storage]
    )
    batches = row.num_tokens // 512
    first = step_time(server, Step(sequences=0, context=0, prompts=1, prompt_tokens=512)).value
    whole = step_time(server, Step(sequences=0, context=0, prompts=1, prompt_tokens=row.num_tokens)).value
    return max(batches * first, whole)


def transformers(folder: Path, constants: dict) -> Records:
    """HAT's encoder-decoder models, from few samples of the same device."""
    records: Records = []
    for device, table in HAT.items():
        columns, truth = hat(folder, table)
        for count in (20, 100, 1600):
            errors, measured = [], []
            for seed in range(20):
                order = np.random.default_rng(seed).permutation(len(truth))
                some, rest = order[:count], order[count:]
                errors.append(columns[rest] @ fit_additive(columns[some], truth[some]))
                measured.append(truth[rest])
            found = record(
                "hat", f"{device}, {count} samples", "latency", "serving", *map(np.concatenate, (errors, measured))
            )
            records.append(found | {"coverage": within_samples(columns, truth, count)})
        constants[f"hat {device}"] = fit_additive(columns, truth).tolist()
    return records


def within_samples(columns: np.ndarray, truth: np.ndarray, count: int) -> float:
    """Coverage of intervals from samples that the fit did not see: five parts, each left out."""
    held = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(truth))
        some, rest = order[:count], order[count:]
        part = np.arange(count) % 5
        ratios = np.empty(count)
        for number in range(5):
            inside = some[part == number]
            ratios[part == number] = np.log(
                truth[inside] / (columns[inside] @ fit_additive(*(x[some[part != number]] for x in (columns, truth))))
            )
        low, high = bounds(ratios)
        error = np.log(truth[rest] / (columns[rest] @ fit_additive(columns[some], truth[some])))
        held.append(((low <= error) & (error <= high)).mean())
    return float(np.mean(held))


def mlperfs(folder: Path) -> Records:
    """Offline results, the median of those on the same devices; no constant is fitted to them.

    Batches, prompts and formats are not in the table. Taken: fp8 (int4 on Orin), as many sequences as fit and at most
    1024; Llama-2 on one device where it fits, else two or four, OpenOrca with 290 tokens in and out; GPT-J on one,
    CNN/DailyMail with 780 in and 69 out, in four beams that share the prompt and its cache.
    """
    grouped: dict[tuple, list[float]] = {}
    for row in mlperf(folder):
        grouped.setdefault((row["device"], row["num_devices"], row["model"]), []).append(row["tokens_per_s"])
    found, truth, edge = [], [], []
    for (device, num_devices, name), values in grouped.items():
        is_llama = name == "llama-2-70b"
        memory = datasheet(device).memory_bytes.value
        together = 1 if not is_llama or memory > 120e9 else 2 if memory > 60e9 else 4
        server = Server(
            model=model(name),
            ceilings=ceilings(device),
            runtime=RUNTIMES["compiled"],
            storage=STORAGES["int4-g128" if device.startswith("jetson") else "fp8"],
            num_devices=together,
            memory_bytes=memory,
            link=PCIE if device in ("l40s", "h100_pcie") else NVLINK,
        )
        load = Load(batch=1024, prompt_tokens=290, new_tokens=290)
        if not is_llama:
            load = Load(batch=1024, prompt_tokens=780 // 4, new_tokens=69)
        service = serve(server, load, None if is_llama else 780 / 4 + 35)
        found.append(service.throughput.value * num_devices / together / (1 if is_llama else 4))
        truth.append(float(np.median(values)))
        edge.append(device.startswith("jetson"))
    cells = {"data centre": ~np.array(edge), "Jetson AGX Orin": np.array(edge)}
    return [
        record("mlperf_v4.1", cell, "throughput", "serving", np.array(found)[at], np.array(truth)[at])
        for cell, at in cells.items()
    ]


def published() -> Records:
    """Single figures of edge devices."""
    records: Records = []
    for row in PUBLISHED:
        server = Server(
            model=model(row.model),
            ceilings=ceilings(row.device),
            runtime=RUNTIMES[row.runtime],
            storage=STORAGES[row.storage],
        )
        cost = step_time(server, Step(sequences=1, context=256))
        setting = f"{row.device} {row.model} {row.storage}"
        entry = record(
            "published", setting, "time per token", "serving", np.array([cost.value]), 1 / np.array([row.tokens_per_s])
        )
        is_held = cost.low <= 1 / row.tokens_per_s <= cost.high
        records.append(entry | {"coverage": float(is_held), "width": cost.high / cost.low, "source": row.source})
    return records
