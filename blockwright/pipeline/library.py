"""Stage: build and train the block library."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blockwright.errors import InputError
from blockwright.files import digest_of_files, new_folder, write_json
from blockwright.library import CURVES, Library, read_library, write_library
from blockwright.model.parent import Parent, load_model
from blockwright.pipeline.console import progress, say
from blockwright.pipeline.inputs import (
    Text,
    TrainingWindows,
    check_text_suits,
    checkpoint_digest,
    read_text,
    training_windows,
    windows_of,
)
from blockwright.pipeline.library_plan import (
    ALL_PAIRS,
    LibraryCount,
    LibraryMeans,
    LibraryOrder,
    count_library,
    start_of,
    trainees_of,
)
from blockwright.pipeline.library_table import count_words
from blockwright.pipeline.library_tasks import train_by_workers
from blockwright.pipeline.stage import Stage, running
from blockwright.pipeline.workers import check_where, workers
from blockwright.search.space import candidates
from blockwright.strict import to_data
from blockwright.train.bld import counts_of
from blockwright.train.library import entries_of, train_library
from blockwright.train.one_group import LibraryJob
from blockwright.train.reserved import reserve
from blockwright.train.trained import Trained
from blockwright.train.windows import Batch, WindowStore

_HELD_OUT_WINDOWS = 8
_RESERVED_WINDOWS = 8
"""Of the training text, beyond what is trained on: to choose between first and trained weights."""

_MOST_NAMED = 2
"""Of candidates that training made worse: there may be hundreds, and the curves have them all."""


def build_library(parent: Parent, order: LibraryOrder, output: Path, means: LibraryMeans | None = None) -> Library:
    """Trains all that needs it, or reads the library that was built before from the same inputs.

    Raises:
        InputError: something about the input has to be mended, or the memory is too small; says what would fit.
    """
    means = LibraryMeans() if means is None else means
    if means.ray is not None:
        check_where(means.ray)
    text = read_text(order.text)
    stage = _stage(parent, order, text, output)
    if (before := stage.reuse(lambda: read_library(output))) is not None:
        return before
    trainees_of(order, parent.spec)
    memory_bytes = means.planned_bytes
    model = load_model(parent)
    with running(stage) as work:
        windows, reserved = _windows(parent, order, text, work)
        if (words := windows.shortage(order.tokens)) is not None:
            say(words)
        check_text_suits(model, windows.store)
        disk = float(shutil.disk_usage(work).free)
        count = count_library(model, parent, order, means, memory_bytes, disk)
        say(count_words(count))
        job = _job(parent, order, means, windows, reserved, _held_out(parent, order, text))
        num_steps, num_groups = count.work.num_steps, len(count.plan.groups)
        if means.ray is None:
            with progress("library", num_groups * num_steps) as advance:

                def show(group: int, step: int) -> None:
                    advance(f"group {group + 1} of {num_groups}", to=group * num_steps + step)

                trained = train_library(model, job, count.plan, work, show)
        else:
            groups = [group.trainees for group in count.plan.groups]
            del model  # workers have their own
            with workers(means.ray, means.device) as pool, progress("library, layers", len(groups)) as advance:
                trained = train_by_workers(
                    pool, parent.folder, job, groups, work, lambda num_done: advance(to=num_done)
                )
        library = _library(parent, order, trained, windows.digest)
        with new_folder(output) as temporary:
            _write(library, order, trained, work, temporary)
    return library


def _stage(parent: Parent, order: LibraryOrder, text: Text, output: Path) -> Stage:
    inputs = {
        "order": to_data(order),
        "parent": checkpoint_digest(parent.folder),
        "text": text.digest,
        "begun_from": digest_of_files(_read_files(order)),
    }
    return Stage(name="library", output=output, inputs=inputs, reads=(parent.folder, *_read_files(order)))


def count_for(parent: Parent, order: LibraryOrder, output: Path, means: LibraryMeans) -> LibraryCount:
    """What building the library would take; trains and writes nothing.

    Raises:
        InputError: as `build_library`, but for the text, which is not read.
    """
    memory_bytes = means.planned_bytes
    place = next(folder for folder in (output.resolve(), *output.resolve().parents) if folder.exists())
    return count_library(load_model(parent), parent, order, means, memory_bytes, float(shutil.disk_usage(place).free))


def _read_files(order: LibraryOrder) -> list[Path]:
    plan = [] if order.pairs in (None, ALL_PAIRS) else [Path(order.pairs)]
    return plan + ([] if order.start is None else [Path(order.start)])


def _windows(parent: Parent, order: LibraryOrder, text: Text, work: Path) -> tuple[TrainingWindows, list[Batch]]:
    """Windows to train on, and others of the same text to choose weights by."""
    found = training_windows(
        parent,
        text,
        length=order.window_tokens,
        num_tokens=order.tokens + _RESERVED_WINDOWS * order.window_tokens,
        seed=order.seed,
        folder=work / "tokens",
        masks_documents=order.masks_documents,
    )
    training, reserved = reserve(found.store, _RESERVED_WINDOWS, order.tokens // order.window_tokens)
    return replace(found, store=training), _all_batches(reserved, order)


def _held_out(parent: Parent, order: LibraryOrder, text: Text) -> list[Batch]:
    length = order.window_tokens
    num_tokens = _HELD_OUT_WINDOWS * length
    windows = windows_of(parent, text.held_out, length=length, num_tokens=num_tokens, seed=order.seed)
    return _all_batches(windows, order)


def _all_batches(windows: WindowStore, order: LibraryOrder) -> list[Batch]:
    found = [windows.read(rows) for rows in torch.arange(windows.num_windows).split(order.batch_windows)]
    found = found if order.masks_documents else [Batch(ids_BT=batch.ids_BT) for batch in found]
    if not any(counts_of(batch, order.skip_first_tokens).any() for batch in found):
        raise InputError(
            "--skip-first-tokens",
            got=f"{order.skip_first_tokens}, more than any document has in {windows.num_windows} windows",
            expected="tokens that count, in the text to judge by",
            remedy="Skip fewer tokens, or take longer documents.",
        )
    return found


def _job(
    parent: Parent,
    order: LibraryOrder,
    means: LibraryMeans,
    windows: TrainingWindows,
    reserved: list[Batch],
    held_out: list[Batch],
) -> LibraryJob:
    start = start_of(order, parent.spec)
    entries = () if start is None else start.entries
    return LibraryJob(
        parent=parent.spec,
        trainees=trainees_of(order, parent.spec),
        training=windows.batches(order.batch_windows, order.work.num_steps, order.seed),
        reserved=reserved,
        held_out=held_out,
        settings=order.settings,
        init=order.init,
        starts={entry.candidate: Path(order.start or "").resolve() / entry.file for entry in entries},
        device=means.device,
        checkpoint_steps=means.checkpoint_steps,
    )


def _library(parent: Parent, order: LibraryOrder, trained: list[Trained], digest: str) -> Library:
    """The index: of what was taken over, all that was not trained again."""
    entries, blocks = entries_of(trained)
    start = start_of(order, parent.spec)
    offered = candidates(parent.spec, order.space) if order.pairs is None else []
    formats = order.space.formats_by_layer(len(parent.spec.layers))
    if start is not None:
        ours = {entry.candidate for entry in entries}
        pairs = {(block.layer, block.block) for block in blocks}
        entries = (*(entry for entry in start.entries if entry.candidate not in ours), *entries)
        blocks = (*(block for block in start.blocks if (block.layer, block.block) not in pairs), *blocks)
        offered = list(dict.fromkeys([*start.candidates, *offered]))
        formats = formats or start.formats
    _tell(trained)
    return Library(
        parent=parent.spec,
        parent_folder=str(parent.folder),
        candidates=tuple(offered),
        entries=entries,
        trained_tokens=order.work.tokens,
        settings={"seed": order.seed, "batch_windows": order.batch_windows, "num_steps": order.work.num_steps}
        | {"data": digest, "start": order.start, "init": to_data(order.init)}
        | to_data(order.settings),
        blocks=blocks,
        formats=formats,
    )


def _tell(trained: list[Trained]) -> None:
    for result in trained:
        if result.stopped_at is not None:
            state = "first weights are" if result.kept == "initial" else "last good state is"
            words = f"its loss was no number at batch {result.stopped_at}, its {state} kept"
            say(f"warning   {result.file}: {words}")
    worse = [result for result in trained if result.stopped_at is None and result.kept == "initial"]
    if worse:
        named = [
            f"{result.trainee.name} {result.initial_reserved_nmse:.3g} to {result.trained_reserved_nmse:.3g}"
            for result in worse[:_MOST_NAMED]
        ]
        others = f" and {len(worse) - _MOST_NAMED} more" if len(worse) > _MOST_NAMED else ""
        say(f"note      {len(worse)} of {len(trained)} keep their first weights, for training made them worse:")
        say(f"          {', '.join(named)}{others} on reserved training text ({CURVES})")


def _judged(result: Trained) -> dict[str, Any]:
    """What a curve leaves open: whether other text bore it out, and which weights are kept."""
    return {
        "held_out_nmse": {"initial": result.initial_nmse, "trained": result.trained_nmse},
        "reserved_nmse": {"initial": result.initial_reserved_nmse, "trained": result.trained_reserved_nmse},
        "kept": result.kept,
    }


def _write(library: Library, order: LibraryOrder, trained: list[Trained], work: Path, folder: Path) -> None:
    curves: dict[str, Any] = {result.trainee.name: to_data(result.curve) | _judged(result) for result in trained}
    ours = {result.file for result in trained}
    for file in library.files:
        shutil.copyfile((work if file in ours else Path(order.start or "")) / file, folder / file)
    write_json(folder / CURVES, curves)
    write_library(library, folder)
