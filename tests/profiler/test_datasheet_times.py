from dataclasses import replace

import numpy as np
import pytest

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.profiler.datasheet import (
    EFFICIENCIES,
    fit_efficiency,
    mean_efficiency,
    modelled_times,
    roofline_s,
    sensitivity,
)
from blockwright.profiler.operators import Attend, Elementwise, Matmul, Operator


def figure(value: float) -> Figure:
    return Figure(value=value, low=value, high=value, origin="modelled", source="a made-up datasheet")


GPU = Ceilings(
    read_bytes_per_s=figure(3e12),
    flop_per_s={"bf16": figure(900e12)},
    launch_s=figure(3e-6),
    num_units=128,
)
CPU = Ceilings(
    read_bytes_per_s=figure(20e9),
    flop_per_s={"fp32": figure(90e9)},
    launch_s=figure(2e-6),
    num_units=2,
)


def matmul(rows: int, inputs: int = 4096, outputs: int = 4096, weights: str = "bf16") -> Matmul:
    size = 2 if weights == "bf16" else 4
    return Matmul(
        rows=rows,
        inputs=inputs,
        outputs=outputs,
        weights=weights,
        weight_bytes=size * inputs * outputs,
        bytes_per_value=size,
    )


def attend(new_tokens: int, context: int, batch: int = 8) -> Attend:
    return Attend(
        batch=batch,
        new_tokens=new_tokens,
        context=context,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        bytes_per_value=2,
        kv_bytes_per_value=2,
    )


OPERATORS: list[Operator] = [
    matmul(1),
    matmul(64),
    matmul(4096),
    attend(1, 8192),
    attend(512, 512),
    Elementwise(num_values=1000, bytes_per_value=2),
    Elementwise(num_values=10**9, bytes_per_value=2),
]


def times(operators, ceilings=GPU) -> np.ndarray:
    return modelled_times(operators, ceilings).time_s


def test_the_roofline_is_the_larger_of_bytes_and_products():
    few, many = matmul(1), matmul(8192)
    expected = [few.num_bytes / 3e12, many.flop / 900e12]
    assert roofline_s([few, many], GPU) == pytest.approx(expected)


def test_nothing_is_quicker_than_its_roofline():
    assert (times(OPERATORS) >= roofline_s(OPERATORS, GPU)).all()


def test_operators_come_back_in_their_order():
    assert times(OPERATORS) == pytest.approx([times([operator])[0] for operator in OPERATORS])


def test_twice_the_bandwidth_quickens_what_is_bound_by_it_and_nothing_else():
    faster = replace(GPU, read_bytes_per_s=figure(6e12))
    gain = times([matmul(1, 16384, 16384), matmul(8192, 8192, 8192)]) / times(
        [matmul(1, 16384, 16384), matmul(8192, 8192, 8192)], faster
    )
    assert gain[0] > 1.8 and gain[1] < 1.05


def test_one_tile_too_many_costs_another_wave():
    full, over = matmul(128 * 64, 8192, 512), matmul(128 * 65, 8192, 512)  # 128 and 130 tiles of 128 × 256, of 128
    step = times([over])[0] / times([full])[0]
    assert step > 1.04 > 65 / 64


def test_unknown_units_leave_waves_out():
    smooth = replace(GPU, num_units=None)
    step = times([matmul(128 * 65, 8192, 512)], smooth)[0] / times([matmul(128 * 64, 8192, 512)], smooth)[0]
    assert step == pytest.approx(65 / 64, abs=0.01)


def test_a_cpu_does_not_pad_one_row_to_a_tile():
    one = matmul(1, weights="fp32")
    assert times([one], CPU)[0] < 2 * roofline_s([one], CPU)[0]


def test_a_slow_device_gets_a_wider_interval():
    def width(operator: Operator, ceilings: Ceilings) -> float:
        found = modelled_times([operator], ceilings)
        return found.high_s[0] / found.low_s[0]

    assert width(matmul(1, weights="fp32"), CPU) > 2 * width(matmul(1), GPU)


def test_the_origin_says_modelled_and_the_interval_holds_the_time():
    found = modelled_times(OPERATORS, GPU)
    assert found.origin == "modelled"
    assert ((found.low_s < found.time_s) & (found.time_s < found.high_s)).all()


def test_an_efficiency_that_made_the_times_is_found_again():
    truth = replace(EFFICIENCIES["matmul"], launches=2.0, bandwidth=0.6, rate=0.7)
    operators = [
        matmul(rows, n, k) for rows in (1, 16, 64, 512, 4096) for n in (1024, 4096, 9000) for k in (1024, 8192)
    ]
    made_s = modelled_times(operators, GPU, {"matmul": truth}).time_s
    found = fit_efficiency(operators, made_s, GPU, EFFICIENCIES["matmul"])
    # The rate and that of small tiles say much the same of so few operators, so it is the loosest.
    assert (found.launches, found.bandwidth) == pytest.approx((2.0, 0.6), rel=0.03)
    assert found.rate == pytest.approx(0.7, rel=0.1)
    assert modelled_times(operators, GPU, {"matmul": found}).time_s == pytest.approx(made_s, rel=0.06)


def test_the_mean_of_efficiencies_is_geometric():
    first = EFFICIENCIES["matmul"]
    mean = mean_efficiency([first, replace(first, bandwidth=4 * first.bandwidth)])
    assert mean.bandwidth == pytest.approx(2 * first.bandwidth)
    assert mean.rate == pytest.approx(first.rate)


def test_sensitivities_are_in_the_right_regime():
    operators = [matmul(1, 16384, 16384), matmul(8192, 16384, 16384), matmul(1, 64, 64)]
    found = sensitivity(operators, GPU, EFFICIENCIES["matmul"])
    launches, bandwidth, rate = found[:, 0], found[:, 1], found[:, 2]
    assert bandwidth.argmin() == 0 and rate.argmin() == 1 and launches.argmax() == 2
    assert bandwidth[0] < -0.9 and rate[1] < -0.9


def test_a_missing_rate_is_named():
    with pytest.raises(InputError, match=r"flop_per_s.*bf16.*the rate of fp32"):
        times([matmul(1, weights="fp32")])
