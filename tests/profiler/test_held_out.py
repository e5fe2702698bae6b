from itertools import product

import numpy as np

from blockwright.profiler.boosted import Growth
from blockwright.profiler.conformal import HeldOut
from blockwright.profiler.held_out import _FEWEST_TREES, Neighbours, _num_trees, fit_bag, folds_of
from blockwright.profiler.kriging import krige
from blockwright.profiler.operator_features import Peaks, law_terms
from blockwright.profiler.operators import Attend


def test_kriging_is_what_all_points_together_say() -> None:
    """With fewer points than neighbours, beside the textbook's equation for all of them."""
    rng = np.random.default_rng(0)
    known, errors, asked = rng.uniform(0, 2, (9, 2)), rng.standard_normal(9), rng.uniform(0, 2, (5, 2))
    scalings = [np.array([1.0, 1.0]), np.array([4.0, 0.2])]

    def covariance(one: np.ndarray, other: np.ndarray) -> float:
        return sum(float(np.exp(-np.linalg.norm((one - other) * scale))) for scale in scalings) / 2

    matrix = np.array([[covariance(a, b) for b in known] for a in known]) + np.eye(9)
    expected = [np.linalg.solve(matrix, errors) @ [covariance(a, point) for a in known] for point in asked]
    np.testing.assert_allclose(krige(known, errors, asked, scalings), expected, atol=1e-6)


def test_kriging_says_nothing_far_away_or_of_nothing() -> None:
    known, errors = np.zeros((3, 1)), np.ones(3)
    np.testing.assert_allclose(krige(known, errors, np.array([[100.0]]), [np.ones(1)]), 0, atol=1e-12)
    assert krige(np.zeros((0, 1)), np.zeros(0), np.zeros((2, 1)), [np.ones(1)]).tolist() == [0, 0]


def test_rows_of_one_group_share_a_fold() -> None:
    groups = np.repeat(np.arange(40), 5)
    folds = folds_of(groups, 0)
    assert [len(set(folds[groups == group])) for group in range(40)] == [1] * 40
    assert len(set(folds)) == 3
    assert len(set(folds_of(np.arange(2000), 0))) == 5


def test_errors_of_left_out_rows_are_no_smaller_than_noise() -> None:
    rng = np.random.default_rng(1)
    columns, targets = rng.uniform(0, 1, (600, 3)), 0.1 * rng.standard_normal(600)
    bag, errors = fit_bag(columns, targets, columns, folds_of(np.arange(600), 0), Neighbours(share=0.0), Growth())
    assert 0.09 < errors.std() < 0.14
    seen = targets - bag.forests[0].predict(columns)
    assert seen.std() < errors.std()


def test_neighbours_tell_what_trees_cannot_see() -> None:
    rng = np.random.default_rng(2)
    positions = rng.uniform(0, 10, (500, 1))
    columns, targets = np.zeros((500, 1)), np.sin(positions[:, 0])
    near = Neighbours(share=1.0, scalings=(np.ones(1),))
    bag, _ = fit_bag(columns, targets, positions, folds_of(np.arange(500), 0), near, Growth())
    asked = np.linspace(0.5, 9.5, 50)[:, None]
    errors = bag.predict(np.zeros((50, 1)), asked) - np.sin(asked[:, 0])
    assert np.abs(errors).mean() < 0.1 < np.abs(np.sin(asked)).mean()


def test_one_group_is_learnt_though_nothing_can_be_left_out() -> None:
    columns = np.arange(40.0)[:, None]
    folds = folds_of(np.zeros(40, int), 0)
    bag, _ = fit_bag(columns, columns[:, 0], columns, folds, Neighbours(share=0.0), Growth())
    assert np.isfinite(bag.predict(columns, columns)).all()


def test_joined_errors_are_those_of_both() -> None:
    one = HeldOut(coordinates=np.zeros((2, 1)), errors=np.array([1.0, 2.0]))
    other = HeldOut(coordinates=np.ones((1, 1)), errors=np.array([3.0]))
    joined = one.joined(other)
    assert joined.errors.tolist() == [1, 2, 3] and joined.coordinates.ravel().tolist() == [0, 0, 1]


def test_a_context_is_split_as_is_best_for_the_busiest_unit() -> None:
    """The law's term for split contexts, beside every split up to 128 that the law knows."""
    peaks = Peaks(read_bytes_per_s=1e12, flop_per_s=1e14, launch_s=1e-6, num_units=100, cache_bytes=0)
    for batch, context in product((1, 3, 50, 200), (1, 300, 5000)):
        operator = Attend(
            batch=batch,
            new_tokens=1,
            context=context,
            num_heads=8,
            num_kv_heads=2,
            head_dim=64,
            bytes_per_value=2,
            kv_bytes_per_value=2,
        )
        blocks, units = -(-context // 128), 2 * batch
        splits = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
        least = min(-(-units * split // 100) * -(-blocks // split) for split in splits)
        expected = 128 * least * 100 * 2 * 2 * 64 / 1e12
        assert np.isclose(law_terms([operator], peaks)[0], expected).any()


def test_few_rows_grow_few_trees() -> None:
    """A profile has some hundred rows and is learnt whenever it is read."""
    growth = Growth(num_trees=400)
    assert _num_trees(200, growth) == _FEWEST_TREES
    assert _FEWEST_TREES < _num_trees(2_000, growth) < _num_trees(100_000, growth) == 400
