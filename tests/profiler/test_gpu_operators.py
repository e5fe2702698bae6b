"""Operators, blocks, ceilings and a whole sitting, on the CPU: the same code as on a GPU but for graphs."""

import inspect
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache

from blockwright.cost import Load
from blockwright.hw_profiles.profile import Point, WholeRow
from blockwright.llama import llama
from blockwright.profiler import gpu_clock, gpu_operators, gpu_plan
from blockwright.profiler.energy import Nvml
from blockwright.profiler.gpu_bench import Bench, copies_of, measure_part, measure_whole
from blockwright.profiler.gpu_blocks import BF16, TorchRuntime, build_random, measure_memory, step_of
from blockwright.profiler.gpu_ceilings import TINY, measure_ceilings
from blockwright.profiler.gpu_clock import GpuClock, GpuEffort
from blockwright.profiler.gpu_device import CpuDevice
from blockwright.profiler.gpu_operators import attend, grid, matmul, measure_operator, name_of, work_of
from blockwright.profiler.gpu_plan import FULL, QUICK, estimate_s, profile_steps, variants
from blockwright.profiler.gpu_power import measure_powers
from blockwright.profiler.operators import Elementwise
from blockwright.spec import (
    Attention,
    Block,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    Window,
    with_format,
)

EFFORT = GpuEffort(min_samples=3, limit_s=0.001, warm_up_s=0.0, warm_up_calls=1)
DECODE, PREFILL = Point(batch=2, new_tokens=1, slots=64), Point(batch=2, new_tokens=16, slots=64)
MIXED = (
    Block(mixer=NoOp(), ffn=GatedFFN(width=64)),
    Block(mixer=Attention(num_kv_heads=2), ffn=NoOp()),
    Block(mixer=LinearMixer(), ffn=GatedFFN(width=48)),
    Block(mixer=Attention(num_kv_heads=4), ffn=LinearFFN()),
)


def _model(layers: tuple[Block, ...] = MIXED) -> Model:
    model = llama(
        layers, vocab_size=128, hidden_size=32, num_heads=4, head_dim=8, max_positions=256, has_tied_embeddings=False
    )
    return with_format(replace(model, family="mistral"), BF16)


def _bench(model: Model, device: CpuDevice | None = None, effort: GpuEffort = EFFORT) -> Bench:
    device = device or CpuDevice()
    return Bench(parent=model, clock=GpuClock(device, effort, None), device=device, runtime=TorchRuntime(device))


def _cells_of(run: Callable[[], object]) -> Mapping[str, Any]:
    """What a step holds: its model, its cache, its tokens."""
    return inspect.getclosurevars(run).nonlocals


@pytest.mark.parametrize("operator", grid(is_small=True), ids=name_of)
def test_each_kind_of_operator_gives_a_row_of_itself(operator: gpu_operators.Operator) -> None:
    device = CpuDevice()
    row, timing = measure_operator(operator, GpuClock(device, EFFORT, None), device)
    assert type(operator)(**row.fields) == operator  # type: ignore[arg-type]
    assert row.time_s == timing.median_s > 0


def test_products_rotate_over_random_weights_of_five_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.Tensor] = []
    monkeypatch.setattr(F, "linear", lambda x, w: used.append(w))
    device = CpuDevice()
    device.cache_bytes = 2 * 64 * 32
    work = work_of(matmul(2, 64, 32), device)
    work.run()
    assert work.times == len(used)
    assert len({w.data_ptr() for w in used}) == 5
    assert [w.data_ptr() for w in used[:5]] == [w.data_ptr() for w in used[5:10]]
    assert all(w.float().std() > 0.5 for w in used[:5])


@pytest.mark.parametrize("new_tokens", [1, 8])
def test_attention_is_what_the_operator_says(new_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple, dict]] = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *tensors, **options: asked.append((tensors, options)))
    work_of(attend(3, new_tokens, 8, (4, 2, 16)), CpuDevice()).run()
    (q_BHTD, k_BHSD, v_BHSD), options = asked[0]
    assert q_BHTD.shape == (3, 4, new_tokens, 16)
    assert k_BHSD.shape == v_BHSD.shape == (3, 2, 8, 16)
    assert options == {"is_causal": new_tokens > 1, "enable_gqa": True}


