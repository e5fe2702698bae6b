"""Stage: make a plan real."""

from pathlib import Path

from blockwright.files import digest_of, digest_of_files, new_folder
from blockwright.library import INDEX, read_library
from blockwright.model.child import save_child
from blockwright.model.parent import Parent, load_model, load_tokenizer
from blockwright.pipeline.inputs import checkpoint_digest, load_checkpoint, open_checkpoint
from blockwright.pipeline.stage import Stage, running, whole
from blockwright.search.plan import Plan, read_plan
from blockwright.spec import FP32, Model, with_format
from blockwright.strict import to_data
from blockwright.train.realise import realise


def realise_plan(parent: Parent, plan_path: Path, library_folder: Path, output: Path) -> None:
    """Writes the child's checkpoint, undistilled, unless it was written before from the same inputs."""
    library = read_library(library_folder)
    child_spec = checkpoint_spec(read_plan(plan_path))
    inputs = {
        "parent": checkpoint_digest(parent.folder),
        "child": digest_of(to_data(child_spec)),
        "library": digest_of_files([library_folder / name for name in (INDEX, *library.files)]),
    }
    reads = (plan_path, *whole(parent.folder), *whole(library_folder))
    stage = Stage(name="realise", output=output, inputs=inputs, reads=reads)
    if stage.reuse(lambda: load_checkpoint(open_checkpoint(str(output)))) is not None:
        return
    with running(stage):
        child = realise(load_model(parent), library, library_folder, child_spec)
        with new_folder(output) as temporary:
            provenance = {"parent": str(parent.folder), "inputs": inputs, "distilled_tokens": 0}
            save_child(child, child_spec, load_tokenizer(parent), temporary, provenance)


def checkpoint_spec(plan: Plan) -> Model:
    """The plan's child as a checkpoint: its weights are in fp32 whatever format its engine will have."""
    return with_format(plan.child, FP32)
