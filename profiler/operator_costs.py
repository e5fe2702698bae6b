"""What a model takes on a device where operators alone were measured, or another model's blocks: a sum over operators.

Each operator takes what `utilisation` makes of the device's own rows. Norms with their residual sums, rotary embeddings
and the like count as one operator each here and begin two kernels, so each of them begins once more than it counts. All
half-widths add up, for errors of one device go together; what operators gain from each other's caches is not known.
"""

import functools
from collections.abc import Callable

from blockwright.cost import Cost, Load, exact
from blockwright.hw_profiles.profile import Backend, Point
from blockwright.profiler.check import operator_of
from blockwright.profiler.counted import exact_memory
from blockwright.profiler.operators import Elementwise, Operator, ffn_operators, mixer_operators, shared_operators
from blockwright.profiler.parts import PartCosts, Same, Source
from blockwright.profiler.utilisation import OperatorTimes, Timed, fit_times
from blockwright.profiler.workspace import modelled_workspace
from blockwright.spec import FFN, Mixer, Model


def operator_costs(source: Source, model: Model, points: list[Point]) -> PartCosts:
    """The time of a model's fixed part and of any mixer and ffn at all of the points, one after another.

    Raises:
        InputError: nothing like one of the operators was measured on this backend.
    """
    return _costs(Same(source.profile), source.backend, model, tuple(points))


@functools.lru_cache(maxsize=64)
def _costs(profile: Same, backend: Backend, model: Model, points: tuple[Point, ...]) -> PartCosts:
    """Kept, for a search asks for the same parts under every budget."""
    times, launch = _fitted(profile, backend), profile.profile.ceilings.launch_s

    def cost(operators_at: Callable[[Point], list[Operator]]) -> Cost:
        operators = [operator for point in points for operator in operators_at(point)]
        if not operators:
            return exact(0.0)
        found = times.costs(operators)
        more = sum(isinstance(operator, Elementwise) for operator in operators)
        return Cost(
            value=float(found.values.sum()) + more * launch.value,
            low=float(found.lows.sum()) + more * launch.low,
            high=float(found.highs.sum()) + more * launch.high,
            origin="modelled" if "modelled" in found.origins else "transferred",
        )

    @functools.cache
    def of_mixer(mixer: Mixer) -> Cost:
        return cost(lambda point: mixer_operators(model, mixer, point))

    @functools.cache
    def of_ffn(ffn: FFN) -> Cost:
        return cost(lambda point: ffn_operators(model, ffn, point))

    return PartCosts(fixed=cost(lambda point: shared_operators(model, point)), of_mixer=of_mixer, of_ffn=of_ffn)


def operator_memory(source: Source, model: Model, load: Load) -> PartCosts:
    """Weights and caches as counted, and a workspace that nobody measured for this shape."""
    counted = exact_memory(model, load)
    kind = "engine" if source.backend == "onnxruntime" else "eager"
    workspace = modelled_workspace(kind, model, load, counted.of_model(model).value)
    fixed = counted.fixed.value
    return PartCosts(
        fixed=Cost(
            value=fixed + workspace.value, low=fixed + workspace.low, high=fixed + workspace.high, origin="modelled"
        ),
        of_mixer=counted.of_mixer,
        of_ffn=counted.of_ffn,
    )


@functools.lru_cache(maxsize=8)
def _fitted(key: Same, backend: Backend) -> OperatorTimes:
    rows = [row for row in key.profile.operators if row.backend == backend]
    timed = [Timed(operator=operator_of(row), time_s=row.time_s, low_s=row.low_s, high_s=row.high_s) for row in rows]
    return fit_times(key.profile.ceilings, timed)
