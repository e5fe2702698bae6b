"""Stage: score every candidate of a library."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from blockwright.files import digest_of_files, read_json, write_json
from blockwright.library import INDEX, Library, read_library
from blockwright.model.child import layer_with
from blockwright.model.parent import Parent, load_model
from blockwright.pipeline.console import progress
from blockwright.pipeline.inputs import check_text_suits, checkpoint_digest, read_text, windows_to_judge_by
from blockwright.pipeline.stage import Stage, running
from blockwright.search.scores import Score, ScoreTable, read_scores, write_scores
from blockwright.search.scoring import replace_one_kl
from blockwright.spec import Candidate
from blockwright.statistics import Estimate, estimate_mean
from blockwright.strict import to_data
from blockwright.tensors import read_tensors

_BATCH_WINDOWS = 8
_SEED_SHIFT = 1
"""Scores come from other places of the training text than the library's windows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOrder:
    """How to score."""

    text: str
    window_tokens: int
    tokens: int
    seed: int


def score_library(parent: Parent, folder: Path, order: ScoreOrder, output: Path) -> ScoreTable:
    """Scores all candidates, or reads the scores that were made before from the same inputs."""
    library = read_library(folder)
    text = read_text(order.text)
    inputs = {
        "order": to_data(order),
        "parent": checkpoint_digest(parent.folder),
        "library": digest_of_files([folder / INDEX, *(folder / entry.file for entry in library.entries)]),
        "text": text.digest,
    }
    stage = Stage(name="score", output=output, inputs=inputs)
    if (before := stage.reuse(lambda: read_scores(output))) is not None:
        return before
    windows = windows_to_judge_by(
        parent, text.training, length=order.window_tokens, num_tokens=order.tokens, seed=order.seed + _SEED_SHIFT
    )
    model = load_model(parent)
    check_text_suits(model, windows)
    with running(stage) as work:
        layers = candidate_layers(model, library, folder)
        values: dict[str, list[float]] = {candidate.name: [] for candidate in layers}
        batches = windows.ids_NT.split(_BATCH_WINDOWS)
        paths = [work / f"batch-{index:04d}.json" for index in range(len(batches))]
        resumed = sum(path.exists() for path in paths) * len(layers)
        with progress("score", len(batches) * len(layers), done=resumed) as advance:
            for ids_BT, path in zip(batches, paths, strict=True):
                if not path.exists():
                    kl = replace_one_kl(model, layers, ids_BT, on_candidate=advance)
                    write_json(path, {candidate.name: kl_B.tolist() for candidate, kl_B in kl.items()})
                for name, kl_B in read_json(path).items():
                    values[name] += kl_B
        scores = [
            _score_of(c, library, np.array(values.get(c.name, [])), windows.document_N) for c in library.candidates
        ]
        table = ScoreTable(parent=library.parent, scores=tuple(scores))
        write_scores(table, output)
    return table


def candidate_layers(model: PreTrainedModel, library: Library, folder: Path) -> dict[Candidate, nn.Module]:
    """The parent's layers with every candidate in place that is not the parent's own."""
    files = {entry.candidate: folder / entry.file for entry in library.entries}
    return {
        c: layer_with(model, library.parent, c, read_tensors(files[c]) if c in files else {})
        for c in library.candidates
        if c.variant != getattr(library.parent.layers[c.layer], c.part)
    }


def _score_of(candidate: Candidate, library: Library, kl_N: np.ndarray, document_N: np.ndarray) -> Score:
    is_own = candidate.variant == getattr(library.parent.layers[candidate.layer], candidate.part)
    # The parent's own part changes nothing, so its divergence is 0 exactly.
    estimate = Estimate(value=0.0, low=0.0, high=0.0, num_values=0) if is_own else estimate_mean(kl_N, document_N)
    return Score(candidate=candidate, metric="kl", estimate=estimate)
