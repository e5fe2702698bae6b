"""The power that this machine draws, where a counter tells."""

import time
from collections.abc import Callable
from dataclasses import replace

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.pipeline.console import say
from blockwright.profiler.energy import EnergyEffort, find_counter, measure_power

_IDLE_S = 0.1
"""How long a moment of rest is; counters move about as often."""


def with_power(ceilings: Ceilings, busy: Callable[[], object], effort: EnergyEffort | None = None) -> Ceilings:
    """Ceilings with the power of a machine at rest and at work; unchanged, and a word on it, where that cannot be had.

    Args:
        ceilings: without power.
        busy: the work, once; is not called where there is no counter.
        effort: how long to measure each.
    """
    try:
        counter = find_counter()
        if counter is None:
            return ceilings
        idle_w = measure_power(lambda: time.sleep(_IDLE_S), counter, effort)
        busy_w = measure_power(busy, counter, effort)
    except InputError as error:
        say(f"no power  {error.field}: {error.got}. {error.remedy}")
        return ceilings
    return replace(ceilings, idle_w=idle_w, busy_w=busy_w)
