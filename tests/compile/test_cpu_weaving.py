"""Codes woven in words are those woven one by one."""

import numpy as np
import pytest

from blockwright.compile import cpu_weaving
from blockwright.compile.blocked import pack_codes
from blockwright.compile.cpu_products import weave_codes
from blockwright.compile.cpu_weaving import weave_by_input, weave_by_output
from blockwright.spec import Format


def _codes_KN(num_inputs: int, num_outputs: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-8, 8, (num_inputs, num_outputs)).astype(np.int8)


def _expected(codes_KN: np.ndarray, num_filled: int) -> np.ndarray:
    """By way of a byte for every code."""
    unsigned_NP = np.full((codes_KN.shape[1], num_filled), 8, dtype=np.uint8)
    unsigned_NP[:, : len(codes_KN)] = codes_KN.T + 8
    return weave_codes(unsigned_NP)


@pytest.fixture(params=[2**18, 2**9], ids=["at once", "in steps"])
def most_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_weaving, "_MOST_BYTES", request.param)


@pytest.mark.usefixtures("most_bytes")
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(32, 8), (64, 11), (40, 3), (96, 64), (33, 29)])
def test_codes_that_lie_output_by_output(num_inputs: int, num_outputs: int) -> None:
    codes_KN = _codes_KN(num_inputs, num_outputs)
    stored = pack_codes(codes_KN, Format(name="int4", group_size=32))
    woven = weave_by_output(stored.reshape(-1), num_outputs)
    np.testing.assert_array_equal(woven, _expected(codes_KN, -(-num_inputs // 32) * 32))


@pytest.mark.usefixtures("most_bytes")
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(32, 8), (40, 16), (8, 64), (128, 24), (96, 136)])
def test_codes_that_lie_input_by_input(num_inputs: int, num_outputs: int) -> None:
    codes_KN = _codes_KN(num_inputs, num_outputs)
    flat = codes_KN.reshape(-1).view(np.uint8) & 15
    num_filled = -(-num_inputs // 32) * 32
    woven = weave_by_input(flat[::2] | flat[1::2] << 4, num_outputs, num_filled)
    np.testing.assert_array_equal(woven, _expected(codes_KN, num_filled))
