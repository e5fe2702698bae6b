"""Stage: score every candidate of a library."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockwright.errors import InputError
from blockwright.files import digest_of_files
from blockwright.library import INDEX, Library, read_library
from blockwright.model.parent import Parent, load_model, load_tokenizer
from blockwright.pipeline.candidates import candidate_layers, candidates_in
from blockwright.pipeline.console import say
from blockwright.pipeline.inputs import Text, check_text_suits, checkpoint_digest, read_text, windows_to_judge_by
from blockwright.pipeline.recipe import check_distinct, check_formats
from blockwright.pipeline.rounds import Race, Run, Undecided, Yardsticks, score_in_rounds
from blockwright.pipeline.stage import Stage, check_is_no_folder, running, whole
from blockwright.search.metrics import TextMetrics, load_function
from blockwright.search.scores import ScoreTable, read_scores, write_scores
from blockwright.search.task import Question, read_questions
from blockwright.servable import SCORABLE
from blockwright.spec import parse_format
from blockwright.strict import to_data
from blockwright.train.sources import local_paths

TASK = "task"
_BUILT_IN = ("kl", "lm_loss")
_SEED_SHIFT = 1
"""Scores come from other places of the training text than the library's windows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOrder:
    """How to score."""

    text: str
    window_tokens: int
    tokens: int
    seed: int
    metrics: tuple[str, ...] = ("kl",)
    """``kl``, ``lm_loss``, or a function as ``path/to/file.py:function``; see `search/metrics.py`."""
    task: str | None = None
    """A file of multiple-choice items for the metric ``task``; see `search/task.py`."""
    formats: tuple[str, ...] = ("fp32",)
    """How weights are stored: every candidate is scored in each."""
    race: dict[str, Any] | None = None
    """All that decides who stays in a race, as plain data; None for no race."""


def score_library(
    parent: Parent,
    folder: Path,
    order: ScoreOrder,
    output: Path,
    undecided: Undecided | None = None,
    run: Run | None = None,
) -> ScoreTable:
    """Scores all candidates, or reads the scores that were made before from the same inputs.

    Args:
        parent: the library's.
        folder: the library.
        order: how to score.
        output: the table to write.
        undecided: chooses after each round who goes on; `order.race` must say all that it depends on beside the
            scores. None for no race: all candidates on all windows.
        run: runs candidates somewhere else, such as `pipeline/score_tasks.py`; None for here.

    Raises:
        InputError: the library, the text, a metric or the items have to be mended, or a score is no finite number.
    """
    assert (undecided is None) == (order.race is None), "what decides a race is part of the stage's key"
    check_is_no_folder(output)
    library = read_library(folder)
    if library.blocks:
        say(f"score     {len(library.blocks)} pairs trained together are left out: a score is of a mixer or ffn alone")
    text = read_text(order.text)
    yardsticks = read_yardsticks(order, parent)
    stage = _stage(parent, library, folder, order, text, output)
    if (before := stage.reuse(lambda: read_scores(output))) is not None:
        return before
    windows = windows_to_judge_by(
        parent, text.training, length=order.window_tokens, num_tokens=order.tokens, seed=order.seed + _SEED_SHIFT
    )
    model = load_model(parent)
    check_text_suits(model, windows)
    candidates = candidates_in(library, [parse_format(weights) for weights in order.formats])
    with running(stage) as work:
        race = Race(
            parent=library.parent,
            model=model,
            candidates=candidates,
            layers=candidate_layers(model, library, folder, candidates),
            yardsticks=yardsticks,
            windows=windows,
            undecided=undecided,
            run=run,
            formats=library.formats,
        )
        table = score_in_rounds(race, work)
        write_scores(table, output)
    return table


def _stage(parent: Parent, library: Library, folder: Path, order: ScoreOrder, text: Text, output: Path) -> Stage:
    files = [Path(metric.rpartition(":")[0]) for metric in order.metrics if metric not in _BUILT_IN]
    items = [] if order.task is None else [Path(order.task)]
    inputs = {
        "order": to_data(order),
        "parent": checkpoint_digest(parent.folder),
        "library": digest_of_files([folder / INDEX, *(folder / entry.file for entry in library.entries)]),
        "text": text.digest,
        "metrics": digest_of_files(files + items),
    }
    reads = (*whole(parent.folder), *whole(folder), *local_paths(order.text), *files, *items)
    return Stage(name="score", output=output, inputs=inputs, reads=reads)


def read_yardsticks(order: ScoreOrder, parent: Parent) -> Yardsticks:
    """Loads the metrics, so that a mistake in them is found before any work.

    Raises:
        InputError: names the metric, or the file and line of the item, that has to be mended.
    """
    check_formats("score.formats", order.formats, SCORABLE)
    functions = tuple(load_function(metric) for metric in order.metrics if metric not in _BUILT_IN)
    for name, _ in functions:
        if name in (*_BUILT_IN, TASK):
            raise InputError(
                "score.metrics",
                got=f"a function named {name}",
                expected="a name that no metric of ours has",
                remedy="Rename the function.",
            )
    names = [metric.rpartition(":")[2] for metric in order.metrics]
    check_distinct("score.metrics", names)
    questions: list[Question] = []
    if order.task is not None:
        questions = read_questions(Path(order.task), load_tokenizer(parent), parent.spec.max_positions)
    return Yardsticks(
        metrics=(*names, *[TASK] * (order.task is not None)),
        of_windows=TextMetrics(
            has_kl="kl" in order.metrics, has_lm_loss="lm_loss" in order.metrics, functions=functions
        ),
        questions=tuple(questions),
    )
