"""Weighing whole models on a GPU: what counts, when it is weighed, and that what goes wrong costs no times.

Devices here are made up: their memory is what the tests say it is.
"""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from blockwright.compile.decoder import decoder_graph
from blockwright.compile.flavour import Flavour
from blockwright.compile.tensorrt_executor import GpuExecutor
from blockwright.cost import Load
from blockwright.hw_profiles.profile import MemoryRow, Point, WholeRow
from blockwright.llama import llama
from blockwright.profiler import gpu_tensorrt
from blockwright.profiler.counted import counting_of
from blockwright.profiler.gpu_bench import Bench, measure_whole, with_scales
from blockwright.profiler.gpu_clock import GpuClock, GpuEffort, GpuTiming, Sample
from blockwright.profiler.gpu_device import CpuDevice, Taken
from blockwright.profiler.gpu_memory import Scales, added_bytes, memory_row
from blockwright.profiler.gpu_plan import points_of
from blockwright.profiler.gpu_sitting import Step, drift_of, run_steps
from blockwright.profiler.gpu_tensorrt import InOnnxRuntime, TensorRtRuntime
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FP16, FP32, Attention, Block, GatedFFN, Model, with_format
from tensorrt_runtime_on_cpu import World, pretend_cuda

LOAD = Load(batch=2, prompt_tokens=40, new_tokens=24)
LAYER = Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=96))
PARENT = with_format(
    llama((LAYER, LAYER), hidden_size=64, num_heads=4, head_dim=16, vocab_size=600, max_positions=64), FP16
)
COUNTED = counting_of("tensorrt").whole_bytes(PARENT, LOAD)
NOTHING = Taken(used_bytes=900, reserved_bytes=300, given_out_bytes=100)
_NETWORK_BYTES, _RUN_BYTES = 10 * COUNTED, 1000


class Weighed(CpuDevice):
    """A device on which every network takes its bytes, and every run that was made ready, as long as they are there."""

    def __init__(self) -> None:
        super().__init__()
        self.networks: weakref.WeakSet = weakref.WeakSet()
        self.runs: weakref.WeakSet = weakref.WeakSet()
        self.num_asked = 0

    def ready(self, run: Callable[[], object]) -> Sample:
        self.runs.add(run)
        return super().ready(run)

    def taken(self) -> Taken | None:
        self.num_asked += 1
        taken = _NETWORK_BYTES * len(self.networks) + _RUN_BYTES * len(self.runs)
        return replace(NOTHING, used_bytes=NOTHING.used_bytes + taken)


def _bench(device: CpuDevice, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Bench, list[Model]]:
    """And what was opened, in turn."""
    opened: list[Model] = []
    real = InOnnxRuntime.open

    def keep(self: InOnnxRuntime, kind: gpu_tensorrt.Kind, stored: gpu_tensorrt.Stored, point: Point) -> object:
        opened.append(stored.model)
        network = real(self, kind, stored, point)
        if isinstance(device, Weighed):
            device.networks.add(network)
        return network

    monkeypatch.setattr(InOnnxRuntime, "open", keep)
    effort = GpuEffort(min_samples=3, limit_s=1e-3, warm_up_s=0.0, warm_up_calls=1)
    runtime = TensorRtRuntime(FP16, InOnnxRuntime(folder=folder / "engine"))
    bench = Bench(parent=PARENT, clock=GpuClock(device, effort, None), device=device, runtime=runtime)
    return with_scales(bench), opened


def test_what_torch_had_kept_counts_where_a_cache_goes_into_it() -> None:
    def after(used: int, reserved: int, given_out: int) -> int:
        taken = Taken(
            used_bytes=NOTHING.used_bytes + used,
            reserved_bytes=NOTHING.reserved_bytes + reserved,
            given_out_bytes=NOTHING.given_out_bytes + given_out,
        )
        return added_bytes(NOTHING, taken)

    assert after(used=500, reserved=0, given_out=0) == 500, "TensorRT's alone"
    assert after(used=500, reserved=200, given_out=150) == 500, "torch's pieces are among what is used"
    assert after(used=500, reserved=0, given_out=150) == 650, "out of what it had kept"
    assert after(used=500, reserved=100, given_out=150) == 550


def test_a_model_is_weighed_with_all_its_points_recorded_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Weighed()
    bench, opened = _bench(device, tmp_path, monkeypatch)
    *times, (row, notes) = measure_whole(bench, PARENT, points_of(LOAD), is_anchor=True, load=LOAD)
    assert [type(each) for each, _ in times] == [WholeRow, WholeRow]
    assert row == MemoryRow(
        backend="tensorrt",
        format="fp16",
        batch=2,
        prompt_tokens=40,
        new_tokens=24,
        peak_bytes=_NETWORK_BYTES + 2 * _RUN_BYTES,
        exact_bytes=COUNTED,
        origin="measured",
    )
    assert isinstance(notes, dict) and notes["before"]["used_bytes"] == NOTHING.used_bytes
    assert not device.networks and not device.runs
    assert [len(model.layers) for model in opened] == [1, 2], "something small came before"
    measure_whole(bench, PARENT, points_of(LOAD), is_anchor=True, load=LOAD)
    assert [len(model.layers) for model in opened] == [1, 2, 2], "once"


