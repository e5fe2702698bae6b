"""Stage: distil a realised child from its parent."""

from dataclasses import asdict, dataclass
from pathlib import Path

from blockwright.errors import InputError
from blockwright.files import new_folder, write_json
from blockwright.model.child import save_child
from blockwright.model.parent import Parent, load_model, load_tokenizer
from blockwright.pipeline.inputs import (
    check_text_suits,
    checkpoint_digest,
    load_checkpoint,
    open_checkpoint,
    read_text,
    windows_of,
)
from blockwright.pipeline.stage import Stage, whole
from blockwright.pipeline.together import gathered, progress_of_first, running_together
from blockwright.strict import to_data
from blockwright.train.distill import GkdSettings, GkdStep, distill
from blockwright.train.losses import kl_and_cosine
from blockwright.train.ranks import Ranks
from blockwright.train.windows import Batches

HISTORY = "distillation.json"
_CHECKPOINT_STEPS = 25
_SEED_SHIFT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOrder:
    """How to distil."""

    text: str
    window_tokens: int
    tokens: int
    batch_windows: int
    learning_rate: float
    cosine_weight: float
    seed: int


def distill_child(
    child_folder: Path, teacher: Parent, order: DistillOrder, output: Path, ranks: Ranks | None = None
) -> None:
    """Distils a child into a new folder, or leaves what was distilled before from the same inputs.

    Args:
        child_folder: the child.
        teacher: the parent it was made from.
        order: how.
        output: the new folder.
        ranks: who distils together, all of them calling this; None for one process.

    Raises:
        InputError: the child is no child of ours, or not of this teacher's shape; or there are too many ranks.
    """
    ranks = Ranks.alone() if ranks is None else ranks
    child = open_checkpoint(str(child_folder))
    if (child.spec.hidden_size, len(child.spec.layers)) != (teacher.spec.hidden_size, len(teacher.spec.layers)):
        raise InputError(
            "child",
            got=f"{len(child.spec.layers)} layers of hidden size {child.spec.hidden_size}",
            expected=f"the teacher's {len(teacher.spec.layers)} layers of hidden size {teacher.spec.hidden_size}",
            remedy="Name the parent that the child was made from as --teacher.",
        )
    text = read_text(order.text)
    inputs = {
        "order": to_data(order),
        "child": child.digest,
        "teacher": checkpoint_digest(teacher.folder),
        "text": text.digest,
    }
    reads = (*whole(child.folder), *whole(teacher.folder), Path(order.text))
    stage = Stage(name="distill", output=output, inputs=inputs, reads=reads)
    if stage.reuse(lambda: load_checkpoint(open_checkpoint(str(output)))) is not None:
        return
    windows = windows_of(
        teacher, text.training, length=order.window_tokens, num_tokens=order.tokens, seed=order.seed + _SEED_SHIFT
    )
    num_steps = max(1, order.tokens // (order.batch_windows * order.window_tokens))
    settings = GkdSettings(
        learning_rate=order.learning_rate, losses=kl_and_cosine(order.cosine_weight), checkpoint_steps=_CHECKPOINT_STEPS
    )
    parent, model = load_model(teacher), load_checkpoint(child)
    check_text_suits(parent, windows)
    with running_together(stage, ranks) as work:
        state = work / "state.safetensors"
        with progress_of_first(ranks, "distill", num_steps) as advance:

            def show(step: GkdStep) -> None:
                advance(f"KL {step.kl:.3f}", to=step.step + 1)

            steps = Batches(windows, order.batch_windows, num_steps, order.seed, ranks=ranks)
            history = distill(model, parent, steps, settings, state, on_step=show, ranks=ranks)
        model = gathered(model, child.spec, ranks)
        if not ranks.is_first:
            return
        with new_folder(output) as temporary:
            tokens = num_steps * order.batch_windows * order.window_tokens
            provenance = {"parent": str(teacher.folder), "inputs": inputs, "distilled_tokens": tokens}
            save_child(model, child.spec, load_tokenizer(teacher), temporary, provenance)
            write_json(temporary / HISTORY, [asdict(step) | step.terms for step in history])
