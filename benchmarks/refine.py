"""What it is worth to go beyond sums of scores.

    python benchmarks/refine.py [--models FOLDER …] [--text FOLDER] [--out benchmarks/results]

For each parent (the demo's, and checkpoints by others where they are given) and each budget: the plan with the best sum
of scores, whose scores were given as many layer passes as all of a refinement took, beside the refined one; and for the
removal of whole layers the same beside block influence (ShortGPT). KL to the parent before distillation on held-out
text, 95 % bootstrap intervals over documents, differences paired. How far sums are from wholes is the additivity.
Takes about half an hour on two cores; what is done stays in runs/benchmark-refine.
"""

import argparse
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from blockwright.files import read_json
from blockwright.hw_profiles.device import installed_software, this_device
from blockwright.hw_profiles.folder import read_profile
from blockwright.library import read_library
from blockwright.model.parent import load_model, open_parent
from blockwright.pipeline.inputs import read_text, windows_to_judge_by
from blockwright.pipeline.library import build_library
from blockwright.pipeline.profile import profile_machine
from blockwright.pipeline.recipe import Recipe, read_recipe
from blockwright.pipeline.refine import RECORD, RefineOrder, refine_plan
from blockwright.pipeline.run import library_order, profile_order, score_order, search_order
from blockwright.pipeline.score import score_library
from blockwright.pipeline.search import full_order, search_plan
from blockwright.pipeline.wholes import Wholes
from blockwright.search.baselines import block_influence
from blockwright.search.build import Rules, build_problem
from blockwright.search.choose import candidates_of, child_of
from blockwright.search.scores import read_scores
from blockwright.spec import Model, NoOp, variant_name
from blockwright.statistics import Estimate, estimate_mean, estimate_ratio
from blockwright.strict import to_data

BUDGETS = ("parameters@chat <= 50%", "parameters@chat <= 35%")
REMOVAL = "parameters@chat <= 70%"
HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "recipes" / "demo.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A parent with its library, and the text to judge on."""

    name: str
    recipe: Recipe
    folder: Path


def main() -> None:
    """Runs the benchmark and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="checkpoints by others")
    parser.add_argument("--text", default=None, help="that these were trained on")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    demo = read_recipe(DEMO)
    subjects = []
    for path in arguments.models:
        recipe = replace(demo, parent=str(path), text=arguments.text)
        subjects.append(Subject(name=path.name, recipe=recipe, folder=Path("runs/benchmark-refine") / path.name))
    subjects.append(Subject(name="demo parent", recipe=demo, folder=Path("runs/benchmark-refine/demo")))
    results: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python benchmarks/refine.py" + " --models … --text …" * bool(arguments.models),
        "device": to_data(this_device()),
        "software": installed_software(),
        "subjects": [measure(subject) for subject in subjects],
    }
    stem = arguments.out / f"refine_{this_device().name}_{results['date']}"
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text(as_text(results))
    print(stem.with_suffix(".md").read_text())


def measure(subject: Subject) -> dict[str, Any]:
    """Everything about one parent."""
    recipe, folder = subject.recipe, subject.folder
    parent = open_parent(recipe.parent)
    profiled = replace(profile_order(recipe, parent), seconds_per_measurement=0.05)
    profile_machine(profiled, folder / "profile")
    build_library(parent, library_order(recipe), folder / "library")
    score_library(parent, folder / "library", score_order(recipe), folder / "scores.parquet")
    text = read_text(recipe.text)
    held_out = windows_to_judge_by(
        parent, text.held_out, length=recipe.window_tokens, num_tokens=recipe.measure.tokens, seed=recipe.seed
    )
    wholes = Wholes(
        model=load_model(parent),
        library=read_library(folder / "library"),
        folder=folder / "library",
        ids_NT=held_out.ids_NT,
    )
    rows = [_refined(subject, wholes, held_out.document_N, index, text) for index, text in enumerate(BUDGETS)]
    return {"name": subject.name, "rows": rows, "removal": _removal(subject, wholes, held_out.document_N)}


def _refined(subject: Subject, wholes: Wholes, document_N: np.ndarray, index: int, budget: str) -> dict[str, Any]:
    """One budget: refined, and the best sum of scores that took as many layer passes."""
    recipe, folder = subject.recipe, subject.folder
    parent, place = open_parent(recipe.parent), folder / f"budget-{index}"
    searched = replace(search_order(recipe), budgets=(budget,), frontier_points=0)
    order = refine_order(recipe)
    paths = {"library": folder / "library", "scores": folder / "scores.parquet", "output": place / "refined.json"}
    plan = refine_plan(parent, paths, [folder / "profile"], searched, order)
    record = read_json(place / RECORD)
    table = read_scores(folder / "scores.parquet")
    layers = [s.candidate.layer for s in table.scores if s.estimate.num_values]
    tokens = recipe.score.tokens + _extra_tokens(record, layers, len(table.parent.layers), recipe.window_tokens)
    longer = replace(score_order(recipe), tokens=tokens)
    score_library(parent, folder / "library", longer, place / "scores.parquet")
    best_sum = search_plan(place / "scores.parquet", [folder / "profile"], searched, place / "plan.json")
    refined_N, sum_N = (_losses(wholes, spec) for spec in (plan.child, best_sum.child))
    return {
        "budget": budget,
        "scoring_tokens": [recipe.score.tokens, tokens],
        "sum": _data(estimate_mean(sum_N, document_N)),
        "refined": _data(estimate_mean(refined_N, document_N)),
        "ratio": _data(estimate_ratio(refined_N, sum_N, document_N)),
        "additivity": record["additivity"],
        "plans": len(record["plans"]),
    }


def _removal(subject: Subject, wholes: Wholes, document_N: np.ndarray) -> dict[str, Any]:
    """Whole layers removed: by sums of scores, by block influence, and refined."""
    recipe, folder = subject.recipe, subject.folder
    parent, place = open_parent(recipe.parent), folder / "removal"
    rules = Rules(most_shapes=1, forbidden=_all_but_own(read_library(folder / "library").parent))
    searched = replace(search_order(recipe), budgets=(REMOVAL,), frontier_points=0, rules=rules)
    paths = {"library": folder / "library", "scores": folder / "scores.parquet", "output": place / "refined.json"}
    refined = refine_plan(parent, paths, [folder / "profile"], searched, refine_order(recipe)).child
    best_sum = search_plan(folder / "scores.parquet", [folder / "profile"], searched, place / "plan.json").child
    table = read_scores(folder / "scores.parquet")
    assert table.influence is not None
    asked = full_order(searched, {"here": read_profile(folder / "profile")})
    chosen = block_influence(build_problem(table, asked), table.parent, table.influence)
    assert chosen is not None
    by_influence = child_of(table.parent, candidates_of(chosen))
    specs = {"best sum": best_sum, "block influence": by_influence, "refined": refined}
    losses = {name: _losses(wholes, spec) for name, spec in specs.items()}
    return {
        "budget": REMOVAL,
        "rows": [
            {
                "name": name,
                "removed": [i for i, block in enumerate(specs[name].layers) if block.mixer == block.ffn == NoOp()],
                "kl": _data(estimate_mean(values, document_N)),
                "of_influence": _data(estimate_ratio(values, losses["block influence"], document_N)),
            }
            for name, values in losses.items()
        ],
    }


def refine_order(recipe: Recipe) -> RefineOrder:
    """As many tokens as for the scores."""
    return RefineOrder(
        text=recipe.text,
        window_tokens=recipe.window_tokens,
        tokens=recipe.score.tokens,
        seed=recipe.seed,
        rounds=5,
        pool_size=8,
        pairs=32,
    )


def _all_but_own(parent: Model) -> tuple[str, ...]:
    """Patterns of all candidates but the parent's own parts and nothing."""
    mixer, ffn = variant_name(parent.layers[0].mixer), variant_name(parent.layers[0].ffn)
    assert all((variant_name(b.mixer), variant_name(b.ffn)) == (mixer, ffn) for b in parent.layers)
    heads = [f"*-attention-kv{n}" for n in range(1, parent.num_heads + 1) if f"attention-kv{n}" != mixer]
    digits = [f"*-ffn-{'[0-9]' * n}" for n in range(1, 7) if n != len(ffn.removeprefix("ffn-"))]
    place = ffn.removeprefix("ffn-")
    others = [f"*-ffn-{place[:i]}[!{place[i]}]{'[0-9]' * (len(place) - i - 1)}" for i in range(len(place))]
    return ("*-linear", *heads, *digits, *others)


