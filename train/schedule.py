"""Learning-rate schedules, as factors of the peak."""

import math
from typing import Literal, assert_never

Schedule = Literal["cosine", "linear", "constant"]
WARM_UP_SHARE = 0.1


def factor_at(
    schedule: Schedule, step: int, num_steps: int, warm_up_share: float = WARM_UP_SHARE, final: float = 0.05
) -> float:
    """Linear to 1 over the first share of steps; then half a cosine (Loshchilov & Hutter 2017) or a line to `final`."""
    warm_up_steps = max(1, int(num_steps * warm_up_share)) if warm_up_share else 0
    if step < warm_up_steps:
        return (step + 1) / warm_up_steps
    progress = (step - warm_up_steps) / max(1, num_steps - warm_up_steps)
    match schedule:
        case "cosine":
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return final + (1 - final) * (1 - progress)
        case "constant":
            return 1.0
        case _:
            assert_never(schedule)


def warm_up_then_cosine(step: int, num_steps: int) -> float:
    """The schedule of everything that asks for no other."""
    return factor_at("cosine", step, num_steps)