def test_runs_of_a_network_share_its_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an engine has them once: two would be weighed."""
    bound: list[dict[str, int]] = []
    real = gpu_tensorrt.OnCpu.bind

    def keep(self: gpu_tensorrt.OnCpu, profile: int, tensors: dict) -> Callable[[], None]:
        bound.append({name: tensor.data_ptr() for name, tensor in tensors.items()})
        return real(self, profile, tensors)

    monkeypatch.setattr(gpu_tensorrt.OnCpu, "bind", keep)
    bench, _ = _bench(Weighed(), tmp_path, monkeypatch)
    child = bench.runtime.open_whole(PARENT, points_of(LOAD))
    runs = [child(point) for point in points_of(LOAD)]
    one, other = bound
    assert {name for name, where in one.items() if other[name] == where} == {
        f"past_{word}_{layer}" for word in ("key", "value") for layer in (0, 1)
    }
    assert len(runs) == 2


class _OfExecutor:
    """Opens what `GpuExecutor` runs, with TensorRT's runtime and CUDA played by ONNX Runtime."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._plan, self._monkeypatch = folder / "model.plan", monkeypatch
        self._plan.write_bytes(b"plan")
        self.contexts: weakref.WeakSet = weakref.WeakSet()

    def stored(self, model: Model) -> gpu_tensorrt.Stored:
        return gpu_tensorrt.Stored(model=with_format(model, FP32), activations="float32")

    def open(self, kind: gpu_tensorrt.Kind, stored: gpu_tensorrt.Stored, point: Point) -> GpuExecutor:
        flavour = Flavour(name="standard", slots=point.slots)
        graph = decoder_graph(stored.model, random_weights(stored.model), point.slots, flavour)
        world = World(graph.SerializeToString(), is_rtx=True)
        world.contexts = SimpleNamespace(append=self.contexts.add)  # type: ignore[assignment]
        pretend_cuda(world, self._monkeypatch)
        return GpuExecutor(world.package(), self._plan, "cpu")


def test_contexts_of_all_points_are_open_while_a_plan_is_weighed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opener, seen = _OfExecutor(tmp_path, monkeypatch), list[int]()

    class Seeing(Weighed):
        def taken(self) -> Taken | None:
            gc.collect()
            seen.append(len(opener.contexts))
            return replace(NOTHING, used_bytes=NOTHING.used_bytes + COUNTED * len(opener.contexts))

    bench, _ = _bench(Seeing(), tmp_path, monkeypatch)
    bench = with_scales(replace(bench, runtime=TensorRtRuntime(FP16, opener)))
    *_, (row, _) = measure_whole(bench, PARENT, points_of(LOAD), is_anchor=True, load=LOAD)
    assert isinstance(row, MemoryRow) and row.peak_bytes == 2 * COUNTED
    assert seen == [0, 0, 2]
    gc.collect()
    assert not opener.contexts


def test_where_nobody_counts_nothing_is_weighed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, opened = _bench(CpuDevice(), tmp_path, monkeypatch)
    rows = [row for row, _ in measure_whole(bench, PARENT, points_of(LOAD), is_anchor=True, load=LOAD)]
    assert [type(row) for row in rows] == [WholeRow, WholeRow]
    assert [len(model.layers) for model in opened] == [2]
    without = Weighed()
    bench, _ = _bench(without, tmp_path, monkeypatch)
    measure_whole(replace(bench, scales=None), PARENT, points_of(LOAD), is_anchor=True, load=LOAD)
    assert without.num_asked == 0


def test_memory_that_somebody_else_gave_back_costs_no_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shared(Weighed):
        def taken(self) -> Taken | None:
            taken = super().taken()
            assert taken is not None
            return taken if not self.networks else replace(taken, used_bytes=NOTHING.used_bytes + COUNTED - 1)

    bench, _ = _bench(Shared(), tmp_path, monkeypatch)
    found = measure_whole(bench, PARENT, points_of(LOAD), is_anchor=True, load=LOAD)
    assert [type(row) for row, _ in found] == [WholeRow, WholeRow]
    first, last = (notes for _, notes in found)
    assert isinstance(first, GpuTiming)
    assert isinstance(last, dict) and "something else gave memory back" in last["not_weighed"]
    assert last["median_s"] > 0, "beside how the time was taken"


def test_less_than_weights_and_caches_is_no_measurement() -> None:
    taken = replace(NOTHING, used_bytes=NOTHING.used_bytes + COUNTED)
    row, _ = memory_row("tensorrt", FP16, PARENT, LOAD, (NOTHING, taken))
    assert (row.peak_bytes, row.exact_bytes) == (COUNTED, COUNTED)
    with pytest.raises(RuntimeError, match="weights and caches alone"):
        memory_row("tensorrt", FP16, PARENT, LOAD, (NOTHING, replace(taken, used_bytes=taken.used_bytes - 1)))


def test_what_cannot_be_opened_once_does_not_stop_what_comes() -> None:
    calls: list[str] = []

    def fail() -> None:
        calls.append("asked")
        raise RuntimeError("no kernel")

    scales = Scales(Weighed(), fail)
    assert scales.before() == scales.before() == NOTHING
    assert calls == ["asked"]


def test_repeats_of_cases_from_before_children_were_weighed_still_tell_the_drift(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A work folder of an older version has times alone; what goes on in it weighs."""
    bench, _ = _bench(Weighed(), tmp_path, monkeypatch)

    def step(name: str, load: Load | None) -> Step:
        return Step(name=name, measure=lambda: measure_whole(bench, PARENT, points_of(LOAD), True, load))

    old, again = step("whole", None), step("again: whole", LOAD)
    work = tmp_path / "work"
    run_steps([old], work, lambda: 1.0, lambda _: None, lambda: None)
    done = run_steps([old, again], work, lambda: 1.0, lambda _: None, lambda: None)
    assert [len(each.rows) for each in done] == [2, 3]
    drift = drift_of([each.rows for each in done], 1)
    assert drift is not None and drift.num_repeated == 2
