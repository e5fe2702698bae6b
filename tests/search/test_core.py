"""What is given up for another partial choice, against every choice there is."""

import itertools
import math

import numpy as np
import pytest

from blockwright.search.arrays import Arrays
from blockwright.search.enumerate import find_best
from blockwright.search.relaxation import relax


@pytest.mark.parametrize("seed", range(40))
def test_a_choice_that_is_refused_at_the_end_hides_no_other(seed: int) -> None:
    """Six layers that cost alike, where of all choices within the limit only some are accepted."""
    generator = np.random.default_rng(seed)
    arrays, _ = Arrays(
        scores_C=generator.random(18),
        costs_CR=np.tile([[0.0], [0.1], [0.2]], (6, 1)),
        room_R=np.array([0.5]),
        group_C=np.repeat(np.arange(6), 3),
    ).scaled()
    columns = [np.array(one) + 3 * np.arange(6) for one in itertools.product(range(3), repeat=6)]
    accepted = {tuple(one) for one in columns if generator.random() < 0.05}
    within = [one for one in columns if arrays.costs_CR[one].sum() <= arrays.room_R[0] + 1e-9]
    least = min(arrays.scores_C[one].sum() for one in within if tuple(one) in accepted)
    relaxation = relax(arrays)
    assert relaxation is not None
    found = find_best(arrays, relaxation, deadline=math.inf, accept=lambda columns_G: tuple(columns_G) in accepted)
    assert math.isclose(found.score, least, rel_tol=1e-12)
