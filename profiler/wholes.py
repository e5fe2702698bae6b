"""Times whole models at one point as they are served: from an engine's files, in a process of its own (see `process`).

python -m blockwright.profiler.wholes REQUEST.json
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from blockwright.compile.engine import EngineOrder, SessionSettings, write_engine
from blockwright.compile.session import Decoder
from blockwright.files import read_json, write_json
from blockwright.hw_profiles.profile import Point
from blockwright.profiler.bench import Bench
from blockwright.profiler.clock import Effort, Samples, sample_in_turn
from blockwright.profiler.onnx_blocks import session_run
from blockwright.profiler.process import run_module
from blockwright.profiler.reference import make_reference
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Model
from blockwright.strict import from_data, to_data

_EFFORT = 4
"""A whole model is timed so many times as long as a part: all that parts leave open is fitted on a few of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholesRequest:
    """Which engines to time, and how."""

    folders: tuple[str, ...]
    point: Point
    session: SessionSettings
    seconds: float
    min_turns: int
    has_judge: bool
    reference_s: float | None
    """What the reference kernel takes at its best, if that is known."""


def sample_models(bench: Bench, models: list[Model], point: Point) -> list[Samples]:
    """Times of one step or one prefill chunk of whole models, choosing the next token included, in turn.

    Raises:
        InputError: the process failed.
    """
    with tempfile.TemporaryDirectory() as home:
        folders = [Path(home) / f"model-{index}" for index in range(len(models))]
        for model, folder in zip(models, folders, strict=True):
            folder.mkdir()
            order = EngineOrder(
                model=model,
                weights_format=None,
                num_positions=point.slots,
                session=bench.session,
                built_from="random weights",
                flavour=bench.flavour,
            )
            write_engine(order, random_weights(model), folder)
        judge = bench.effort.judge
        request = WholesRequest(
            folders=tuple(map(str, folders)),
            point=point,
            session=bench.session,
            seconds=_EFFORT * bench.effort.seconds,
            min_turns=bench.effort.min_turns,
            has_judge=judge is not None,
            reference_s=None if judge is None else judge.least_s,
        )
        write_json(Path(home) / "request.json", to_data(request))
        answer = run_module("blockwright.profiler.wholes", [str(Path(home) / "request.json")], "whole models")
    return list(from_data(tuple[Samples, ...], json.loads(answer), "times of whole models"))


def sample_engines(request: WholesRequest) -> list[Samples]:
    """The same in this process, from engines that are written."""
    judge = make_reference(request.reference_s) if request.has_judge else None
    effort = Effort(seconds=request.seconds, min_turns=request.min_turns, judge=judge)
    decoders = [Decoder.open(Path(folder), request.session, is_fresh=True) for folder in request.folders]
    runs = [session_run(decoder.session, decoder.engine.model, request.point) for decoder in decoders]
    return sample_in_turn(runs, effort, request.session.num_threads)


if __name__ == "__main__":
    asked = from_data(WholesRequest, read_json(Path(sys.argv[1])), "request")
    print(json.dumps([to_data(samples) for samples in sample_engines(asked)]))
