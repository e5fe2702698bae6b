"""Profiles of times that are made up, of models whose cost is then known."""

import random
from dataclasses import replace

from blockwright.cost import UNIT_OF, Load, Quantity
from blockwright.hw_profiles.ceilings import Figure
from blockwright.hw_profiles.device import Device
from blockwright.hw_profiles.folder import read_profile, shipped_profiles
from blockwright.hw_profiles.profile import Backend, MemoryRow, Point, Profile, TimeRow, WholeRow
from blockwright.llama import llama
from blockwright.profiler.counted import exact_memory
from blockwright.profiler.measure import layer_names
from blockwright.profiler.points import decode_points, prefill_points
from blockwright.spec import (
    FP32,
    Attention,
    Block,
    Format,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    Variant,
    variant_name,
    with_format,
)

INT4 = Format(name="int4", group_size=32)
MIXERS = (Attention(num_kv_heads=4), Attention(num_kv_heads=2), LinearMixer(), NoOp())
FFNS = (GatedFFN(width=128), GatedFFN(width=96), GatedFFN(width=32), LinearFFN(), NoOp())
LOAD = Load(batch=1, prompt_tokens=40, new_tokens=24)
SHIPPED = read_profile(shipped_profiles()[0])
POWER = replace(SHIPPED.ceilings, busy_w=Figure(value=50.0, low=45.0, high=60.0, origin="measured", source="made up"))
ADDITIVE: list[Quantity] = [quantity for quantity in UNIT_OF if quantity != "throughput"]


def model_of(layers: tuple[Block, ...] = (Block(mixer=MIXERS[0], ffn=FFNS[0]),) * 4, **changes: object) -> Model:
    return replace(
        llama(layers, hidden_size=64, num_heads=4, head_dim=32, vocab_size=96, max_positions=512),
        **changes,
    )


def random_model(seed: int) -> Model:
    generator = random.Random(seed)
    return model_of(tuple(Block(mixer=generator.choice(MIXERS), ffn=generator.choice(FFNS)) for _ in range(4)))


def time_of_part(variant: Variant, point: Point) -> float:
    """Made up: grows with width, heads, tokens and slots."""
    match variant:
        case Attention(num_kv_heads=num_kv_heads):
            return 1e-6 * (20 + 5 * num_kv_heads + 0.1 * point.slots) * point.new_tokens
        case GatedFFN(width=width):
            return 1e-6 * (3 + 0.2 * width) * point.new_tokens
        case LinearMixer() | LinearFFN():
            return 2e-6 * point.new_tokens
        case NoOp():
            return 0.0


def share_of_part(part: Variant) -> float:
    """Made up: what a part takes in a whole model, as a share of its time in fp32."""
    return 0.9 if not isinstance(part, NoOp) and part.weights == INT4 else 1.1


def whole_time(model: Model, point: Point) -> float:
    parts = [part for block in model.layers for part in (block.mixer, block.ffn)]
    head_s = 30e-6 if model.embedding_weights == FP32 else 50e-6
    return head_s + sum(share_of_part(part) * time_of_part(part, point) for part in parts)


def profile_of(
    points: list[Point], held_out_error: float = 0.0, backend: Backend = "onnxruntime", weights: Format = FP32
) -> Profile:
    times = [
        TimeRow(
            backend=backend,
            format=str(weights),
            part="mixer" if variant in MIXERS else "ffn",
            variant=variant_name(variant),
            point=point,
            time_s=time_of_part(variant, point),
            low_s=0.0,
            high_s=1.0,
            num_samples=9,
            num_rejected=0,
            origin="measured",
        )
        for point in points
        for variant in (*MIXERS, *FFNS)
        if not isinstance(variant, NoOp)
    ]
    wholes = [
        WholeRow(
            backend=backend,
            format=str(weights),
            layers=layer_names(model),
            is_anchor=index < 3,
            point=point,
            time_s=whole_time(with_format(model, weights), point) * (1 if index < 3 else 1 + held_out_error),
            low_s=0.0,
            high_s=1.0,
            num_samples=9,
            num_rejected=0,
            origin="measured",
        )
        for point in points
        for index, model in enumerate([model_of(), *(random_model(seed) for seed in range(5))])
    ]
    counted = int(exact_memory(with_format(model_of(), weights), LOAD).of_model(with_format(model_of(), weights)).value)
    memory = [
        MemoryRow(
            backend=backend,
            format=str(weights),
            batch=LOAD.batch,
            prompt_tokens=LOAD.prompt_tokens,
            new_tokens=LOAD.new_tokens,
            peak_bytes=counted + workspace,
            exact_bytes=counted,
            origin="measured",
        )
        for workspace in (90_000, 100_000)
    ]
    device = Device(vendor="none", model="made up", architecture="none", num_cores=1, memory_bytes=2**30, features=())
    return replace(
        SHIPPED,
        name="made-up",
        device=device,
        software={},
        model=model_of(),
        times=tuple(times),
        wholes=tuple(wholes),
        memory=tuple(memory) if backend == "onnxruntime" else (),
        accuracy=(),
    )


def measured_points() -> list[Point]:
    return [*decode_points(LOAD), *prefill_points(LOAD)]
