"""How well whole heterogeneous children are foretold on this machine, and how well two profiles of it agree.

`OMP_NUM_THREADS=1 python benchmarks/costmodel/children.py`, about 12 minutes on two cores; the forest of scikit-learn
needs `pip install -e '.[bench]'`. A profile of the demo's parent is taken first, then another one; then children are
drawn, foretold from the first, and measured as engines in processes of their own. Baselines see the whole models that
the profile was fitted on and tried with, times of the same session, and nothing of the children.

Writes benchmarks/results/children_<device>_<date>.json and .md.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from provenance import commit

from blockwright.cost import Cost, Load
from blockwright.count import parameters
from blockwright.hw_profiles.device import installed_software, this_device
from blockwright.hw_profiles.profile import Point, Profile, parent_of
from blockwright.hw_profiles.variants import parse_variant
from blockwright.model.parent import open_parent
from blockwright.pipeline.profile import ProfileOrder, profile_machine
from blockwright.pipeline.validate import ValidateOrder, draw_children, formats_of, try_children
from blockwright.profiler.operators import Matmul, ffn_operators, mixer_operators, shared_operators
from blockwright.profiler.points import decode_points, prefill_points, reads_of
from blockwright.profiler.validate import Trial, accuracy_of
from blockwright.search.space import SpaceSettings
from blockwright.spec import Block, Model, parse_format, with_format

REPOSITORY = Path(__file__).parents[2]
LOAD = Load(batch=1, prompt_tokens=128, new_tokens=128)
FORMATS = ("fp32", "int4-g32")
CPU_BANDWIDTH_SHARE, LAUNCH_S = 0.8, 3e-6
"""aiconfigurator's two constants: of the bandwidth, and for each operator."""


