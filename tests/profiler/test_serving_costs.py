"""What serving costs: time, energy, throughput and memory, and what is refused."""

import importlib
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.datasheet_figures import datasheet_ceilings
from blockwright.llama import LLAMA_8B
from blockwright.profiler.serving import max_sequences, power_of, serve, step_time, step_use
from blockwright.profiler.serving_operators import STORAGES, Step
from blockwright.profiler.serving_runtimes import RUNTIMES, Power
from serving_small import BARE, H100, WEIGHTS, server

DATA = Path(os.environ.get("BLOCKWRIGHT_DATA") or Path(__file__).parents[3] / "shared" / "data")


def test_power_lies_between_idle_and_the_limit():
    power = Power(idle=0.2, reading=1.0, products=2.0, busy=0.5)
    assert power.share(0, 0, 0) == pytest.approx(0.2)
    assert power.share(0.5, 0.1, 0.8) == pytest.approx(0.2 + 0.8 * (1 - math.exp(-1.1)))
    assert 0.2 < power.share(1, 1, 1) < 1


def test_energy_is_power_times_time_over_tokens_and_never_nothing():
    of = server()
    service = serve(of, Load(batch=32, prompt_tokens=200, new_tokens=400))
    assert service.energy_per_token is not None
    assert 0 < service.energy_per_token.low < service.energy_per_token.value < service.energy_per_token.high
    watts = service.energy_per_token.value * service.throughput.value
    assert 0.1 * 700 < watts < 700
    use = step_use(of, Step(sequences=32, context=400, prompts=1, prompt_tokens=16))
    assert watts == pytest.approx(power_of(of, use))


def test_devices_that_wait_for_each_other_draw_for_their_share_of_the_step():
    runtime = replace(RUNTIMES["llama.cpp-cuda"], hop_s=0.0)
    one, two = (server(runtime=runtime, num_devices=n) for n in (1, 2))
    load = Load(batch=1, prompt_tokens=1, new_tokens=100)
    use = step_use(one, Step(sequences=1, context=51))
    power_w = power_of(two, replace(use, device_s=use.device_s / 2, num_bytes=use.num_bytes / 2, flop=use.flop / 2))
    energy = serve(two, load).energy_per_token
    assert power_w and energy and energy.value == pytest.approx(2 * power_w * use.time_s, rel=1e-6)


def test_energy_is_unknown_without_a_power_limit():
    of = server(ceilings=replace(H100, busy_w=None))
    assert serve(of, Load(batch=1, prompt_tokens=8, new_tokens=8)).energy_per_token is None


def test_batching_gives_more_tokens_for_less_energy_each():
    few, many = (serve(server(), Load(batch=n, prompt_tokens=200, new_tokens=400)) for n in (4, 256))
    assert many.throughput.value > 5 * few.throughput.value
    assert many.time_per_token.value > few.time_per_token.value
    assert many.energy_per_token and few.energy_per_token
    assert many.energy_per_token.value < few.energy_per_token.value / 3


def test_throughput_is_the_batch_over_the_mean_step():
    fixed = server(runtime=replace(BARE, step_s=0.5), operator_times=lambda operators: np.zeros(len(operators)))
    service = serve(fixed, Load(batch=20, prompt_tokens=10, new_tokens=10))
    assert service.throughput.value == pytest.approx(40.0)


def test_the_median_step_reads_no_prompt_where_few_sequences_end():
    service = serve(server(), Load(batch=32, prompt_tokens=500, new_tokens=100), mean_context=550)
    assert service.time_per_token == step_time(server(), Step(sequences=32, context=550))
    assert service.batch / service.throughput.value > service.time_per_token.value


def test_every_cost_is_modelled_and_inside_its_interval():
    service = serve(server(), Load(batch=16, prompt_tokens=100, new_tokens=100))
    costs = [service.time_per_token, service.time_to_first_token, service.throughput, service.energy_per_token]
    for cost in costs:
        assert cost and cost.origin == "modelled"
        assert 0 < cost.low < cost.value < cost.high < math.inf


def test_memory_bounds_the_sequences():
    of = server(memory_bytes=80e9)
    room = 0.9 * 80e9 - 3.5e9 - 2 * WEIGHTS
    assert max_sequences(of, 1000.0) == pytest.approx(room / (131072 * 1000))
    assert serve(of, Load(batch=100_000, prompt_tokens=500, new_tokens=1000)).batch == int(room / (131072 * 1000))


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"room for 15\.\d+ GB of weights") as caught:
        serve(server(memory_bytes=16e9), Load(batch=1, prompt_tokens=10, new_tokens=10))
    assert caught.value.field == "server.memory_bytes"


def test_heads_that_cannot_be_shared_out_are_refused():
    with pytest.raises(InputError, match="num_devices: got 3"):
        step_time(server(num_devices=3), Step(sequences=1, context=1))


@pytest.mark.parametrize("numbers", [(0, 0, 0, 0), (-1, 8, 0, 0), (1, 0, 0, 0), (0, 0, 1, 0)])
def test_a_step_without_work_is_refused(numbers: tuple[int, int, int, int]):
    sequences, context, prompts, prompt_tokens = numbers
    with pytest.raises(InputError, match=r"^step"):
        Step(sequences=sequences, context=context, prompts=prompts, prompt_tokens=prompt_tokens)


def test_a_format_that_the_device_lacks_is_refused():
    with pytest.raises(InputError, match="storage: got fp8 on a device with rates of fp32"):
        step_time(
            server(ceilings=datasheet_ceilings("raspberry_pi_5"), storage=STORAGES["fp8"]), Step(sequences=1, context=1)
        )


def test_a_server_without_layers_is_refused():
    with pytest.raises(InputError, match=r"^model"):
        server(model=replace(LLAMA_8B, layers=()))


@pytest.mark.skipif(
    not (DATA / "hw" / "llamacpp_gpu_bench").is_dir(),
    reason="no hw/llamacpp_gpu_bench: neither in BLOCKWRIGHT_DATA nor in shared/data beside the checkout",
)
def test_the_open_tables_are_predicted_as_well_as_is_claimed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "costmodel"))
    tables = importlib.import_module("serving_tables")
    rows = [row for row in tables.llamacpp(DATA / "hw") if not row.device.startswith(tables.METAL)]
    costs = []
    for row in rows:
        of = server(
            model=tables.model(row.model),
            ceilings=tables.ceilings(row.device),
            runtime=RUNTIMES["llama.cpp-cuda"],
            storage=STORAGES[row.storage],
            num_devices=row.num_devices,
        )
        costs.append(step_time(of, Step(sequences=1, context=row.num_tokens // 2)))
    errors = np.abs([cost.value / row.token_s - 1 for cost, row in zip(costs, rows, strict=True)])
    held = [cost.low <= row.token_s <= cost.high for cost, row in zip(costs, rows, strict=True)]
    assert errors.mean() < 0.08 and (errors < 0.25).mean() > 0.97 and np.mean(held) > 0.85
