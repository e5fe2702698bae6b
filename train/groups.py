"""What the training of a library takes, counted before it starts, and the groups that fit a given memory.

In memory at once are the parent (fp32), the states of one layer, and of everything in a group its weights and what the
optimiser keeps: 4 + 8 bytes a number under AdamW, 4 + 4 under Muon for matrices. Students take their steps in turn, so
gradients, saved activations and Muon's workspace are those of the largest one only.

Work is counted in FLOPs of matrix products, 2 for each multiplication and addition, attention over whole windows:

    parent     F = Σ of its layers, once for each group, from the embeddings or from states on disk
    student    3 F of what learns (output, gradients of weights and of inputs), 2 F of the frozen ffn behind a mixer

Gradients of attention's products count 2 F too, as they do where they are not computed anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from blockwright.count import ffn_matrices, ffn_vectors, mixer_matrices, mixer_vectors, parameters
from blockwright.errors import InputError
from blockwright.spec import FFN, Attention, GatedFFN, Mixer, Model
from blockwright.train.bld import BldSettings, Trainee
from blockwright.units import format_bytes

DISK_BYTES_PER_S = 5e8
"""What a plain SATA SSD reads and writes; only decides whether states are kept or computed anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be trained on."""

    num_steps: int
    batch_windows: int
    window_tokens: int

    @property
    def batch_tokens(self) -> int:
        """Tokens of a step."""
        return self.batch_windows * self.window_tokens

    @property
    def tokens(self) -> int:
        """Tokens of all steps."""
        return self.num_steps * self.batch_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What there is to train with."""

    memory_bytes: float
    disk_bytes: float = 0.0
    """For states between groups; 0 for none."""
    flops_per_s: float = 1e11
    """Reached in training; decides whether reading states is faster than computing them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What is trained at once."""

    trainees: tuple[Trainee, ...]
    memory_bytes: int
    """The parent included."""
    parent_flops: float
    student_flops: float

    @property
    def first(self) -> int:
        """The first layer in which something learns."""
        return min(trainee.layer for trainee in self.trainees)

    @property
    def end(self) -> int:
        """Behind the last."""
        return max(trainee.layer for trainee in self.trainees) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """All groups, and what they take."""

    groups: tuple[Group, ...]
    keeps_states: bool
    """Whether what enters a group stands on disk; else the parent runs from the embeddings."""
    states_bytes: int
    """On disk at once, where states are kept."""
    parent_bytes: int

    @property
    def parent_flops(self) -> float:
        """Of all passes of the parent."""
        return sum(group.parent_flops for group in self.groups)

    @property
    def student_flops(self) -> float:
        """Of everything that learns."""
        return sum(group.student_flops for group in self.groups)

    @property
    def memory_bytes(self) -> int:
        """Of the largest group."""
        return max((group.memory_bytes for group in self.groups), default=self.parent_bytes)


def schedule(parent: Model, trainees: Sequence[Trainee], work: Work, settings: BldSettings, means: Means) -> Schedule:
    """As few groups as fit the memory, each as many trainees in the order of layers as go in.

    Args:
        parent: the parent.
        trainees: what is to learn.
        work: on how much.
        settings: how.
        means: with what.

    Raises:
        InputError: one trainee alone is too much for the memory.
    """
    ordered = sorted(trainees, key=lambda trainee: trainee.layer)
    groups: list[list[Trainee]] = []
    for trainee in ordered:
        if groups and group_bytes(parent, [*groups[-1], trainee], work, settings) <= means.memory_bytes:
            groups[-1].append(trainee)
            continue
        _check_fits(parent, trainee, work, settings, means)
        groups.append([trainee])
    keeps, states_bytes = _states(parent, groups, work, means)
    return _counted(parent, groups, work, settings, states_bytes, keeps=keeps)


def by_layer(parent: Model, plan: Schedule, work: Work, settings: BldSettings) -> Schedule:
    """The groups cut at every layer, so that workers find something to do, each from the embeddings.

    What fits a memory still does. Workers that get states from each other run fewer of the parent's layers than this.
    """
    cut = [
        [trainee for trainee in group.trainees if trainee.layer == layer]
        for group in plan.groups
        for layer in sorted({trainee.layer for trainee in group.trainees})
    ]
    return _counted(parent, cut, work, settings, 0, keeps=False)


def group_bytes(parent: Model, trainees: Sequence[Trainee], work: Work, settings: BldSettings) -> int:
    """The memory that a group takes, with the parent."""
    states = 6 * work.batch_tokens * parent.hidden_size * 4  # x, m, y, what positions are told by, and the next x
    kept = sum(kept_bytes(parent, trainee, settings) for trainee in trainees)
    working = max(working_bytes(parent, trainee, work, settings) for trainee in trainees)
    return 4 * parameters(parent) + states + kept + working


def kept_bytes(parent: Model, trainee: Trainee, settings: BldSettings) -> int:
    """Weights and what the optimiser keeps."""
    matrices, vectors = _numbers(parent, trainee)
    return matrices * (8 if settings.optimizer == "muon" else 12) + vectors * 12


def working_bytes(parent: Model, trainee: Trainee, work: Work, settings: BldSettings) -> int:
    """Gradients, saved activations and the optimiser's workspace while a trainee takes its step."""
    matrices, vectors = _numbers(parent, trainee)
    in_muon = 16 * matrices if settings.optimizer == "muon" else 0  # four copies inside Newton-Schulz
    in_bf16 = 2 * matrices if settings.precision == "bf16" else 0  # autocast's copy of the weights
    return 4 * (matrices + vectors) + in_muon + in_bf16 + 4 * work.batch_tokens * _saved_numbers(parent, trainee)