def _extra_tokens(record: dict[str, Any], layers: list[int], num_layers: int, window_tokens: int) -> int:
    """Tokens of scoring that take as many layer passes as a refinement: of its plans, and of its changes."""
    per_window = sum(num_layers - layer for layer in layers) + num_layers
    changes = sum(record["changes"]) * (per_window + num_layers)
    plans = sum(plan["windows"] for plan in record["plans"]) * 2 * num_layers
    pairs = record["pairs"] * (record["windows"] // 4) * 2 * num_layers
    return round((changes + plans + pairs) / per_window) * window_tokens


def _losses(wholes: Wholes, spec: Model) -> np.ndarray:
    [values] = wholes.losses([wholes.child(spec)], 0, len(wholes.ids_NT))
    return np.array(values)


def _data(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def as_text(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    device = results["device"]
    lines = [
        f"# Beyond sums of scores, {results['date']}",
        "",
        f"`{results['command']}` on {device['model']}, {device['num_cores']} cores. KL to the parent, nats per token, "
        "before distillation, on held-out text, 95 % bootstrap over documents. The best sum had scores from as many "
        "layer passes as scores and refinement took together.",
        "",
        "| parent | budget | tokens scored on | best sum | refined | refined / best sum | plans | R² | whole / sum |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for subject in results["subjects"]:
        for row in subject["rows"]:
            r2 = row["additivity"]["r_squared"]
            lines.append(
                f"| {subject['name']} | {row['budget']} | {row['scoring_tokens'][0]:,} + refinement, or "
                f"{row['scoring_tokens'][1]:,} | {_show(row['sum'])} "
                f"| {_show(row['refined'])} | {_show(row['ratio'])} | "
                f"{row['plans']} | {'' if r2 is None else f'{r2:.2f}'} | {row['additivity']['mean_ratio']:.2f} |"
            )
    lines += ["", "## Whole layers removed", "", "| parent | way | layers removed | KL | of block influence's |"]
    lines.append("|---|---|---|---|---|")
    for subject in results["subjects"]:
        for row in subject["removal"]["rows"]:
            removed = ", ".join(map(str, row["removed"]))
            shown = f"{_show(row['kl'])} | {_show(row['of_influence'])}"
            lines.append(f"| {subject['name']} | {row['name']} | {removed} | {shown} |")
    return "\n".join(lines) + "\n"


def _show(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


if __name__ == "__main__":
    main()
