"""Stage: build and train the block library."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from blockwright.files import new_folder, read_json, write_json
from blockwright.library import Entry, Library, read_library, write_library
from blockwright.model.parent import Parent, load_model
from blockwright.pipeline.console import progress
from blockwright.pipeline.inputs import check_text_suits, checkpoint_digest, read_text, windows_of
from blockwright.pipeline.stage import Stage, running
from blockwright.search.space import SpaceSettings, candidates
from blockwright.strict import from_data, to_data
from blockwright.train.library import BldSettings, needs_training, train_library

_HELD_OUT_WINDOWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryOrder:
    """What to build."""

    space: SpaceSettings
    text: str
    window_tokens: int
    tokens: int
    batch_windows: int
    learning_rate: float
    seed: int


def build_library(parent: Parent, order: LibraryOrder, output: Path) -> Library:
    """Trains all candidates, or reads the library that was built before from the same inputs."""
    text = read_text(order.text)
    stage = Stage(
        name="library",
        output=output,
        inputs={"order": to_data(order), "parent": checkpoint_digest(parent.folder), "text": text.digest},
        reads=(parent.folder,),
    )
    if (before := stage.reuse(lambda: read_library(output))) is not None:
        return before
    length = order.window_tokens
    training = windows_of(parent, text.training, length=length, num_tokens=order.tokens, seed=order.seed)
    held_out_tokens = _HELD_OUT_WINDOWS * length
    held_out = windows_of(parent, text.held_out, length=length, num_tokens=held_out_tokens, seed=order.seed)
    offered = candidates(parent.spec, order.space)
    settings = BldSettings(
        batch_windows=order.batch_windows,
        num_steps=max(1, order.tokens // (order.batch_windows * length)),
        learning_rate=order.learning_rate,
        seed=order.seed,
    )
    model = load_model(parent)
    check_text_suits(model, training)
    with running(stage) as work:
        path = work / "finished.json"
        finished = [from_data(Entry, data, str(path)) for data in read_json(path)] if path.exists() else []
        entries: list[Entry] = []
        to_train = [c for c in offered if needs_training(parent.spec, c)]
        num_layers = len({c.layer for c in to_train})
        resumed = num_layers - len({c.layer for c in to_train if c not in {entry.candidate for entry in finished}})
        with progress("library", num_layers * settings.num_steps, done=resumed * settings.num_steps) as advance:
            layers = train_library(
                model,
                parent.spec,
                offered,
                training.ids_NT,
                held_out.ids_NT,
                settings,
                work,
                finished,
                on_step=lambda layer: advance(f"layer {layer + 1} of {len(parent.spec.layers)}"),
            )
            for layer_entries in layers:
                entries += layer_entries
                write_json(path, [to_data(entry) for entry in entries])
        library = Library(
            parent=parent.spec,
            parent_folder=str(parent.folder),
            candidates=tuple(offered),
            entries=tuple(entries),
            trained_tokens=settings.num_steps * settings.batch_windows * length,
            settings=asdict(settings),
        )
        with new_folder(output) as temporary:
            for entry in entries:
                shutil.copyfile(work / entry.file, temporary / entry.file)
            write_library(library, temporary)
    return library
