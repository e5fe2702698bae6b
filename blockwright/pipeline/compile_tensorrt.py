"""Stage: compile a checkpoint into a TensorRT engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blockwright.compile.replaced import check_is_kit_or_new, check_may_be_replaced
from blockwright.compile.slots import slots_for
from blockwright.compile.tensorrt_checks import check_groups, check_kit_groups, expected_of
from blockwright.compile.tensorrt_engine import (
    TensorRtEngine,
    TensorRtOrder,
    build_tensorrt_engine,
    read_tensorrt_engine,
)
from blockwright.compile.tensorrt_kit import TensorRtKitOrder, write_tensorrt_kit
from blockwright.compile.tensorrt_package import Form
from blockwright.compile.tensorrt_stored import FORMATS, Stored, stored_for_tensorrt
from blockwright.compile.tensorrt_target import (
    check_kit_capabilities,
    choose_capabilities,
    choose_package,
    gpu_capability,
    is_of_rtx,
)
from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.files import digest_of
from blockwright.hw_profiles.folder import read_profile
from blockwright.pipeline.compile import check_context, check_is_of
from blockwright.pipeline.console import progress
from blockwright.pipeline.inputs import Checkpoint, open_checkpoint
from blockwright.pipeline.stage import Stage, check_is_no_folder, check_spares, running, whole
from blockwright.profiler.counted import tensorrt_cache_bytes
from blockwright.search.plan import Plan
from blockwright.spec import Format, FormatName, parse_format
from blockwright.strict import to_data

DEFAULT_POSITIONS = 4096
"""Longest sequence unless told otherwise: the caches are as long from the first token on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRtCompileOrder:
    """What to build."""

    format: str | None
    """Of all layers; None where a plan says how each is stored."""
    capabilities: tuple[str, ...] | None = None
    """As ``sm86``; None for what suits the installed TensorRT."""
    num_positions: int | None = None
    """Longest sequence; None for the checkpoint's own context, or 4096 where that is longer."""
    most_sequences: int = 1
    head: str | None = None
    """In int4; None for what the layers compute in."""
    embedding: str | None = None
    """In int8 or int4; None for what the layers compute in."""
    form: Form = "fused"
    """``decomposed`` for TensorRT 10.3 to 10.14, as on Jetsons with JetPack 6."""


def compile_for_tensorrt(
    checkpoint: str, order: TensorRtCompileOrder, output: Path, plan: Plan | None = None
) -> tuple[TensorRtEngine, bool]:
    """Builds a TensorRT engine, or reads the one that was built before from the same inputs.

    Args:
        checkpoint: a child's or a parent's folder, or a repository of the Hugging Face hub.
        order: what to build.
        output: the engine's folder.
        plan: says how each layer is stored, where the order names no format.

    Returns:
        The engine, and whether it was built now.

    Raises:
        InputError: the checkpoint is broken, the plan is not of its blocks, no TensorRT is installed that builds for
            what was asked, it refuses the network, or the folder holds what is not to be replaced.
    """
    source, stored, num_positions = _stored(checkpoint, order, plan)
    gpu = gpu_capability()
    package = choose_package(gpu, order.form)
    check_groups(expected_of(stored.model, order.form), package)
    capabilities = choose_capabilities(package, order.capabilities, gpu, stored.narrow)
    stage = Stage(
        name=f"compile-{output.name}",
        output=output,
        inputs={
            "order": to_data(order),
            "checkpoint": source.digest,
            "stored": digest_of(to_data(stored.model)),
            "package": package.title,
            "capabilities": list(capabilities),
        },
        reads=whole(source.folder),
    )
    if (before := stage.reuse(lambda: read_tensorrt_engine(output, is_whole=True))) is not None:
        return before, False
    check_may_be_replaced(output, "tensorrt")
    built = TensorRtOrder(
        stored=stored,
        num_positions=num_positions,
        most_sequences=order.most_sequences,
        package=package,
        capabilities=capabilities,
        built_from=source.digest,
        form=order.form,
    )
    with running(stage), progress(f"compile {output.name}", 1) as advance:
        engine = build_tensorrt_engine(built, source.folder, output)
        advance()
    return engine, True


