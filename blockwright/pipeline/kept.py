"""What was measured of whole plans, kept in the folder of unfinished work, so that a killed run measures nothing twice.

A file holds one plan's losses on some windows, and is named by both. What else they depend on, the library and the
text, is in the key that the folder is named by.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from blockwright.files import digest_of, read_json, write_json
from blockwright.pipeline.wholes import Wholes, in_fp32
from blockwright.search.choose import child_of
from blockwright.search.problem import Pair
from blockwright.search.refine import pairs_of
from blockwright.spec import Candidate, Model
from blockwright.strict import to_data
from blockwright.train.distill import GkdSettings

_CHILDREN_AT_ONCE = 4
"""Children in memory; each group takes one pass of the parent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Measures whole plans, each on the same windows once."""

    wholes: Wholes
    work: Path

    def losses(
        self, specs: Sequence[Model], start: int, end: int, on_plan: Callable[[], None] = lambda: None
    ) -> list[list[float]]:
        """KL(parent ‖ child) in nats per token, of each plan on each window from `start` to `end`."""
        paths = [self.work / f"losses-{_key(spec)}-{start}-{end}.json" for spec in specs]
        missing = {path: spec for path, spec in zip(paths, specs, strict=True) if not path.exists()}
        left = list(missing)
        for first in range(0, len(left), _CHILDREN_AT_ONCE):
            some = left[first : first + _CHILDREN_AT_ONCE]
            children = [self.wholes.child(missing[path]) for path in some]
            for path, values in zip(some, self.wholes.losses(children, start, end), strict=True):
                write_json(path, values)
                on_plan()
        return [read_json(path) for path in paths]

    def changes(
        self, spec: Model, candidates: Sequence[Candidate], end: int, on_candidate: Callable[[], None] = lambda: None
    ) -> dict[Candidate, float]:
        """What each candidate changes in a plan, on windows up to `end`; as `Wholes.changes`."""
        names = digest_of(sorted(candidate.name for candidate in candidates))[:8]
        path = self.work / f"changes-{_key(spec)}-{names}-{end}.json"
        if not path.exists():
            found = self.wholes.changes(spec, candidates, end, on_candidate)
            write_json(path, {candidate.name: value for candidate, value in found.items()})
        by_name = read_json(path)
        return {candidate: by_name[candidate.name] for candidate in candidates if candidate.name in by_name}

    def healed(self, spec: Model, steps: Sequence[Tensor], settings: GkdSettings, end: int) -> list[float]:
        """What a plan loses on windows up to `end`, distilled on so many batches; the same ones for all plans."""
        path = self.work / f"healed-{_key(spec)}-{len(steps)}-{end}.json"
        if not path.exists():
            child = self.wholes.child(spec)
            self.wholes.heal(child, steps, settings, self.work / "heal.safetensors")
            [values] = self.wholes.losses([child], 0, end)
            write_json(path, values)
        return read_json(path)

    def windows_of_changes(self) -> list[int]:
        """On how many windows candidates were measured one by one, each time."""
        return sorted(int(path.stem.rpartition("-")[2]) for path in self.work.glob("changes-*.json"))


def pair_terms(
    kept: Kept,
    parent: Model,
    pairs: Sequence[tuple[Candidate, Candidate]],
    end: int,
    on_pair: Callable[[], None] = lambda: None,
) -> tuple[Pair, ...]:
    """What pairs lose in the parent beyond what each of the two loses there, all on the same windows.

    Scores come from other windows: what text is harder for all candidates would count as what pairs lose together.

    Args:
        kept: measures them.
        parent: the library's.
        pairs: of candidates that are not the parent's own, in any format: they are measured in fp32.
        end: windows to spend.
        on_pair: called after each pair.
    """
    if not pairs:
        return ()
    singles = list(dict.fromkeys(in_fp32(candidate) for pair in pairs for candidate in pair))
    alone: Mapping[Candidate, float] = kept.changes(parent, singles, end)
    specs = [child_of(parent, [in_fp32(candidate) for candidate in pair]) for pair in pairs]
    together = kept.losses(specs, 0, end, on_pair)
    values = {pair: float(np.mean(losses)) for pair, losses in zip(pairs, together, strict=True)}
    return pairs_of(values, {candidate: alone[in_fp32(candidate)] for pair in pairs for candidate in pair})


def _key(spec: Model) -> str:
    return digest_of(to_data(spec))[:16]
