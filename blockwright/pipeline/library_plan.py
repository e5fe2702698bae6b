"""What a library takes before anything is trained: what learns, in which groups, with how much memory and time."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from blockwright.errors import InputError
from blockwright.library import Library, read_library
from blockwright.model.parent import Parent
from blockwright.pipeline.workers import num_local
from blockwright.search.plan import read_plan
from blockwright.search.space import SpaceSettings, candidates
from blockwright.spec import FP32, Block, Candidate, Model, with_format
from blockwright.train.bld import (
    BldSettings,
    Loss,
    OptimizerName,
    Precision,
    Trainee,
    needs_training,
    pair_needs_training,
    trainee_of,
)
from blockwright.train.calibration import calibration_bytes
from blockwright.train.groups import Means, Schedule, Work, by_layer, schedule
from blockwright.train.initialise import InitSettings
from blockwright.train.library import measured_flops_per_s
from blockwright.train.memory import free_bytes
from blockwright.train.one_group import LibraryJob
from blockwright.train.windows import Batch
from blockwright.units import format_bytes

_MEMORY_SHARE = 0.8
"""Of what is free, the most that is planned with: allocators and libraries take some too."""
_SHARED_STATES_SHARE = 0.15
"""What states in Ray's shared memory may take of it: half of the 30 % that Ray sets aside by default."""
_DISK_SHARE = 0.5
ALL_PAIRS = "all"


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
    loss: Loss = "output"
    skip_first_tokens: int = 0
    is_per_token: bool = False
    optimizer: OptimizerName = "adamw"
    precision: Precision = "fp32"
    init: InitSettings = field(default_factory=InitSettings)
    masks_documents: bool = False
    pairs: str | None = None
    """Trains mixers and ffns together: ``all`` of the space, or those of a plan's file; None for each by itself."""
    start: str | None = None
    """A library to begin from: all of it is taken over, and pairs begin with what it has of their parts."""

    def __post_init__(self) -> None:
        if self.skip_first_tokens >= self.window_tokens:
            raise InputError(
                "--skip-first-tokens",
                got=f"{self.skip_first_tokens} of windows of {self.window_tokens}",
                expected="fewer than a window has, or no token counts",
                remedy="Skip fewer tokens, or take longer windows.",
            )

    @property
    def settings(self) -> BldSettings:
        """How to train."""
        return BldSettings(
            learning_rate=self.learning_rate,
            loss=self.loss,
            skip_first_tokens=self.skip_first_tokens,
            is_per_token=self.is_per_token,
            optimizer=self.optimizer,
            precision=self.precision,
        )

    @property
    def work(self) -> Work:
        """On how much."""
        per_step = self.batch_windows * self.window_tokens
        return Work(
            num_steps=max(1, self.tokens // per_step),
            batch_windows=self.batch_windows,
            window_tokens=self.window_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryMeans:
    """What to build with; changes nothing about the result but rounding."""

    memory_bytes: float | None = None
    """None for what the device has free."""
    device: Literal["cpu", "cuda"] = "cpu"
    checkpoint_steps: int = 200
    ray: str | None = None
    """Whose workers train: as for `workers`; None for this process."""

    @property
    def num_sharing(self) -> int:
        """Processes that train in one memory at once: on a GPU one, on CPUs as many as workers have been given."""
        if self.ray is None or self.device == "cuda":
            return 1
        return num_local(self.ray) or os.cpu_count() or 1

    @property
    def planned_bytes(self) -> float:
        """The memory that the groups of one process have to fit; what is given is for each."""
        if self.memory_bytes is not None:
            return self.memory_bytes
        on_cpu = self.ray is not None and self.device == "cpu"
        share = _MEMORY_SHARE - (_SHARED_STATES_SHARE if on_cpu else 0)
        return share * free_bytes(torch.device(self.device)) / self.num_sharing


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryCount:
    """What a library takes."""

    plan: Schedule
    work: Work
    memory_bytes: float
    """That groups of one process had to fit."""
    calibration_bytes: int
    """Of the pass that finds first weights, before any group."""
    num_at_once: int
    """Groups that are trained at the same time."""
    flops_per_s: float
    """Reached in a short timing here."""

    @property
    def needed_bytes(self) -> int:
        """Of one process, at its most."""
        return max(self.calibration_bytes, self.plan.memory_bytes)

    @property
    def time_s(self) -> float:
        """Expected for all of it."""
        return (self.plan.parent_flops + self.plan.student_flops) / self.flops_per_s / self.num_at_once


def start_of(order: LibraryOrder, parent: Model) -> Library | None:
    """The library to begin from.

    Raises:
        InputError: it is another parent's.
    """
    if order.start is None:
        return None
    found = read_library(Path(order.start))
    if found.parent != parent:
        raise InputError(
            "--start", got=f"{order.start}, of another parent", expected="a library of this one", remedy="Name its own."
        )
    return found


def trainees_of(order: LibraryOrder, parent: Model) -> tuple[Trainee, ...]:
    """All that has to learn.

    Raises:
        InputError: the plan of the pairs is another parent's, or there is nothing to train.
    """
    offered = candidates(parent, order.space)
    if order.pairs is None:
        found = [trainee_of(parent, candidate) for candidate in offered if needs_training(parent, candidate)]
    else:
        blocks = _all_blocks(offered, parent) if order.pairs == ALL_PAIRS else _planned_blocks(order.pairs, parent)
        pairs = [(layer, block) for layer, block in blocks if pair_needs_training(parent, layer, block)]
        found = [Trainee(layer=layer, block=block, parts=("mixer", "ffn")) for layer, block in pairs]
        if not found:
            raise InputError(
                "--pairs",
                got=f"{order.pairs}, in which every layer is the parent's own or nothing",
                expected="at least one layer to train",
                remedy="Name another plan, or 'all'.",
            )
    return tuple(found)


def count_library(
    model: PreTrainedModel, parent: Parent, order: LibraryOrder, means: LibraryMeans, memory_bytes: float, disk: float
) -> LibraryCount:
    """Counts a library and times a few steps of its training on made-up tokens.

    Args:
        model: the parent.
        parent: its checkpoint.
        order: what to build.
        means: with what.
        memory_bytes: that groups have to fit, taken before the parent was loaded.
        disk: free bytes where unfinished work goes.

    Raises:
        InputError: it cannot fit the memory; says what would.
    """
    trainees, work = trainees_of(order, parent.spec), order.work
    plain = Means(memory_bytes=memory_bytes)
    schedule(parent.spec, trainees, work, order.settings, plain)  # refuses before the timing takes its memory
    shape = (work.batch_windows, work.window_tokens)
    ids_BT = torch.randint(parent.spec.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    job = LibraryJob(
        parent=parent.spec,
        trainees=trainees,
        training=[Batch(ids_BT=ids_BT)],
        reserved=[],
        held_out=[],
        settings=order.settings,
        device=means.device,
    )
    calibration = calibration_bytes(parent.spec, trainees, order.init, work) if trainees else 0
    if calibration > memory_bytes:
        raise InputError(
            "--memory",
            got=format_bytes(memory_bytes),
            expected=f"at least {format_bytes(calibration)}, to find first weights on the parent's own states",
            remedy=f"Give {format_bytes(1.01 * calibration)}, or begin as published, with no large sums (--init).",
        )
    flops_per_s = measured_flops_per_s(model, job) if trainees else 1.0
    found = Means(memory_bytes=memory_bytes, disk_bytes=_DISK_SHARE * disk, flops_per_s=flops_per_s)
    plan = schedule(parent.spec, trainees, work, order.settings, found)
    if means.ray is not None:
        plan = by_layer(parent.spec, plan, work, order.settings)
    return LibraryCount(
        plan=plan,
        work=work,
        memory_bytes=memory_bytes,
        flops_per_s=flops_per_s,
        calibration_bytes=calibration,
        num_at_once=_num_at_once(means, len(plan.groups)),
    )


def _num_at_once(means: LibraryMeans, num_groups: int) -> int:
    """Of workers on this machine, so many as its cores bear; a cluster's are not known before it is asked."""
    if means.ray is None or means.device == "cuda":
        return 1
    bearable = (os.cpu_count() or 1) // torch.get_num_threads()
    return max(1, min(num_local(means.ray) or 1, bearable, num_groups))


def _all_blocks(offered: list[Candidate], parent: Model) -> list[tuple[int, Block]]:
    parts = {(layer, part): [] for layer in range(len(parent.layers)) for part in ("mixer", "ffn")}
    for candidate in offered:
        parts[candidate.layer, candidate.part].append(candidate.variant)
    return [
        (layer, Block(mixer=mixer, ffn=ffn))
        for layer in range(len(parent.layers))
        for mixer in parts[layer, "mixer"]
        for ffn in parts[layer, "ffn"]
    ]


def _planned_blocks(path: str, parent: Model) -> list[tuple[int, Block]]:
    child = with_format(read_plan(Path(path)).child, FP32)
    if (child.hidden_size, len(child.layers)) != (parent.hidden_size, len(parent.layers)):
        raise InputError(
            "--pairs",
            got=f"{path}: {len(child.layers)} layers of hidden size {child.hidden_size}",
            expected=f"a plan for this parent's {len(parent.layers)} layers of hidden size {parent.hidden_size}",
            remedy="Name the plan that was searched for this parent.",
        )
    return list(enumerate(child.layers))