def pack_tensorrt_kit(checkpoint: str, order: TensorRtCompileOrder, output: Path, plan: Plan | None = None) -> int:
    """Writes a kit that builds the engine on the device itself; TensorRT need not be installed here.

    Args:
        checkpoint: as `compile_for_tensorrt`, and the next two.
        order: what to build.
        output: the zip.
        plan: says how each layer is stored.

    Returns:
        The kit's size in bytes.

    Raises:
        InputError: the checkpoint is broken, the plan is not of its blocks, TensorRT keeps no such format, or
            TensorRT-RTX does not build for what was asked.
    """
    check_is_no_folder(output)
    check_is_kit_or_new(output)
    if output.suffix != ".zip":
        raise InputError("--out", got=str(output), expected="a file that ends in .zip", remedy="Write: --out kit.zip")
    source, stored, num_positions = _stored(checkpoint, order, plan)
    check_spares(output, whole(source.folder))
    check_kit_capabilities(order.capabilities or (), stored.narrow)
    if not order.capabilities:
        check_kit_groups(expected_of(stored.model, order.form))
    kit = TensorRtKitOrder(
        stored=stored,
        num_positions=num_positions,
        most_sequences=order.most_sequences,
        capabilities=order.capabilities,
        built_from=source.digest,
        form=order.form,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with progress(f"pack {output.name}", 1) as advance:
        size = write_tensorrt_kit(kit, source.folder, output)
        advance()
    return size


def beyond_promises(plan: Plan, engine: TensorRtEngine) -> list[str]:
    """What an engine takes more than its plan promises, because it was compiled for longer texts than a load's.

    Promises are of an engine for just the load (`profiler/counted.py`): a longer one's caches are longer from the first
    token on. A line for each load of a plan for TensorRT; none where they are as long.
    """
    if plan.backend != engine.target:
        return []
    lines = list[str]()
    for name, load in plan.loads.items():
        if slots_for(load.total_tokens) < engine.slots:
            longer = Load(batch=load.batch, prompt_tokens=engine.slots - 1, new_tokens=1)
            more = tensorrt_cache_bytes(engine.model, longer) - tensorrt_cache_bytes(engine.model, load)
            lines.append(
                f"{name} was promised of an engine for --context {load.total_tokens}; this one, for "
                f"{engine.num_positions} tokens, takes {more / 1e6:.2f} MB more, and its steps may take longer"
            )
    return lines


def capabilities_of(place: str, is_for_kit: bool) -> tuple[str, ...] | None:
    """Which GPU a profile is of, as an order names it.

    Args:
        place: the profile's name or folder.
        is_for_kit: a kit names those alone that TensorRT-RTX builds for; elsewhere it builds for the GPU it finds.

    Raises:
        InputError: there is no such profile, or it is not of an NVIDIA GPU.
    """
    device = read_profile(place).device
    name = device.compute_capability
    if name is None:
        raise InputError(
            "--profile",
            got=f"{place}, of {device.vendor} {device.model}",
            expected="a profile of an NVIDIA GPU, which TensorRT runs on",
            remedy="Name one, such as jetson_agx_orin, or leave out --target tensorrt.",
        )
    return None if is_for_kit and not is_of_rtx(name) else (name,)


def _stored(checkpoint: str, order: TensorRtCompileOrder, plan: Plan | None) -> tuple[Checkpoint, Stored, int]:
    """The checkpoint, the model as TensorRT is to store it, and its longest sequence."""
    source = open_checkpoint(checkpoint)
    check_context(source, order.num_positions)
    if plan is not None:
        check_is_of(source, plan)
    weights = None if order.format is None else _parsed(order.format, "--format")
    head = None if order.head is None else _parsed(order.head, "--head", ("int4",))
    embedding = None if order.embedding is None else _parsed(order.embedding, "--embedding", ("int8", "int4"))
    stored = stored_for_tensorrt(source.spec if plan is None else plan.child, weights, head, embedding)
    default = min(DEFAULT_POSITIONS, source.spec.max_positions)
    return source, stored, default if order.num_positions is None else order.num_positions


def _parsed(text: str, option: str, known: Sequence[FormatName] = FORMATS) -> Format:
    try:
        return parse_format(text, known)
    except InputError as error:
        raise InputError(option, got=error.got, expected=error.expected, remedy=error.remedy) from error
