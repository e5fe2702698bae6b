"""What is believed of operators' times on a new device before anything is measured there, from a device that is known.

    log time = log model(target, source's efficiency) + share · residual + offset + g(sizes) + scatter

The model is `datasheet.py`'s, the residual what it leaves of the source's times. Each field of the target's efficiency
is the source's, give or take a factor; sensitivities turn that into columns of a linear model that act where they
should: launches on small operators, bandwidth on what is bound by memory, the rate and the tiles on what is bound by
products. A share of the residual carries over, for libraries differ. Offsets are common and each kind's and format's
own, and g is a Gaussian process over the logarithms of sizes. How large each of these is, is a `Prior`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.profiler.datasheet import (
    EFFICIENCIES,
    Efficiency,
    Kind,
    by_kind,
    fit_efficiency,
    modelled_times,
    roofline_s,
    sensitivity,
    sizes,
)
from blockwright.profiler.operators import Attend, Matmul, Operator

_SAMPLE = 700
"""Operators that the source's efficiency is fitted to: a fit in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A device that is known well."""

    ceilings: Ceilings
    utilisation: Callable[[Sequence[Operator]], np.ndarray]
    """The share of its roofline that each operator reaches, by its ceilings' values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """How devices differ, in logarithms of time; standard deviations end in `_sd`."""

    share: float
    """Of the residual, that is expected to carry over."""
    share_sd: float
    drift_sd: float
    """Of each field of an efficiency, all alike: fields of their own explain the tables no better."""
    offset_sd: float
    smooth_sd: float
    """Of the Gaussian process."""
    smooth_length: float
    """Of the Gaussian process, in the logarithm of sizes."""
    scatter_sd: float
    """Of one operator, from one tile or library's choice to the next."""


PRIOR = Prior(
    share=0.3, share_sd=0.36, drift_sd=0.25, offset_sd=0.1, smooth_sd=0.2, smooth_length=1.9, scatter_sd=0.072
)
"""The likeliest for all ordered pairs of A100, H100, H200 and B200, as benchmarks/costmodel/transfer_prior.py finds it;
what is judged on one of them there is predicted with the likeliest for the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What is expected of any device."""

    efficiencies: dict[Kind, Efficiency]
    prior: Prior


