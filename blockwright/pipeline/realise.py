"""Stage: make a plan real."""

from pathlib import Path

from blockwright.files import digest_of_files, new_folder
from blockwright.library import INDEX, read_library
from blockwright.model.child import save_child
from blockwright.model.parent import Parent, load_model, load_tokenizer
from blockwright.pipeline.inputs import checkpoint_digest
from blockwright.pipeline.stage import Stage, running
from blockwright.search.plan import read_plan
from blockwright.train.realise import realise


def realise_plan(parent: Parent, plan_path: Path, library_folder: Path, output: Path) -> None:
    """Writes the child's checkpoint, undistilled, unless it was written before from the same inputs."""
    plan, library = read_plan(plan_path), read_library(library_folder)
    inputs = {
        "parent": checkpoint_digest(parent.folder),
        "child": plan_path.name and digest_of_files([plan_path]),
        "library": digest_of_files([library_folder / INDEX]),
    }
    stage = Stage(name="realise", output=output, inputs=inputs)
    if stage.is_done():
        return
    with running(stage):
        child = realise(load_model(parent), library, library_folder, plan.child)
        with new_folder(output) as temporary:
            provenance = {"parent": str(parent.folder), "inputs": inputs, "distilled_tokens": 0}
            save_child(child, plan.child, load_tokenizer(parent), temporary, provenance)
