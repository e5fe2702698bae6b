"""What the README claims about the demo, measured: `python benchmarks/demo.py` on a quiet machine, about 20 minutes.

Writes benchmarks/results/demo_<device>_<date>.json and .md. In one folder, so that parts are not measured twice:

1. the demo itself: seconds, and peak memory of its largest process;
2. parent and child in turn, five rounds: how many times as fast, and how far from the promise;
3. the plan against others at equal budget, by KL on held-out text before distillation: the same narrowing in every
   layer, a greedy choice, an equal slice of the budget for every layer, and random plans within the budget;
4. blockwise local distillation against none (the same initialisation, from the same text), the search made anew for
   each, before and after global distillation of the same tokens; and a token-matched control: no blockwise
   distillation, but its tokens added to the global one;
5. `blockwright --help`.

Differences are paired: of the same held-out windows, with bootstrap intervals over documents.
"""

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from demo_page import as_text
from provenance import REPOSITORY, RESULTS, commit, origin, write_results
from transformers import PreTrainedModel

from blockwright.hw_profiles.device import this_device
from blockwright.hw_profiles.folder import read_profile
from blockwright.hw_profiles.profile import Profile
from blockwright.library import read_library
from blockwright.model.parent import Parent, load_model, open_parent
from blockwright.pipeline.distill import distill_child
from blockwright.pipeline.inputs import load_checkpoint, open_checkpoint, read_text, windows_of
from blockwright.pipeline.library import build_library
from blockwright.pipeline.measure import measure_costs
from blockwright.pipeline.realise import realise_plan
from blockwright.pipeline.recipe import Recipe, read_recipe
from blockwright.pipeline.run import distill_order, library_order, score_order, search_order
from blockwright.pipeline.score import score_library
from blockwright.pipeline.search import full_order, search_plan
from blockwright.search.baselines import equal_per_layer, greedy, random_feasible, uniform
from blockwright.search.build import build_problem
from blockwright.search.choose import candidates_of, child_of
from blockwright.search.plan import read_plan
from blockwright.search.problem import Choice, Problem
from blockwright.search.scores import read_scores
from blockwright.search.solve import Optimal, solve
from blockwright.spec import FP32, with_format
from blockwright.statistics import estimate_mean
from blockwright.train.quality import PerWindow, compare_windows
from blockwright.train.realise import realise
from blockwright.train.windows import Windows

RECIPE = REPOSITORY / "recipes" / "demo.yaml"
ROUNDS, RANDOM_PLANS, HELP_RUNS = 5, 8, 15


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all parts share."""

    folder: Path
    recipe: Recipe
    parent: Parent
    model: PreTrainedModel
    profile: Profile
    windows: Windows

    def compare(self, child: PreTrainedModel) -> PerWindow:
        """A child beside the parent, on held-out text."""
        return compare_windows(child, self.model, self.windows)

    def estimate(self, values_N: np.ndarray) -> dict[str, float]:
        """The mean over windows, with its interval over documents."""
        return asdict(estimate_mean(values_N, self.windows.document_N))


def main() -> None:
    """Runs every part and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-demo"), help="for what is made meanwhile")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    demo = run_demo(arguments.folder / "demo")
    recipe = read_recipe(RECIPE)
    parent = open_parent(recipe.parent)
    text = read_text(recipe.text)
    bench = Bench(
        folder=arguments.folder,
        recipe=recipe,
        parent=parent,
        model=load_model(parent),
        profile=read_profile(arguments.folder / "demo" / "profile"),
        windows=windows_of(
            parent, text.held_out, length=recipe.window_tokens, num_tokens=recipe.measure.tokens, seed=recipe.seed
        ),
    )
    results = origin("python benchmarks/demo.py", this_device()) | {
        "demo": demo,
        "rounds": time_rounds(bench),
        "plans": compare_plans(bench),
        "library": compare_libraries(bench),
        "help_s": time_help(),
        "ceilings": asdict(bench.profile.ceilings),
    }
    write_results(results, as_text(results), arguments.out / f"demo_{bench.profile.name}_{results['date']}")


def run_demo(folder: Path) -> dict[str, Any]:
    """Runs the demo in a process of its own from nothing, unless the folder holds this commit's timing already."""
    record = folder / "benchmark.json"
    if record.exists() and (found := json.loads(record.read_text()))["commit"] == commit():
        return found
    shutil.rmtree(folder.parent, ignore_errors=True)
    command = [sys.executable, "-m", "blockwright.cli.main", "run", str(RECIPE), "--out", str(folder)]
    started = time.monotonic()
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    manifest = json.loads((folder / "manifest.json").read_text())
    stages = {name: stage["seconds"] for name, stage in manifest.items()}
    found = {"commit": commit(), "seconds": seconds, "peak_bytes": peak_bytes, "stage_seconds": stages}
    record.write_text(json.dumps(found))
    return found


