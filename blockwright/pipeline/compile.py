"""Stage: compile a checkpoint into an engine."""

from dataclasses import dataclass
from pathlib import Path

from blockwright.compile.engine import Engine, EngineOrder, SessionSettings, build_engine, read_engine
from blockwright.errors import InputError
from blockwright.pipeline.console import progress
from blockwright.pipeline.inputs import open_checkpoint
from blockwright.pipeline.stage import Stage, running
from blockwright.spec import parse_format
from blockwright.strict import to_data


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOrder:
    """What to build."""

    format: str
    threads: int
    num_positions: int | None = None
    """Longest sequence; None for the checkpoint's own context."""


def compile_checkpoint(checkpoint: str, order: CompileOrder, output: Path, home: Path | None = None) -> Engine:
    """Builds an ONNX Runtime engine, or reads the one that was built before from the same inputs.

    Args:
        checkpoint: a child's or a parent's folder, or a repository of the Hugging Face hub.
        order: what to build.
        output: the engine's folder.
        home: where the manifest stands; beside the output if None.
    """
    weights = parse_format(order.format)
    source = open_checkpoint(checkpoint)
    if order.num_positions is not None and order.num_positions > source.spec.max_positions:
        raise InputError(
            "--context",
            got=order.num_positions,
            expected=f"at most the checkpoint's own, {source.spec.max_positions}",
            remedy="Ask for a shorter one.",
        )
    stage = Stage(
        name=f"compile-{output.name}",
        output=output,
        inputs={"order": to_data(order), "checkpoint": source.digest},
        home=home,
    )
    if (before := stage.reuse(lambda: read_engine(output))) is not None:
        return before
    built = EngineOrder(
        model=source.spec,
        weights_format=weights,
        num_positions=source.spec.max_positions if order.num_positions is None else order.num_positions,
        session=SessionSettings(num_threads=order.threads),
        built_from=source.digest,
    )
    with running(stage), progress(f"compile {output.name}", 1) as advance:
        engine = build_engine(built, source.folder, output)
        advance()
    return engine
