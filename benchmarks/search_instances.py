"""The instances of `search.py`: made up in the manner of Puzzle (arXiv 2411.19146), seeded.

Each layer takes one of its whole blocks, a mixer with an ffn. Scores rise noisily as blocks get cheaper, by a
log-normal importance of the layer, and a block differs by about 10 % from mixer and ffn together; memory adds up
exactly; times differ by about 3 % a variant from what its size would take, and devices differ in what mixers take
beside ffns. Limits are set in two ways:

pressing    times differ from layer to layer too; the best choice at random prices is made, and each limit put within
            2 % of what it costs, or nearer, so that every limit has a price in the relaxation, or most have
typical     a variant takes the same time in every layer; each limit is 50 to 70 % of what the parent costs

Shapes: L layers, M mixers, F ffns, C blocks of a layer, R rows.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from blockwright.search.arrays import Arrays
from blockwright.search.problem import Choice, Limit, Problem
from blockwright.search.relaxation import relax
from blockwright.spec import FFN, Attention, Candidate, Full, GatedFFN, LinearFFN, LinearMixer, Mixer, NoOp, Window

Limits = Literal["pressing", "typical"]
NEAR, TRIES = (0.02, 0.01, 0.005, 0.002), 8
"""How far pressing limits are from what a choice costs, as a share, and draws of each; the first draw in which every
limit has a price is taken, or the one in which most have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of an instance."""

    num_layers: int
    num_mixers: int
    num_ffns: int
    loads: tuple[int, ...]
    """Each load's device."""
    has_memory: bool = True

    @property
    def name(self) -> str:
        """Layers × choices."""
        return f"{self.num_layers} × {self.num_mixers * self.num_ffns}"


LARGE = Shape(num_layers=80, num_mixers=6, num_ffns=9, loads=(0, 1))
SMALL = Shape(num_layers=32, num_mixers=6, num_ffns=7, loads=(0, 1))
BIG = Shape(num_layers=126, num_mixers=20, num_ffns=20, loads=(0, 0, 1, 1, 2, 2, 3, 3), has_memory=False)
LIMITS: tuple[Limits, ...] = ("pressing", "typical")
SEEDS = 9
"""Drawn of a shape and a kind of limits."""


def mixers(count: int) -> list[Mixer]:
    """So many mixers, the parent's first, nothing last."""
    reaches = [Full(), Window(num_tokens=1024), Window(num_tokens=256)]
    heads = (8, 4, 2, 1) if count <= 6 else (32, 16, 8, 4, 2, 1)
    found = [Attention(num_kv_heads=h, reach=r) for h in heads for r in reaches[: 1 if count <= 6 else 3]]
    return [*found[: count - 2], LinearMixer(), NoOp()]


