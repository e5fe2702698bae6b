"""Learning-rate schedules, as factors of the peak."""

import math


def warm_up_then_cosine(step: int, num_steps: int, warm_up_share: float = 0.1, final: float = 0.05) -> float:
    """Linear to 1 over the first share of steps, then half a cosine down to `final` (Loshchilov & Hutter 2017)."""
    warm_up_steps = max(1, int(num_steps * warm_up_share))
    if step < warm_up_steps:
        return (step + 1) / warm_up_steps
    progress = (step - warm_up_steps) / max(1, num_steps - warm_up_steps)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