def training_flops(parent: Model, trainee: Trainee, work: Work) -> float:
    """FLOPs per token of one step of a trainee."""
    mixer = mixer_flops(parent, trainee.block.mixer, work.window_tokens)
    ffn = ffn_flops(parent, trainee.block.ffn)
    if trainee.parts == ("ffn",):
        return 3 * ffn
    return 3 * mixer + (3 if "ffn" in trainee.parts else 2) * ffn


def layers_flops(parent: Model, first: int, end: int, window_tokens: int) -> float:
    """FLOPs per token of some of the parent's layers."""
    blocks = parent.layers[first:end]
    return sum(mixer_flops(parent, b.mixer, window_tokens) + ffn_flops(parent, b.ffn) for b in blocks)


def mixer_flops(parent: Model, mixer: Mixer, window_tokens: int) -> float:
    """FLOPs per token of a mixer's products."""
    scores = 4 * window_tokens * parent.num_heads * parent.head_dim if isinstance(mixer, Attention) else 0
    return sum(2 * inputs * outputs for inputs, outputs in mixer_matrices(parent, mixer)) + scores


def ffn_flops(parent: Model, ffn: FFN) -> float:
    """FLOPs per token of an ffn's products."""
    return sum(2 * inputs * outputs for inputs, outputs in ffn_matrices(parent, ffn))


def _counted(
    parent: Model,
    groups: Sequence[Sequence[Trainee]],
    work: Work,
    settings: BldSettings,
    states_bytes: int,
    *,
    keeps: bool,
) -> Schedule:
    return Schedule(
        groups=tuple(
            Group(
                trainees=tuple(group),
                memory_bytes=group_bytes(parent, group, work, settings),
                parent_flops=work.tokens * _parent_flops(parent, groups, index, work, keeps),
                student_flops=work.tokens * sum(training_flops(parent, trainee, work) for trainee in group),
            )
            for index, group in enumerate(groups)
        ),
        keeps_states=keeps,
        states_bytes=states_bytes if keeps else 0,
        parent_bytes=4 * parameters(parent),
    )


def _numbers(parent: Model, trainee: Trainee) -> tuple[int, int]:
    """What learns, in matrices and in vectors."""
    shapes, vectors = list[tuple[int, int]](), 0
    if "mixer" in trainee.parts:
        shapes += mixer_matrices(parent, trainee.block.mixer)
        vectors += mixer_vectors(parent, trainee.block.mixer)
    if "ffn" in trainee.parts:
        shapes += ffn_matrices(parent, trainee.block.ffn)
        vectors += ffn_vectors(parent, trainee.block.ffn)
    return sum(inputs * outputs for inputs, outputs in shapes), vectors


def _saved_numbers(parent: Model, trainee: Trainee) -> int:
    """Numbers per token that are kept between output and gradients, and those that pass through at the widest place.

    A norm keeps three states, attention its queries, its output, once more something of that size, its keys and values,
    a gated ffn four of its width, a loss a state. Measured with torch's `saved_tensors_hooks`; a test
    holds it to that.
    """
    hidden, query = parent.hidden_size, parent.num_heads * parent.head_dim
    saved, widest = 4 * hidden, hidden
    if "mixer" in trainee.parts:
        saved += 3 * hidden
        if isinstance(trainee.block.mixer, Attention):
            kv = trainee.block.mixer.num_kv_heads * parent.head_dim
            saved += 3 * query + 2 * kv + parent.has_qk_norm * 3 * (query + kv)
            widest = max(widest, query)
    if isinstance(trainee.block.ffn, GatedFFN):
        saved += 4 * trainee.block.ffn.width
        widest = max(widest, trainee.block.ffn.width)
    return saved + hidden + 2 * widest


def _parent_flops(parent: Model, groups: Sequence[Sequence[Trainee]], index: int, work: Work, keeps: bool) -> float:
    """FLOPs per token of the parent's pass for one group."""
    first = groups[index][0].layer if keeps and index else 0
    return layers_flops(parent, first, groups[index][-1].layer + 1, work.window_tokens)


def _states(parent: Model, groups: Sequence[Sequence[Trainee]], work: Work, means: Means) -> tuple[bool, int]:
    """Whether states between groups are worth their place on disk, and how much that is."""
    boundaries = sorted({group[0].layer for group in groups[1:]} - {0})
    one = 4 * work.tokens * parent.hidden_size
    at_once = one * min(2, len(boundaries))
    anew, read = (
        work.tokens * sum(_parent_flops(parent, groups, index, work, keeps) for index in range(len(groups)))
        for keeps in (False, True)
    )
    is_faster = (anew - read) / means.flops_per_s > 2 * one * len(boundaries) / DISK_BYTES_PER_S
    return bool(boundaries) and is_faster and at_once <= means.disk_bytes, at_once


def _check_fits(parent: Model, trainee: Trainee, work: Work, settings: BldSettings, means: Means) -> None:
    needed = group_bytes(parent, [trainee], work, settings)
    if needed <= means.memory_bytes:
        return
    per_window = needed - group_bytes(
        parent, [trainee], Work(num_steps=1, batch_windows=0, window_tokens=work.window_tokens), settings
    )
    fits = int((means.memory_bytes - (needed - per_window)) / (per_window / work.batch_windows))
    smaller = f", or train with --batch {fits}" if fits >= 1 else ""
    raise InputError(
        "--memory",
        got=format_bytes(means.memory_bytes),
        expected=f"at least {format_bytes(needed)}: the parent's {format_bytes(4 * parameters(parent))} and what "
        f"{trainee.name} takes with {work.batch_windows} windows of {work.window_tokens} tokens",
        remedy=f"Give {format_bytes(1.01 * needed)}{smaller}.",
    )