def main() -> None:
    """Runs everything and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--children", type=int, default=32, help="of each format")
    parser.add_argument("--parent", default=str(REPOSITORY / "recipes" / "demo-parent"))
    parser.add_argument("--seconds", type=float, default=0.75, help="for each time of each child")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        folder, state = Path(home), commit()
        first, first_s = profiled(arguments.parent, folder / "first")
        second, second_s = profiled(arguments.parent, folder / "second")
        order = ValidateOrder(
            loads={"chat": LOAD},
            formats=FORMATS,
            num_children=arguments.children,
            seed=arguments.seed,
            seconds=arguments.seconds,
        )
        (folder / "work").mkdir()
        trials = try_children(first, order, folder / "work")
    ways = {"ours": trials, "ours, beside the parent": beside_the_parent(trials)}
    ways |= {name: rivals(first, order, trials, name) for name in way_names()}
    rows = [{"way": name} | asdict(row) for name, found in ways.items() for row in accuracy_of(found)]
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python benchmarks/costmodel/children.py",
        "commit": state,
        "device": asdict(this_device()),
        "software": installed_software(),
        "load": asdict(LOAD),
        "profile_s": [first_s, second_s],
        "precision": [first.coverage.precision, second.coverage.precision],
        "two_profiles": difference(first, second),
        "rows": rows,
        "coverage_once_tried": coverage_once_tried(trials),
        "trials": [asdict(trial) for trial in trials],
    }
    name = f"children_{this_device().name}_{results['date']}"
    (arguments.out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / f"{name}.md").write_text(table(results))
    print(table(results))


def beside_the_parent(trials: list[Trial]) -> list[Trial]:
    """What would have been foretold, had the machine been as far off its profile as it was for the parent meanwhile."""

    def moved(trial: Trial) -> Cost:
        factor, cost = 1 / (1 + trial.parent_off), trial.foretold
        return replace(cost, value=factor * cost.value, low=factor * cost.low, high=factor * cost.high)

    return [replace(trial, foretold=moved(trial)) for trial in trials]


def coverage_once_tried(trials: list[Trial]) -> dict[str, float]:
    """How often the interval covers that a profile has once it was tried: on one half, for children of the other."""
    found: dict[str, float] = {}
    for key in dict.fromkeys((trial.quantity, trial.format) for trial in trials):
        own = [trial for trial in trials if (trial.quantity, trial.format) == key]
        halves = own[: len(own) // 2], own[len(own) // 2 :]
        covered: list[bool] = []
        for tried, others in (halves, halves[::-1]):
            p90 = np.quantile([abs(each.foretold.value / each.measured - 1) for each in tried], 0.9)
            for each in others:
                half = max(p90 * each.foretold.value, each.foretold.high - each.foretold.value)
                covered.append(abs(each.measured - each.foretold.value) <= half)
        found[" ".join(key)] = float(np.mean(covered))
    return found


def profiled(parent: str, output: Path) -> tuple[Profile, float]:
    """A profile and the seconds that it took."""
    started = time.monotonic()
    order = ProfileOrder(
        parent=open_parent(parent).spec,
        space=SpaceSettings(),
        loads={"chat": LOAD},
        formats=FORMATS,
        threads=1,
        backends=("onnxruntime",),
        seconds_per_measurement=0.25,
    )
    return profile_machine(order, output), time.monotonic() - started


def difference(first: Profile, second: Profile) -> dict[str, float]:
    """How far times of the same things are apart in two profiles, parts and whole models."""
    found: dict[str, float] = {}
    for name in ("times", "wholes"):
        pairs = zip(getattr(first, name), getattr(second, name), strict=True)
        apart = [abs(a.time_s / b.time_s - 1) for a, b in pairs if b.time_s > 0]
        found |= {f"{name}_median": float(np.median(apart)), f"{name}_p95": float(np.quantile(apart, 0.95))}
    return found


def way_names() -> list[str]:
    """The baselines that can be had here."""
    forest = ["random forest"] if find_spec("sklearn") else []
    return ["nearest neighbour", "linear in parameters", *forest, "two-constant roofline"]


def rivals(profile: Profile, order: ValidateOrder, trials: list[Trial], way: str) -> list[Trial]:
    """What a baseline foretells of the times of the same children."""
    found: list[Trial] = []
    reads = reads_of(profile, "onnxruntime")
    for name in formats_of(profile):
        children = [with_format(child, parse_format(name)) for child in draw_children(profile, name, order)]
        for quantity, points in (
            ("time_per_token", decode_points(LOAD, reads)),
            ("time_to_first_token", prefill_points(LOAD, reads)),
        ):
            own = [trial for trial in trials if (trial.quantity, trial.format) == (quantity, name)]
            values = np.sum([foretell(profile, children, name, point, way) for point in points], axis=0)
            found += [
                Trial(
                    quantity=trial.quantity,
                    format=name,
                    foretold=Cost(value=value, low=value, high=value, origin="modelled"),
                    measured=trial.measured,
                )
                for trial, value in zip(own, map(float, values), strict=True)
            ]
    return found


def foretell(profile: Profile, children: list[Model], name: str, point: Point, way: str) -> np.ndarray:
    """Seconds of each child at a point, by one baseline."""
    if way == "two-constant roofline":
        return np.array([roofline_s(profile, child, point) for child in children])
    wholes = [row for row in profile.wholes if (row.format, row.point) == (name, point)]
    models = [model_of(profile, row.layers, name) for row in wholes]
    times = np.array([row.time_s for row in wholes])
    known, asked = (np.array([features(each) for each in group]) for group in (models, children))
    if way == "linear in parameters":
        slope, intercept = np.polyfit(known[:, 0], times, 1)
        return slope * asked[:, 0] + intercept
    if way == "random forest":
        from sklearn.ensemble import RandomForestRegressor  # pyright: ignore[reportMissingImports]

        return RandomForestRegressor(200, random_state=0).fit(known, times).predict(asked)
    scale = known.std(axis=0) + 1e-9
    nearest = np.linalg.norm((asked[:, None] - known[None]) / scale, axis=2).argmin(axis=1)
    return times[nearest]


def model_of(profile: Profile, layers: tuple[tuple[str, str], ...], name: str) -> Model:
    """The model that a row of whole models is of."""
    weights, parent = parse_format(name), parent_of(profile)
    blocks = []
    for mixer, ffn in layers:
        parts = parse_variant("mixer", mixer, weights), parse_variant("ffn", ffn, weights)
        blocks.append(Block(mixer=parts[0], ffn=parts[1]))  # type: ignore[arg-type]
    return with_format(replace(parent, layers=tuple(blocks)), weights)


def features(model: Model) -> list[float]:
    """Parameters, and how many parts of each kind there are."""
    kinds = ("Attention", "LinearMixer", "GatedFFN", "LinearFFN")
    parts = [type(part).__name__ for block in model.layers for part in (block.mixer, block.ffn)]
    return [float(parameters(model)), *(float(parts.count(kind)) for kind in kinds)]


def roofline_s(profile: Profile, model: Model, point: Point) -> float:
    """Bytes at a share of the bandwidth or products at the measured rate, whichever is longer, and a launch each."""
    ceilings = profile.ceilings
    operators = list(shared_operators(model, point))
    for block in model.layers:
        operators += [*mixer_operators(model, block.mixer, point), *ffn_operators(model, block.ffn, point)]
    speed = CPU_BANDWIDTH_SHARE * ceilings.read_bytes_per_s.value
    total = 0.0
    for each in operators:
        weights = each.weights if isinstance(each, Matmul) else "fp32"
        rate = ceilings.flop_per_s.get(weights, ceilings.flop_per_s["fp32"]).value
        total += LAUNCH_S + max(each.num_bytes / speed, each.flop / rate)
    return total


def table(results: dict) -> str:
    """The results for people, in per cent."""
    apart = results["two_profiles"]
    lines = [
        f"# Whole children on {results['device']['model']}, {results['date']}",
        "",
        f"`{results['command']}` at {results['commit']}; profiles took "
        + " and ".join(f"{each:.0f} s" for each in results["profile_s"]),
        "",
        "| way | cost | format | n | mean | median | p90 | worst | bias | tau | in interval |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        errors = [100 * row[f"{each}_error"] for each in ("mean", "median", "p90", "worst")]
        tau = "–" if row["kendall_tau"] is None else f"{row['kendall_tau']:.3f}"
        lines.append(
            f"| {row['way']} | {row['quantity']} | {row['format']} | {row['num_held_out']} | "
            + " | ".join(f"{each:.1f}" for each in errors)
            + f" | {100 * row['bias']:+.1f} | {tau} | "
            + (f"{100 * row['interval_coverage']:.0f} |" if row["way"].startswith("ours") else "– |")
        )
    words = ", ".join(f"{name} {100 * value:.1f} %" for name, value in apart.items())
    tried = ", ".join(f"{name} {100 * value:.0f} %" for name, value in results["coverage_once_tried"].items())
    return "\n".join(
        [
            *lines,
            "",
            "In the interval that a profile has once it was tried, tried on one half of the children and judged on the "
            f"other: {tried}.",
            "",
            f"Two profiles, one after the other, row by row: {words}.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
