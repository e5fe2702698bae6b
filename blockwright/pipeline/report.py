"""Stage: write the report of a run from its files."""

from pathlib import Path
from typing import Any

import yaml

from blockwright.errors import InputError
from blockwright.files import digest_of, new_file, read_json
from blockwright.hw_profiles.tried import TriedChild
from blockwright.measured import read_measured
from blockwright.pipeline.distill import HISTORY
from blockwright.pipeline.inputs import checkpoint_digest
from blockwright.pipeline.realise import checkpoint_spec
from blockwright.pipeline.stage import MANIFEST, read_manifest
from blockwright.pipeline.tried import TRIED, TRIED_REFINED, read_tried
from blockwright.report.page import Report, page
from blockwright.search.plan import Plan, read_plan
from blockwright.strict import to_data


def report_run(folder: Path, output: Path) -> None:
    """Writes the page. It takes no time, so it is always written anew.

    Raises:
        InputError: the folder holds no finished run.
    """
    if not (folder / MANIFEST).exists():
        raise InputError(
            str(folder),
            got=f"no {MANIFEST}",
            expected="the folder of a run",
            remedy="Name a folder that `blockwright run` wrote.",
        )
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    plan_file = "plan.json" if recipe.get("refine") is None else "refined.json"
    manifest, plan = read_manifest(folder), read_plan(folder / plan_file)
    _check_belong_together(folder, plan, manifest)
    report = Report(
        name=recipe["name"],
        parent_name=recipe["parent"],
        plan=plan,
        measured=read_measured(folder / "measured.json"),
        distillation_kl=[step["kl"] for step in read_json(folder / "child" / HISTORY)],
        manifest=manifest,
        tried=_tried(folder),
    )
    html = page(report)
    with new_file(output) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _tried(folder: Path) -> list[TriedChild]:
    """All children of the run that were tried, which are none where no budget is of time."""
    files = (folder / f"{name}.json" for name in (TRIED, TRIED_REFINED))
    return [one for file in files if file.exists() for one in read_tried(file)]


def _check_belong_together(folder: Path, plan: Plan, manifest: dict[str, Any]) -> None:
    """Refuses a folder whose measurements are of another child than its plan's."""

    def made_from(stage: str, name: str) -> Any:
        return manifest.get(stage, {}).get("inputs", {}).get(name)

    child = checkpoint_digest(folder / "child")
    links = {
        "realised": made_from("realise", "child") == digest_of(to_data(checkpoint_spec(plan))),
        "child": made_from("distill", "child") == checkpoint_digest(folder / "realised"),
        "measured.json": made_from("measure", "distilled") == child,
    }
    for file, is_of_this_plan in links.items():
        if not is_of_this_plan:
            raise InputError(
                str(folder / file),
                got="missing, or made for another plan than the run's",
                expected="a finished run",
                remedy="Run it to its end: blockwright run RECIPE --out " + str(folder),
            )