def test_the_grid_holds_each_operator_once_and_steps_over_tiles() -> None:
    operators = grid()
    assert len(set(operators)) == len(operators) < 150
    assert {16, 17, 128, 129} <= {each.rows for each in operators if isinstance(each, gpu_operators.Matmul)}
    assert all(each.num_values % 3 == 0 for each in operators if isinstance(each, Elementwise))


def test_a_step_over_fixed_slots_writes_what_a_growing_cache_writes() -> None:
    model, device = _model(), CpuDevice()
    child = build_random(model, device)
    run = step_of(child, model, DECODE, device)
    first = run()
    cells = _cells_of(run)
    fixed, ids_BT = cells["cache"], cells["ids_BT"]
    grown = DynamicCache()
    for index, layer in enumerate(fixed.layers):
        if layer.is_initialized:
            grown.update(layer.keys[:, :, :-1], layer.values[:, :, :-1], index)
        else:
            grown.update(torch.empty(2, 1, 63, 8), torch.empty(2, 1, 63, 8), index)
    with torch.inference_mode():
        expected = child(ids_BT, past_key_values=grown, logits_to_keep=1).logits.argmax(-1)
    assert torch.equal(first, expected) and torch.equal(run(), expected)


def test_a_prompt_is_read_as_without_a_cache() -> None:
    model, device = _model(), CpuDevice()
    child = build_random(model, device)
    run = step_of(child, model, PREFILL, device)
    cells = _cells_of(run)
    with torch.inference_mode():
        expected = child(cells["ids_BT"], use_cache=False, logits_to_keep=1).logits.argmax(-1)
    assert torch.equal(run(), expected)


def test_a_window_keeps_its_own_tokens_only() -> None:
    model, device = (
        _model((Block(mixer=Attention(num_kv_heads=2, reach=Window(num_tokens=16)), ffn=NoOp()),)),
        CpuDevice(),
    )
    run = step_of(build_random(model, device), model, DECODE, device)
    run()
    cells = _cells_of(run)
    assert cells["cache"].layers[0].keys.shape == (2, 2, 16, 8)


def test_models_are_random_bf16_with_precise_rotations() -> None:
    child = build_random(_model(), CpuDevice())
    assert {weight.dtype for weight in child.parameters()} == {torch.bfloat16}
    assert all(weight.float().std() > 0.01 for weight in child.parameters())
    assert child.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_part_is_a_row_at_each_point_by_the_slope_of_its_stacks() -> None:
    class Counted(CpuDevice):
        """Takes a second for each layer and ten beside them."""

        def eager(self, run: Callable[[], object]) -> Callable[[], float]:
            cells = _cells_of(run)
            return lambda: 10.0 + len(cells["child"].model.layers)

    rows = [row for row, _ in measure_part(_bench(_model(), Counted()), GatedFFN(width=48), [DECODE, PREFILL])]
    assert [(row.part, row.variant, row.point, row.time_s) for row in rows] == [
        ("ffn", "ffn-48", DECODE, 1.0),
        ("ffn", "ffn-48", PREFILL, 1.0),
    ]


def test_stacks_leave_the_cache_unless_the_parent_does_not() -> None:
    variant = GatedFFN(width=64, weights=BF16)  # 12 KiB and its norm
    parent = replace(_model(), layers=MIXED * 8)
    assert copies_of(parent, variant, 1) == 4
    assert 20 <= copies_of(parent, variant, 57_344) <= 30
    assert copies_of(parent, variant, 2**30) == 32


def test_whole_children_are_timed_with_their_layers() -> None:
    ((row, _),) = measure_whole(_bench(_model()), _model(), [PREFILL], is_anchor=True)
    assert isinstance(row, WholeRow)
    assert row.layers[1] == ("attention-kv2", "none") and row.is_anchor and row.time_s > 0