def ffns(count: int) -> list[FFN]:
    """So many ffns, the parent's first, nothing last."""
    return [*(GatedFFN(width=256 * (count - i)) for i in range(count - 2)), LinearFFN(), NoOp()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """An instance in numbers. Shapes: L layers, M mixers, F ffns, R rows."""

    score_LMF: np.ndarray
    mixer_RLM: np.ndarray
    ffn_RLF: np.ndarray

    @property
    def cost_RLMF(self) -> np.ndarray:
        """Every block's cost."""
        return self.mixer_RLM[..., :, None] + self.ffn_RLF[..., None, :]


def draw(shape: Shape, generator: np.random.Generator, is_same: bool) -> Numbers:
    """Draws scores and costs; times are the same in every layer, or differ by the noise of a variant."""
    sizes = np.linspace(1, 0, shape.num_mixers), np.linspace(1, 0, shape.num_ffns)
    layers = shape.num_layers
    score_LMF = np.zeros((layers, shape.num_mixers, shape.num_ffns))
    for layer, importance in enumerate(generator.lognormal(0, 0.6, layers)):
        part = [
            importance * generator.lognormal(0, 0.5) * (1 - size) ** 1.5 * generator.lognormal(0, 0.25, len(size))
            for size in sizes
        ]
        together = generator.lognormal(0, 0.1, score_LMF.shape[1:])
        score_LMF[layer] = 0.05 * (part[0][:, None] + part[1]) * together

    def noise(deviation: float) -> list[np.ndarray]:
        return [generator.normal(0, deviation, (1 if is_same else layers, len(size))) for size in sizes]

    ends = (0.2, 0.4), (1.0, 1.5)  # of what a mixer and an ffn take
    rows = [(generator.uniform(*ends), [np.zeros(1), np.zeros(1)])] if shape.has_memory else []
    devices = [(generator.uniform(*ends), noise(0.025)) for _ in set(shape.loads)]
    for device in shape.loads:
        weights, own = devices[device]
        both = [a + b for a, b in zip(own, noise(0.017), strict=True)]  # 3 % in all
        rows.append((weights * generator.lognormal(0, 0.2, 2), both))
    mixer_RLM, ffn_RLF = (
        np.array([np.broadcast_to(w[i] * sizes[i] * np.exp(e[i]), (layers, len(sizes[i]))) for w, e in rows])
        for i in (0, 1)
    )
    return Numbers(score_LMF=score_LMF, mixer_RLM=mixer_RLM, ffn_RLF=ffn_RLF)


def instance(shape: Shape, seed: int, limits: Limits) -> Problem:
    """A problem with its limits."""
    generator = np.random.default_rng([seed, shape.num_layers, shape.num_mixers * shape.num_ffns, len(shape.loads)])
    numbers = draw(shape, generator, is_same=limits == "typical")
    cost_RLC = numbers.cost_RLMF.reshape(len(numbers.mixer_RLM), shape.num_layers, -1)
    if limits == "typical":
        limit_R = cost_RLC[..., 0].sum(axis=1) * generator.uniform(0.5, 0.7, len(cost_RLC))
        return problem_of(shape, numbers, _limits(shape, limit_R))
    tried: list[tuple[int, np.ndarray]] = []
    for near, _ in itertools.product(NEAR, range(TRIES)):
        limit_R = _pressing(numbers, generator, near)
        tried.append((num_pressing(_arrays(numbers, limit_R)), limit_R))
        if tried[-1][0] == len(limit_R):
            break
    return problem_of(shape, numbers, _limits(shape, max(tried, key=lambda one: one[0])[1]))


def _arrays(numbers: Numbers, limit_R: np.ndarray) -> Arrays:
    num_rows, num_layers = numbers.mixer_RLM.shape[:2]
    costs_CR = numbers.cost_RLMF.reshape(num_rows, -1).T
    return Arrays(
        scores_C=numbers.score_LMF.ravel(),
        costs_CR=costs_CR,
        room_R=limit_R,
        group_C=np.repeat(np.arange(num_layers), len(costs_CR) // num_layers),
    )


def _pressing(numbers: Numbers, generator: np.random.Generator, near: float) -> np.ndarray:
    """Limits near what the best choice at random prices costs."""
    num_rows, num_layers = numbers.mixer_RLM.shape[:2]
    cost_RLC = numbers.cost_RLMF.reshape(num_rows, num_layers, -1)
    score_LC = numbers.score_LMF.reshape(num_layers, -1)
    price_R = generator.uniform(0.3, 1, num_rows) * 3 / num_rows * score_LC.mean() / cost_RLC.mean(axis=(1, 2))
    picked_L = (score_LC + np.einsum("r,rlc->lc", price_R, cost_RLC)).argmin(axis=1)
    spent_R = np.take_along_axis(cost_RLC, picked_L[None, :, None], axis=2)[..., 0].sum(axis=1)
    return spent_R * generator.uniform(1 - near, 1 + near, num_rows)


def num_pressing(arrays: Arrays) -> int:
    """Limits that have a price in the relaxation."""
    relaxation = relax(arrays.scaled()[0])
    return 0 if relaxation is None else int((relaxation.prices_R > 1e-9 * relaxation.prices_R.max()).sum())


def _limits(shape: Shape, limit_R: np.ndarray) -> tuple[Limit, ...]:
    names = [*(["memory"] if shape.has_memory else []), *(f"time {i} on {d}" for i, d in enumerate(shape.loads))]
    return tuple(Limit(text=name, fixed=0.0, limit=float(at)) for name, at in zip(names, limit_R, strict=True))


def problem_of(shape: Shape, numbers: Numbers, limits: tuple[Limit, ...]) -> Problem:
    """Whole blocks as groups."""
    variants = list(itertools.product(mixers(shape.num_mixers), ffns(shape.num_ffns)))
    costs = numbers.cost_RLMF.reshape(len(limits), shape.num_layers, -1).transpose(1, 2, 0).tolist()
    scores = numbers.score_LMF.reshape(shape.num_layers, -1).tolist()
    groups = tuple(
        tuple(
            Choice(
                candidates=(
                    Candidate(layer=layer, part="mixer", variant=mixer),
                    Candidate(layer=layer, part="ffn", variant=ffn),
                ),
                score=score,
                costs=tuple(cost),
            )
            for (mixer, ffn), score, cost in zip(variants, scores[layer], costs[layer], strict=True)
        )
        for layer in range(shape.num_layers)
    )
    return Problem(groups=groups, limits=limits)


BATCHES = (1, 4, 16, 64)


def with_batches(seed: int) -> Problem:
    """80 × 54 at two loads, each at one of four batches, which bounds its time a sequence and its memory: 16 ways."""
    generator = np.random.default_rng([seed, 99])
    drawn = draw(replace(LARGE, loads=(0, 1, 0, 1)), generator, is_same=True)
    mixer, ffn, budgets = [], [], []
    for load, batch in itertools.product((0, 1), BATCHES):
        reading, computing = 1 + load, 3 + load  # weights are read once for all sequences
        mixer += [
            drawn.mixer_RLM[reading] / batch + drawn.mixer_RLM[computing] * 0.1,
            drawn.mixer_RLM[0] * (1 + 0.02 * (1 + load) * batch),  # weights, keys and values
        ]
        ffn += [drawn.ffn_RLF[reading] / batch + drawn.ffn_RLF[computing] * 0.1, drawn.ffn_RLF[0]]
        if batch == BATCHES[-2]:
            parent = [(m[:, 0] + f[:, 0]).sum() for m, f in zip(mixer[-2:], ffn[-2:], strict=True)]
            budgets.append(generator.uniform(0.5, 0.7, 2) * parent)
    limits = tuple(
        Limit(text=name, fixed=0.0, limit=float(budgets[load][i]), when=(f"batch of load {load}", str(batch)))
        for load, batch in itertools.product((0, 1), BATCHES)
        for i, name in enumerate(("time", "memory"))
    )
    return problem_of(LARGE, replace(drawn, mixer_RLM=np.array(mixer), ffn_RLF=np.array(ffn)), limits)
