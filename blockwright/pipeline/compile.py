"""Stage: compile a checkpoint into an engine."""

from dataclasses import dataclass, replace
from pathlib import Path

from blockwright.compile.engine import Engine, EngineOrder, SessionSettings, build_engine, read_whole_engine
from blockwright.compile.export import FORMATS, Export, ExportOrder, Target, read_export, write_export
from blockwright.compile.flavour import FlavourName, check_writable
from blockwright.compile.replaced import check_may_be_replaced
from blockwright.errors import InputError
from blockwright.files import digest_of, new_folder
from blockwright.hw_profiles.device import this_device
from blockwright.pipeline.console import progress, say
from blockwright.pipeline.inputs import Checkpoint, open_checkpoint
from blockwright.pipeline.realise import checkpoint_spec
from blockwright.pipeline.recipe import check_formats
from blockwright.pipeline.software import engine_software, say_what_is_missing
from blockwright.pipeline.stage import Stage, running, whole
from blockwright.pipeline.tune import NUM_KINDS, check_can_be_tuned, tune_engine
from blockwright.search.plan import Plan
from blockwright.servable import STORABLE
from blockwright.spec import FP32, Block, Model, NoOp, parse_format, variant_name, with_format, with_tables
from blockwright.strict import to_data


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOrder:
    """What to build."""

    format: str | None
    """Of all layers; None where a plan says how each is stored, which it then does alone."""
    threads: int
    head: str | None = None
    """None for what suits the layers."""
    embedding: str | None = None
    """The same."""
    num_positions: int | None = None
    """Longest sequence; None for the checkpoint's own context."""
    flavour: FlavourName | None = None
    """In which operators; None for the ones that profiles are measured in."""
    tunes: bool = False
    """Whether the settings of the session are chosen by measuring here, with up to as many threads."""


def compile_checkpoint(
    checkpoint: str, order: CompileOrder, output: Path, home: Path | None = None, plan: Plan | None = None
) -> Engine:
    """Builds an ONNX Runtime engine, or reads the one that was built before from the same inputs.

    Args:
        checkpoint: a child's or a parent's folder, or a repository of the Hugging Face hub.
        order: what to build.
        output: the engine's folder.
        home: where the manifest stands; beside the output if None.
        plan: says how each layer is stored, where the order names no format.

    Raises:
        InputError: the checkpoint is broken, the context longer than its own, the plan is not of its blocks, the
            flavour lacks an operator for them, or the folder holds what is not to be replaced.
    """
    source = open_checkpoint(checkpoint)
    model = _stored(source, order, plan)
    if order.flavour is not None:
        check_writable(model, order.flavour)
    check_context(source, order.num_positions)
    inputs = {"order": to_data(order), "checkpoint": source.digest, "stored": digest_of(to_data(model))}
    num_positions = source.spec.max_positions if order.num_positions is None else order.num_positions
    if order.tunes:
        check_can_be_tuned(num_positions)
        inputs |= {"device": this_device().digest, "software": digest_of(engine_software())}
    stage = Stage(name=f"compile-{output.name}", output=output, inputs=inputs, home=home, reads=whole(source.folder))
    if (before := stage.reuse(lambda: read_whole_engine(output))) is not None:
        say(f"{stage.name:<9} unchanged  {output}")
        return before
    check_may_be_replaced(output, "onnxruntime")
    built = EngineOrder(
        model=model,
        weights_format=None if order.format is None or order.head or order.embedding else parse_format(order.format),
        num_positions=num_positions,
        session=SessionSettings(num_threads=order.threads),
        built_from=source.digest,
        flavour=order.flavour,
    )
    num_steps = 1 + NUM_KINDS * order.tunes
    # What stood there stays until the engine is tuned too.
    with running(stage), progress(f"compile {output.name}", num_steps) as advance, new_folder(output) as folder:
        engine = build_engine(built, source.folder, folder)
        advance()
        if order.tunes:
            say_what_is_missing()
            engine = tune_engine(folder, advance)
    return engine