def time_rounds(bench: Bench) -> list[dict[str, Any]]:
    """Parent and child in turn, round after round."""
    engines = bench.folder / "demo" / "engine" / "onnxruntime"
    plan = read_plan(bench.folder / "demo" / "plan.json")
    seconds, reference_s = bench.recipe.measure.seconds, bench.profile.ceilings.reference_s
    rounds = []
    for weights in bench.recipe.engine.formats:
        pair = (engines / f"parent-{weights}", engines / f"child-{weights}")
        for index in range(ROUNDS):
            for cost in measure_costs(pair, bench.recipe.loads, seconds, reference_s):
                promised = next(p for p in plan.promises if (p.quantity, p.load) == (cost.quantity, cost.load))
                is_promised = weights == plan.format
                rounds.append(
                    {
                        "round": index,
                        "format": weights,
                        "quantity": cost.quantity,
                        "load": cost.load,
                        "parent": cost.parent.value,
                        "child": cost.child.value,
                        "promised_parent": promised.parent.value if is_promised else None,
                        "promised_child": promised.child.value if is_promised else None,
                    }
                )
    return rounds


def compare_plans(bench: Bench) -> list[dict[str, Any]]:
    """KL on held-out text, before distillation, of plans within the same budgets."""
    folder = bench.folder / "demo"
    table = read_scores(folder / "scores.parquet")
    problem = problem_of(bench, folder)
    answer = solve(problem)
    assert isinstance(answer, Optimal)
    plans: list[tuple[str, tuple[Choice, ...] | None]] = [
        ("solver", answer.chosen),
        ("uniform", uniform(problem)),
        ("greedy", greedy(problem)),
        ("equal per layer", equal_per_layer(problem)),
        *((f"random {index}", chosen) for index, chosen in enumerate(random_feasible(problem, RANDOM_PLANS, seed=0))),
    ]
    library = read_library(folder / "library")
    solver_kl_N = np.zeros(0)
    rows: list[dict[str, Any]] = []
    for name, chosen in plans:
        if chosen is None:
            rows.append({"plan": name, "sum_of_scores": None, "kl": None, "more_than_solver": None})
            continue
        child = with_format(child_of(table.parent, candidates_of(chosen)), FP32)
        kl_N = bench.compare(realise(bench.model, library, folder / "library", child)).kl_N
        solver_kl_N = kl_N if name == "solver" else solver_kl_N
        rows.append(
            {
                "plan": name,
                "sum_of_scores": sum(choice.score for choice in chosen),
                "kl": bench.estimate(kl_N),
                "more_than_solver": bench.estimate(kl_N - solver_kl_N),
            }
        )
    return rows


def problem_of(bench: Bench, folder: Path) -> Problem:
    """The demo's problem, as its search stage puts it."""
    order = full_order(search_order(bench.recipe), {bench.profile.name: bench.profile})
    return build_problem(read_scores(folder / "scores.parquet"), order)


def compare_libraries(bench: Bench) -> dict[str, Any]:
    """With and without blockwise local distillation: the same search, then the same global distillation."""
    recipe, demo, folder = bench.recipe, bench.folder / "demo", bench.folder / "no-bld"
    distilled = distill_order(recipe)
    longer = replace(distilled, tokens=recipe.distill.tokens + recipe.library.tokens)
    children = {"BLD": demo / "realised", "BLD + GKD": demo / "child"}
    untrained = replace(library_order(recipe), learning_rate=0.0)
    build_library(bench.parent, untrained, folder / "library")
    score_library(bench.parent, folder / "library", score_order(recipe), folder / "scores.parquet")
    search_plan(folder / "scores.parquet", [demo / "profile"], search_order(recipe), folder / "plan.json")
    realise_plan(bench.parent, folder / "plan.json", folder / "library", folder / "realised")
    children["no BLD"] = folder / "realised"
    for name, order in (("no BLD + GKD", distilled), ("no BLD + longer GKD", longer)):
        children[name] = folder / f"tokens-{order.tokens}" / "child"
        distill_child(folder / "realised", bench.parent, order, children[name])
    found = {name: bench.compare(load_checkpoint(open_checkpoint(str(path)))) for name, path in children.items()}
    bits = 1 / math.log(2) / bench.windows.bytes_per_token
    rows = [
        {
            "child": name,
            "kl": bench.estimate(one.kl_N),
            "bits_per_byte": bench.estimate(one.child_nats_N * bits),
            "parent_bits_per_byte": bench.estimate(one.parent_nats_N * bits),
            "agreement": bench.estimate(one.agreement_N),
        }
        for name, one in found.items()
    ]
    pairs = [
        ("BLD", "BLD + GKD"),
        ("no BLD", "BLD"),
        ("no BLD + GKD", "BLD + GKD"),
        ("no BLD + longer GKD", "BLD + GKD"),
    ]
    differences = [
        {
            "of": f"{worse}, less {better}",
            "kl": bench.estimate(found[worse].kl_N - found[better].kl_N),
            "bits_per_byte": bench.estimate((found[worse].child_nats_N - found[better].child_nats_N) * bits),
        }
        for worse, better in pairs
    ]
    tokens = {"gkd_tokens": distilled.tokens, "longer_gkd_tokens": longer.tokens, "bld_tokens": recipe.library.tokens}
    return {"rows": rows, "differences": differences} | tokens


def time_help() -> list[float]:
    """Seconds from start to end of `blockwright --help`, a fresh process each time."""

    def once() -> float:
        started = time.perf_counter()
        subprocess.run([Path(sys.executable).parent / "blockwright", "--help"], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started

    once()
    return [once() for _ in range(HELP_RUNS)]


if __name__ == "__main__":
    main()
