"""Promises held against measurements."""

import pytest
from scipy.stats import kendalltau

from blockwright.cost import Cost
from blockwright.profiler.validate import Trial, accuracy_of


def _trial(foretold: float, measured: float, width: float = 0.0, weights: str = "fp32") -> Trial:
    cost = Cost(value=foretold, low=foretold - width, high=foretold + width, origin="modelled")
    return Trial(quantity="time_per_token", format=weights, foretold=cost, measured=measured)


def test_errors_are_shares_of_what_was_measured_and_the_bias_has_a_sign() -> None:
    (row,) = accuracy_of([_trial(1.1, 1.0, 0.1), _trial(1.8, 2.0, 0.1), _trial(3.0, 3.0)])
    assert (row.quantity, row.format, row.phase, row.num_held_out) == ("time_per_token", "fp32", "decode", 3)
    assert row.mean_error == pytest.approx(0.2 / 3)
    assert row.median_error == pytest.approx(0.1)
    assert row.worst_error == pytest.approx(0.1)
    assert row.bias == pytest.approx(0.0)
    assert row.interval_coverage == pytest.approx(2 / 3)
    assert row.kendall_tau == 1.0


def test_a_wrong_order_shows_in_tau_as_pairs_do() -> None:
    foretold, measured = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]
    (row,) = accuracy_of([_trial(f, m) for f, m in zip(foretold, measured, strict=True)])
    assert row.kendall_tau == pytest.approx((5 - 1) / 6)  # one of six pairs is the wrong way round
    assert row.kendall_tau == pytest.approx(kendalltau(foretold, measured)[0])


def test_one_trial_has_no_order_and_formats_have_rows_of_their_own() -> None:
    rows = accuracy_of([_trial(1.0, 1.0), _trial(2.0, 1.0, weights="int4-g32")])
    assert [row.format for row in rows] == ["fp32", "int4-g32"]
    assert [row.kendall_tau for row in rows] == [None, None]
    assert rows[1].bias == 1.0
