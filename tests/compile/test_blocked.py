"""Blocked integer weights, against loops."""

import numpy as np
import pytest

from blockwright.compile.blocked import dequantise_blocks, quantise_blocks, rounded
from blockwright.spec import FP32, Format

FORMATS = [
    Format(name="int4", group_size=16),
    Format(name="int4", group_size=32),
    Format(name="int8", group_size=32),
]
LOWEST = {"int4": -8, "int8": -128}


def _matrix(num_inputs: int, num_outputs: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_t(3, (num_inputs, num_outputs)).astype(np.float32)  # with outliers


def _quantise_one_by_one(weight_KN: np.ndarray, weights: Format) -> np.ndarray:
    """The matrix as it comes back, every group on its own and every scale tried in turn."""
    assert weights.group_size is not None
    lowest = LOWEST[weights.name]
    stored_KN = np.zeros_like(weight_KN)
    for n in range(weight_KN.shape[1]):
        for start in range(0, weight_KN.shape[0], weights.group_size):
            group = weight_KN[start : start + weights.group_size, n]
            covering = max(abs(float(value)) for value in group) / (-lowest - 1) or 1.0
            least = np.inf
            for tenths in range(9):
                scale = np.float32(np.float32(covering) * (1 - 0.025 * tenths))
                codes = [min(max(round(float(value / scale)), lowest), -lowest - 1) for value in group]
                error = sum((code * scale - value) ** 2 for code, value in zip(codes, group, strict=True))
                if error < least:
                    least = error
                    stored_KN[start : start + weights.group_size, n] = [code * scale for code in codes]
    return stored_KN


@pytest.mark.parametrize("weights", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(64, 6), (70, 5), (9, 3)])
def test_codes_are_those_of_trying_every_scale_for_every_group(weights: Format, shape: tuple[int, int]) -> None:
    for seed in range(3):
        weight_KN = _matrix(*shape, seed)
        np.testing.assert_allclose(rounded(weight_KN, weights), _quantise_one_by_one(weight_KN, weights), rtol=1e-5)


@pytest.mark.parametrize("weights", FORMATS, ids=str)
def test_codes_and_scales_are_what_the_format_holds(weights: Format) -> None:
    assert weights.group_size is not None
    codes_KN, scales_GN = quantise_blocks(_matrix(70, 5, seed=0), weights)
    assert (codes_KN.shape, codes_KN.dtype) == ((70, 5), np.int8)
    assert (scales_GN.shape, scales_GN.dtype) == ((-(-70 // weights.group_size), 5), np.float32)
    assert codes_KN.min() >= LOWEST[weights.name]
    assert codes_KN.max() <= -LOWEST[weights.name] - 1
    assert (scales_GN > 0).all()


@pytest.mark.parametrize("weights", FORMATS, ids=str)
def test_the_scale_kept_is_at_least_as_good_as_the_one_that_covers_the_group(weights: Format) -> None:
    assert weights.group_size is not None
    weight_KN = _matrix(128, 64, seed=2)
    groups_GSN = weight_KN.reshape(-1, weights.group_size, 64)
    scales_G1N = np.abs(groups_GSN).max(axis=1, keepdims=True) / (-LOWEST[weights.name] - 1)
    covering = ((np.round(groups_GSN / scales_G1N) * scales_G1N - groups_GSN) ** 2).sum(axis=1)
    kept = ((rounded(weight_KN, weights) - weight_KN).reshape(groups_GSN.shape) ** 2).sum(axis=1)
    assert (kept <= covering * (1 + 1e-5)).all()
    if weights.name == "int4":  # in int8 the outliers are worth their room
        assert kept.sum() < covering.sum()


def test_whole_numbers_within_range_come_back_as_they_are() -> None:
    codes_KN = np.random.default_rng(0).integers(-7, 8, (32, 10)).astype(np.float32)
    codes_KN[0] = 7  # so that the covering scale is 1
    np.testing.assert_array_equal(rounded(codes_KN, Format(name="int4", group_size=32)), codes_KN)


def test_a_group_of_zeros_stays_zero() -> None:
    assert not rounded(np.zeros((40, 3), dtype=np.float32), Format(name="int4", group_size=32)).any()


def test_plain_numbers_are_not_rounded() -> None:
    weight_KN = _matrix(20, 4, seed=1)
    np.testing.assert_array_equal(rounded(weight_KN, FP32), weight_KN)


def test_every_code_is_multiplied_with_its_groups_scale() -> None:
    codes_KN = np.arange(10).reshape(5, 2)
    scales_GN = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    expected = [[0, 10], [2, 30], [8, 100], [12, 140], [24, 270]]
    np.testing.assert_array_equal(dequantise_blocks(codes_KN, scales_GN, group_size=2), expected)
