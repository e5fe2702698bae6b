"""Measures two TensorRT engines in turn, on the GPU at hand. Apart from `measure`, for it loads no ONNX Runtime.

Times are those of texts as they are written (`profiler.written`). Memory is what the GPU has less of once an engine is
open and has written one: its plan, its workspaces, its caches and what was recorded, as profiles weigh whole children.
What is there before any engine is aside: the driver's own beginning, and what libraries load once and keep. Nothing of
this was run on a GPU yet.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from blockwright.compile.generate import AnyDecoder
from blockwright.compile.graph import Activations
from blockwright.compile.tensorrt_engine import TensorRtEngine, read_tensorrt_engine
from blockwright.compile.tensorrt_session import TensorRtDecoder, check_gpu
from blockwright.compile.tensorrt_stored import BF16
from blockwright.compile.tensorrt_target import gpu_capability
from blockwright.cost import Cost, Load, Quantity, exact
from blockwright.count import parameters
from blockwright.hw_profiles.gpu import nvidia_gpus
from blockwright.measured import MeasuredCost
from blockwright.pipeline.promises import check_has_tables, check_is_of_device, check_is_of_engine
from blockwright.profiler.gpu_device import cuda_taken
from blockwright.profiler.written import time_written, write_once
from blockwright.search.plan import Plan
from blockwright.spec import FP16, FP32, Format

_PLAIN: dict[Activations, Format] = {"float32": FP32, "float16": FP16, "bfloat16": BF16}
"""What profiles measure embedding and head in, by what an engine computes in."""


def measure_tensorrt_costs(
    pair: tuple[Path, Path],
    loads: Mapping[str, Load],
    seconds: float,
    open_engine: Callable[[Path], AnyDecoder] = TensorRtDecoder.open,
    used_bytes: Callable[[], int] | None = None,
) -> list[MeasuredCost]:
    """Measures two engines in turn at every load.

    Args:
        pair: the parent's engine and the child's.
        loads: by name.
        seconds: how long to measure each engine at each load.
        open_engine: opens one for running.
        used_bytes: how much of the device's memory is taken; None to ask CUDA.

    Raises:
        InputError: an engine cannot be opened here, or cannot hold a load.
    """
    engines = [read_tensorrt_engine(folder) for folder in pair]
    if used_bytes is None:
        for engine in engines:
            check_gpu(engine, gpu_capability())
        used_bytes = _taken_of_gpu
    write_once(open_engine(pair[0]), next(iter(loads.values())))  # and drop it: libraries have loaded what they keep
    costs: list[MeasuredCost] = []
    for name, load in loads.items():
        opened, memory = _opened(pair, load, open_engine, used_bytes)
        parent, child = time_written(opened, load, seconds)
        del opened  # before the next load opens them anew
        pairs: dict[Quantity, tuple[Cost, Cost]] = {
            "time_per_token": (parent.time_per_token, child.time_per_token),
            "time_to_first_token": (parent.time_to_first_token, child.time_to_first_token),
            "memory": (memory[0], memory[1]),
            "parameters": (exact(parameters(engines[0].model)), exact(parameters(engines[1].model))),
        }
        costs += [
            MeasuredCost(format=engines[1].format, quantity=quantity, load=name, parent=of_parent, child=of_child)
            for quantity, (of_parent, of_child) in pairs.items()
        ]
    return costs


def _opened(
    pair: tuple[Path, Path], load: Load, open_engine: Callable[[Path], AnyDecoder], used_bytes: Callable[[], int]
) -> tuple[list[AnyDecoder], list[Cost]]:
    """The engines, one after the other, and what each took of the memory once it had written a text.

    Both texts' caches are kept until the second has been weighed: what the first gave back would count as the
    second's.
    """
    opened: list[AnyDecoder] = []
    memory: list[Cost] = []
    kept: list[object] = []
    before = used_bytes()
    for folder in pair:
        opened.append(open_engine(folder))
        kept.append(write_once(opened[-1], load))
        memory.append(exact((after := used_bytes()) - before))
        before = after
    return opened, memory


def check_tensorrt_promises_hold_here(plan: Plan, engine: TensorRtEngine, gpu: str | None) -> None:
    """Refuses to hold a plan's promises against another GPU or engine than they were made for.

    Args:
        plan: the child's.
        engine: the child's.
        gpu: the name of the GPU at hand, as profiles have it; None without one.

    Raises:
        InputError: the plan rests on another device's profile, or is about another format or runtime.
    """
    check_is_of_engine(plan, engine.format, engine.target)
    plain = _PLAIN[engine.activations]
    check_has_tables(engine.model, replace(engine.model, embedding_weights=plain, head_weights=None))
    check_is_of_device(plan, gpu, "GPU")


def gpu_name() -> str | None:
    """The first GPU's, as profiles have it."""
    gpus = nvidia_gpus()
    return gpus[0][0].name if gpus else None


def _taken_of_gpu() -> int:
    torch.zeros(1, device="cuda")  # the driver's own beginning is no engine's
    return cuda_taken().used_bytes
