"""Stage: write the report of a run from its files."""

from pathlib import Path

import yaml

from blockwright.errors import InputError
from blockwright.files import new_file, read_json
from blockwright.measured import read_measured
from blockwright.pipeline.distill import HISTORY
from blockwright.pipeline.stage import MANIFEST, read_manifest
from blockwright.report.page import Report, page
from blockwright.search.plan import read_plan


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
    report = Report(
        name=recipe["name"],
        parent_name=recipe["parent"],
        plan=read_plan(folder / "plan.json"),
        measured=read_measured(folder / "measured.json"),
        distillation_kl=[step["kl"] for step in read_json(folder / "child" / HISTORY)],
        manifest=read_manifest(folder),
    )
    html = page(report)
    with new_file(output) as temporary:
        temporary.write_text(html, encoding="utf-8")