EXPECTED = Expected(efficiencies=EFFICIENCIES, prior=PRIOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """Operators as the source explains them, whatever the prior; arrays have an entry, or a row, for each."""

    kinds: np.ndarray
    formats: np.ndarray
    modelled: np.ndarray
    """The logarithm of times on the target, with the source's efficiency."""
    residual: np.ndarray
    copied: np.ndarray
    """As `modelled`, by the source's utilisation alone."""
    sensitivities: np.ndarray
    extents: np.ndarray
    """(operators, 3): logarithms of sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """Of the logarithm of times on the target, before any measurement."""

    mean: np.ndarray
    copied: np.ndarray
    columns: np.ndarray
    """(operators, unknowns), scaled so that each unknown has a standard deviation of 1."""
    places: np.ndarray
    """(operators, 4): the kind, and the logarithms of three sizes in lengths of the process."""
    prior: Prior

    def take(self, at: np.ndarray) -> "Belief":
        """Of some of the operators."""
        return Belief(
            mean=self.mean[at],
            copied=self.copied[at],
            columns=self.columns[at],
            places=self.places[at],
            prior=self.prior,
        )

    def covariance(self, other: "Belief") -> np.ndarray:
        """Of these operators with others, without the scatter that is each one's own."""
        apart = ((self.places[:, None] - other.places[None]) ** 2).sum(axis=2)
        return self.columns @ other.columns.T + self.prior.smooth_sd**2 * np.exp(-apart / 2)

    def variance(self) -> np.ndarray:
        """The diagonal of the covariance."""
        return (self.columns**2).sum(axis=1) + self.prior.smooth_sd**2


def explain(
    operators: Sequence[Operator], source: Source, target: Ceilings, efficiencies: dict[Kind, Efficiency]
) -> Explained:
    """Fits the source's efficiency and takes it to the target.

    Raises:
        InputError: the source does not know one of the operators, or a format's rate is missing.
    """
    source_s = roofline_s(operators, source.ceilings) / utilisation_of(source, operators)
    num = len(operators)
    modelled, residual, kinds = np.empty(num), np.empty(num), np.empty(num)
    sensitivities, extents = np.empty((num, len(fields(Efficiency)))), np.zeros((num, 3))
    for number, (kind, at) in enumerate(by_kind(operators).items()):
        here = [operators[i] for i in at]
        own = _fitted(here, source_s[at], source.ceilings, efficiencies[kind])
        kinds[at], modelled[at] = number, _modelled(here, target, kind, own)
        residual[at] = np.log(source_s[at]) - _modelled(here, source.ceilings, kind, own)
        sensitivities[at] = sensitivity(here, target, own)
        measures = np.log([sizes(operator)[:3] for operator in here])
        extents[at, : measures.shape[1]] = measures
    return Explained(
        kinds=kinds,
        formats=np.array([_format(operator) for operator in operators]),
        modelled=modelled,
        residual=residual,
        copied=np.log(source_s * roofline_s(operators, target) / roofline_s(operators, source.ceilings)),
        sensitivities=sensitivities,
        extents=extents,
    )


def believe(explained: Explained, prior: Prior) -> Belief:
    """The same by a prior. Half of the variance of offsets and efficiencies is common to all kinds and formats."""
    drift = np.column_stack([explained.sensitivities * prior.drift_sd, explained.residual * prior.share_sd])
    of_kinds = [drift * (explained.kinds == kind)[:, None] for kind in np.unique(explained.kinds)]
    of_formats = [prior.offset_sd * (explained.formats == name) for name in np.unique(explained.formats)]
    offsets = np.stack([np.full(len(drift), prior.offset_sd), *of_formats], axis=1)
    return Belief(
        mean=explained.modelled + prior.share * explained.residual,
        copied=explained.copied,
        columns=0.5**0.5 * np.concatenate([offsets, drift, *of_kinds], axis=1),
        places=np.column_stack([100 * explained.kinds, explained.extents / prior.smooth_length]),  # kinds lie far apart
        prior=prior,
    )


def utilisation_of(source: Source, operators: Sequence[Operator]) -> np.ndarray:
    """What the source says of each operator.

    Raises:
        InputError: it does not know one of them.
    """
    found = np.asarray(source.utilisation(operators), dtype=float)
    good = np.isfinite(found) & (found > 0)
    if found.shape != (len(operators),) or not good.all():
        first = "of another number" if found.shape != (len(operators),) else operators[int(np.argmin(good))]
        raise InputError(
            "source.utilisation",
            got=first if isinstance(first, str) else f"no utilisation of {first}",
            expected="a share above zero for each operator",
            remedy="Measure operators like it on the source, or leave it out.",
        )
    return found


def evenly(length: int, num: int) -> np.ndarray:
    """So many places of a list at most, from its beginning to its end."""
    return np.unique(np.linspace(0, length - 1, min(num, length)).round().astype(int))


def _fitted(operators: list[Operator], times_s: np.ndarray, ceilings: Ceilings, expected: Efficiency) -> Efficiency:
    """The source's own efficiency, from a sample spread over its times."""
    order = np.lexsort((np.log([sizes(operator)[0] for operator in operators]), times_s))
    sample = order[evenly(len(order), _SAMPLE)]
    return fit_efficiency([operators[i] for i in sample], times_s[sample], ceilings, expected)


def _modelled(operators: list[Operator], ceilings: Ceilings, kind: Kind, efficiency: Efficiency) -> np.ndarray:
    return np.log(modelled_times(operators, ceilings, {kind: efficiency}).time_s)


def _format(operator: Operator) -> str:
    """Kernels are written per kind and format, so these go faster or slower together."""
    match operator:
        case Matmul(weights=weights):
            return f"matmul {weights}"
        case Attend(new_tokens=new_tokens, bytes_per_value=size):
            return f"{'decode' if new_tokens == 1 else 'prefill'} {size}"
        case _:
            return "elementwise"
