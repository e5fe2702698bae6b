import numpy as np

from blockwright.profiler.boosted import Growth, grow
from blockwright.profiler.conformal import HeldOut


def test_one_split_is_the_best_one() -> None:
    """A tree of depth one on all rows and columns, beside every split tried in turn."""
    rng = np.random.default_rng(0)
    features, targets = rng.integers(0, 8, (60, 3)).astype(float), rng.standard_normal(60)
    growth = Growth(
        num_forests=1,
        num_trees=1,
        depth=1,
        rate=1.0,
        share_of_columns=1,
        share_of_rows=1,
        least_rows=5,
        clip_quantile=1,
    )
    left_over = targets - np.median(targets)

    def split(column: int, cut: float) -> tuple[float, np.ndarray]:
        left = features[:, column] < cut
        if min(left.sum(), (~left).sum()) < 5:
            return -1.0, left
        sums = [left_over[side].sum() ** 2 / (side.sum() + 1) for side in (left, ~left)]
        return sum(sums), left

    _, left = max((split(c, cut) for c in range(3) for cut in np.arange(0.5, 7)), key=lambda each: each[0])
    sides = [left_over[side].sum() / (side.sum() + 1) for side in (left, ~left)]
    expected = np.median(targets) + np.where(left, *sides)
    np.testing.assert_allclose(grow(features, targets, growth).predict(features), expected)


def test_steps_and_products_are_learnt() -> None:
    rng = np.random.default_rng(1)
    features = rng.uniform(0, 4, (2000, 2))
    targets = np.floor(features[:, 0]) * (features[:, 1] > 2)
    forest = grow(features[:1500], targets[:1500], Growth(num_trees=100))
    assert np.abs(forest.predict(features[1500:]) - targets[1500:]).mean() < 0.05


def test_a_few_wild_rows_hardly_matter() -> None:
    rng = np.random.default_rng(2)
    features = rng.uniform(0, 1, (600, 1))
    targets = features[:, 0].copy()
    targets[:12] = 1000
    forest = grow(features, targets, Growth(num_trees=100))
    assert np.abs(forest.predict(features[12:]) - features[12:, 0]).mean() < 0.2


def test_too_few_rows_give_their_median() -> None:
    forest = grow(np.arange(3.0)[:, None], np.array([1.0, 2.0, 9.0]), Growth())
    assert forest.predict(np.array([[0.0], [5.0]])).tolist() == [2.0, 2.0]


def test_an_interval_holds_nine_in_ten_of_the_errors_where_they_are() -> None:
    rng = np.random.default_rng(3)
    places = rng.uniform(0, 10, (4000, 1))
    errors = rng.standard_normal(4000) * np.where(places[:, 0] < 5, 0.01, 0.2)
    held_out = HeldOut(coordinates=places[:2000], errors=errors[:2000])
    low, high = held_out.interval(places[2000:])
    covered = (low <= errors[2000:]) & (errors[2000:] <= high)
    for side in (places[2000:, 0] < 4, places[2000:, 0] > 6):
        assert 0.86 < covered[side].mean() < 0.95


def test_with_few_errors_the_interval_is_wide_and_never_nothing() -> None:
    few = HeldOut(coordinates=np.zeros((3, 1)), errors=np.array([0.1, -0.4, 0.0]))
    low, high = few.interval(np.zeros((2, 1)), least_half_width=0.2)
    np.testing.assert_allclose([low, high], [[-0.6, -0.6], [0.6, 0.6]])
    none = HeldOut(coordinates=np.zeros((0, 1)), errors=np.zeros(0))
    assert none.interval(np.zeros((1, 1)), least_half_width=0.2)[1].tolist() == [0.2]