def test_memory_is_what_was_there_at_most_less_what_was_there_before() -> None:
    class Counted(CpuDevice):
        peaks = iter([(999, 999), (100, 200), (100_000, 150_000)])

        def peak_bytes(self) -> tuple[int, int] | None:
            return next(self.peaks)

    model = _model()
    ((row, notes),) = measure_memory(_bench(model, Counted()), model, Load(batch=2, prompt_tokens=16, new_tokens=40))
    weights = sum(weight.numel() for weight in build_random(model, CpuDevice()).parameters())
    caches = 2 * (2 + 4) * 8 * 64 * 2  # keys and values, heads, values, slots, sequences
    assert row.exact_bytes == 2 * (weights + caches)
    assert (row.peak_bytes, notes["reserved_bytes"]) == (99_900, 149_800)


def test_where_nobody_counts_memory_there_is_no_row() -> None:
    assert measure_memory(_bench(_model()), _model(), FULL.load) == []


def test_ceilings_tell_what_a_device_has_no_product_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    device = CpuDevice()
    found = measure_ceilings(GpuClock(device, EFFORT, None), device, TINY)
    assert found.refused["fp8"] == "no such kernel"
    assert {"fp32", "bf16"} <= found.ceilings.flop_per_s.keys()
    assert "fp8" not in found.ceilings.flop_per_s
    assert min(found.copy_bytes_per_s, found.eager_launch_s, found.ceilings.read_bytes_per_s.value) > 0


def test_power_of_a_device_that_no_counter_counts_is_unknown() -> None:
    assert measure_powers(_bench(_model()), DECODE, Nvml(lambda: 0)) == {}
    assert measure_powers(_bench(_model()), DECODE, None) == {}


def test_sixty_variants_span_the_parents_own() -> None:
    parent = replace(_model(), layers=(Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=14336)),))
    mixers, ffns = variants(parent, 60, BF16)
    heads = [each.num_kv_heads for each in mixers if isinstance(each, Attention)]
    widths = [each.width for each in ffns if isinstance(each, GatedFFN)]
    assert heads == [4, 2, 1]
    assert widths[0] == pytest.approx(1434, abs=32) and widths[-1] == 14336 and len(set(widths)) == len(widths)
    assert 58 <= len(mixers) + len(ffns) - 2 <= 61


class Simulated(CpuDevice):
    """Runs take a millisecond or several of a clock of its own: noisy, so that no interval gets narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.elapsed_s, self.noise = 0.0, random.Random(0)

    def eager(self, run: Callable[[], object]) -> Callable[[], float]:
        def sample() -> float:
            took_s = 1e-3 * self.noise.uniform(0.5, 3.0)
            self.elapsed_s += took_s
            return took_s

        return sample

    def now_s(self) -> float:
        return self.elapsed_s


def test_a_sitting_takes_no_longer_than_was_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-ups, limits and points as they are measured, against how many of them the estimate counts."""
    monkeypatch.setattr(gpu_clock, "_MOST_NARROWING", 2.0)  # so that no sampling ends before its time is up
    for guess in ("_BESIDE_OPERATOR_S", "_BESIDE_POINT_S", "_BUILD_S"):  # of what only a GPU's host takes
        monkeypatch.setattr(gpu_plan, guess, 0.0)
    device = Simulated()
    plan = replace(QUICK, effort=FULL.effort, operator_effort=FULL.operator_effort)
    steps = profile_steps([_bench(_model(), device, plan.effort)], plan)
    steps = [step for step in steps if not step.name.startswith("memory")]  # nothing is timed there
    for step in steps:
        step.measure()
    said_s = estimate_s(plan, steps)
    assert 0.8 * said_s < device.elapsed_s < 1.02 * said_s  # the last sample begins before time is up


def test_the_cases_of_a_full_profile_have_names_of_their_own() -> None:
    parent = replace(_model(), layers=(Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=14336)),) * 8)
    steps = profile_steps([_bench(parent)], FULL)
    assert len({step.name for step in steps}) == len(steps)
