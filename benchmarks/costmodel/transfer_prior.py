"""How devices differ: `OMP_NUM_THREADS=1 python benchmarks/costmodel/transfer_prior.py --data DATA`, two minutes.

The likeliest `Prior` for some operators of all ordered pairs of GPUs, in products, prefill and decode of bf16, each
with those GPUs' efficiencies: the maximum of the marginal likelihood (Rasmussen and Williams, 2006, chapter 5), where
nothing is left to choose but the sample. It prints what `profiler/belief.py` ships, and the likeliest without each GPU,
which is what `transfer.py` predicts that one with.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
from cross_tables import GPUS, Table, ceilings_of, checked_folder, common, data_folder
from datasheet import Kind, fitted_to, table_of
from scipy.optimize import minimize

from blockwright.profiler.belief import Explained, Prior, Source, believe, explain
from blockwright.profiler.datasheet import EFFICIENCIES, Efficiency, mean_efficiency, roofline_s

PRIOR_KINDS: tuple[Kind, ...] = ("matmul", "prefill", "decode")
OPERATORS_OF_A_PAIR = 150
START = Prior(share=0.5, share_sd=0.3, drift_sd=0.3, offset_sd=0.3, smooth_sd=0.3, smooth_length=1.0, scatter_sd=0.1)
"""Where the search begins: round numbers, that no table has been asked for."""

Case = tuple[Explained, np.ndarray]
"""What is expected on a target, and the logarithms of the times that were measured there."""


def main() -> None:
    """Print the prior of all GPUs, and of all but each."""
    parser = argparse.ArgumentParser(description=__doc__)
    data_folder(parser)
    folder = checked_folder(parser.parse_args().data)
    for target in ("", *GPUS):
        print(f"without {target}" if target else "all", likeliest_without(folder, target), flush=True)


@cache
def likeliest_without(folder: Path, target: str) -> Prior:
    """The likeliest prior for pairs of GPUs that the target is not among."""
    gpus = [gpu for gpu in GPUS if gpu != target]
    expected: dict[Kind, Efficiency] = {kind: expected_without(folder, target, kind) for kind in PRIOR_KINDS}
    pairs = list(permutations(gpus, 2))
    return likeliest([_case(folder, pair, kind, expected) for pair in pairs for kind in PRIOR_KINDS])


def expected_without(folder: Path, target: str, kind: Kind) -> Efficiency:
    """What GPUs other than the target do."""
    return mean_efficiency([_fitted(folder, gpu, kind) for gpu in GPUS if gpu != target])


def likeliest(cases: Sequence[Case]) -> Prior:
    """The prior under which the measured times are the most likely."""
    names = [name for name in asdict(START) if name != "share"]

    def prior_at(point: np.ndarray) -> Prior:
        positive = np.exp(point[1:]).tolist()
        return replace(START, share=float(point[0]), **dict(zip(names, positive, strict=True)))

    start = np.array([START.share, *np.log([asdict(START)[name] for name in names])])
    found = minimize(lambda point: -sum(log_density(case, prior_at(point)) for case in cases), start, method="L-BFGS-B")
    return prior_at(found.x)


def log_density(case: Case, prior: Prior) -> float:
    """Of the measured times, but for a constant."""
    explained, log_times = case
    belief = believe(explained, prior)
    covariance = belief.covariance(belief) + prior.scatter_sd**2 * np.eye(len(log_times))
    lower = np.linalg.cholesky(covariance)
    whitened = np.linalg.solve(lower, log_times - belief.mean)
    return float(-0.5 * whitened @ whitened - np.log(lower.diagonal()).sum())


def source_of(gpu: str, table: Table) -> Source:
    """A GPU's own table as a model that is always right."""
    ceilings = ceilings_of(gpu)
    known = dict(zip(table.operators, (roofline_s(table.operators, ceilings) / table.times_s).tolist(), strict=True))
    return Source(ceilings=ceilings, utilisation=lambda operators: np.array([known[each] for each in operators]))


@cache
def _fitted(folder: Path, gpu: str, kind: Kind) -> Efficiency:
    return fitted_to(table_of(folder, gpu, kind), gpu, kind)


def _case(folder: Path, pair: tuple[str, str], kind: Kind, expected: dict[Kind, Efficiency]) -> Case:
    here, there = common(*(table_of(folder, gpu, kind) for gpu in pair))
    drawn = np.random.default_rng(0).permutation(len(here.times_s))[:OPERATORS_OF_A_PAIR]
    here, there = here.take(drawn), there.take(drawn)
    source, target = source_of(pair[0], here), ceilings_of(pair[1])
    return explain(there.operators, source, target, {**EFFICIENCIES, **expected}), np.log(there.times_s)


if __name__ == "__main__":
    main()