def export_checkpoint(
    checkpoint: str,
    target: Target,
    weights: str | None,
    output: Path,
    plan: Plan | None = None,
    num_positions: int | None = None,
) -> Export:
    """Writes what another engine loads, or reads what was written before from the same inputs.

    Args:
        checkpoint: a child's or a parent's folder, or a repository of the Hugging Face hub.
        target: who is to load it.
        weights: the format of all layers; None where a plan says how each is stored.
        output: the folder to write.
        plan: says it, where no format is given.
        num_positions: the longest text, for targets whose files say it; None for the checkpoint's own context.

    Raises:
        InputError: the checkpoint is broken, the context longer than its own, the target cannot load it, the plan is
            not of its blocks, or the folder holds what is not to be replaced.
    """
    source = open_checkpoint(checkpoint)
    if plan is None:
        assert weights is not None, "a format, or a plan that says it"
        model = with_format(source.spec, parse_format(weights, FORMATS[target]))
    else:
        check_is_of(source, plan)
        model = plan.child
    check_context(source, num_positions)
    order = ExportOrder(
        model=model,
        target=target,
        is_child=source.parent is None,
        built_from=source.digest,
        num_positions=num_positions,
    )
    stage = Stage(
        name=f"compile-{output.name}",
        output=output,
        inputs={"target": target, "checkpoint": source.digest, "stored": digest_of(to_data(model))}
        | ({} if num_positions is None else {"context": num_positions}),
        reads=whole(source.folder),
    )
    if (before := stage.reuse(lambda: read_export(output))) is not None:
        say(f"{stage.name:<9} unchanged  {output}")
        return before
    check_may_be_replaced(output, target)
    with running(stage), progress(f"compile {output.name}", 1) as advance:
        export = write_export(order, source.folder, output)
        advance()
    return export


def _stored(source: Checkpoint, order: CompileOrder, plan: Plan | None) -> Model:
    """The model, whose parts say what they are stored in."""
    if plan is None:
        assert order.format is not None, "a format, or a plan that says it"
        model = with_format(source.spec, parse_format(order.format))
    else:
        check_is_of(source, plan)
        model = plan.child
        parts = (part for block in model.layers for part in (block.mixer, block.ffn))
        formats = {part.weights for part in parts if not isinstance(part, NoOp)}
        formats |= {model.embedding_weights, model.head_format}
        check_formats("plan: child", sorted(map(str, formats)), STORABLE)
    head, embedding = (
        beside if text is None else parse_format(text, STORABLE)
        for text, beside in ((order.head, model.head_format), (order.embedding, model.embedding_weights))
    )
    return with_tables(model, embedding, head)


def check_context(source: Checkpoint, num_positions: int | None) -> None:
    """Refuses sequences longer than the checkpoint was made for."""
    if num_positions is not None and num_positions > source.spec.max_positions:
        raise InputError(
            "--context",
            got=num_positions,
            expected=f"at most the checkpoint's own, {source.spec.max_positions}",
            remedy="Ask for a shorter one.",
        )


def check_is_of(source: Checkpoint, plan: Plan) -> None:
    """Refuses a plan whose child has other blocks than the checkpoint, whatever they are stored in."""
    has, wanted = with_format(source.spec, FP32), checkpoint_spec(plan)
    if has == wanted:
        return
    got = "the child of another parent"
    if replace(has, layers=wanted.layers) == wanted and len(has.layers) == len(wanted.layers):
        layer = next(i for i, (a, b) in enumerate(zip(has.layers, wanted.layers, strict=True)) if a != b)
        got = f"{_words(wanted.layers[layer])} as layer {layer}, where the checkpoint has {_words(has.layers[layer])}"
    raise InputError(
        "plan: child",
        got=got,
        expected=f"the blocks of {source.folder}",
        remedy="Name the plan that this checkpoint was realised from, or compile the one that was.",
    )


def _words(block: Block) -> str:
    return f"{variant_name(block.mixer)} and {variant_name(block.ffn)}"
