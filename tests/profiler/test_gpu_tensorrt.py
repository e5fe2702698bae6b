"""Blocks in TensorRT: plans are really parsed and built, by TensorRT-RTX; what they compute runs in ONNX Runtime."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DynamicCache

from blockwright.compile.tensorrt_engine import PLAN_FILE
from blockwright.compile.tensorrt_stored import Stored, stored_for_tensorrt
from blockwright.hw_profiles.profile import Point, WholeRow
from blockwright.model.child import build_child, load_weights
from blockwright.profiler.bench import block_of
from blockwright.profiler.gpu_bench import Bench, measure_part, measure_whole
from blockwright.profiler.gpu_device import CpuDevice
from blockwright.profiler.gpu_plan import variants
from blockwright.profiler.gpu_tensorrt import InOnnxRuntime, Kind, Network, TensorRtRuntime
from blockwright.profiler.synthetic import RepeatedWeights, random_weights
from blockwright.profiler.torch_blocks import hf_config
from blockwright.spec import (
    FFN,
    FP32,
    Attention,
    Block,
    GatedFFN,
    Mixer,
    Model,
    NoOp,
    parse_format,
    variant_name,
    with_format,
)
from tensorrt_stacks import DECODE, PARENT, PREFILL, VARIANTS, bench_of, stack_of

LONG = Point(batch=1, new_tokens=1, slots=1152)
"""Where a window's tokens go round in fewer slots."""


class Kept:
    """An opener and its network, ONNX Runtime in fp32, that keeps what is bound to it."""

    device = torch.device("cpu")

    def __init__(self, folder: Path) -> None:
        self._opener = InOnnxRuntime(folder=folder)
        self.tensors: Mapping[str, torch.Tensor] = {}

    def stored(self, model: Model) -> Stored:
        return Stored(model=with_format(model, FP32), activations="float32")

    def open(self, kind: Kind, stored: Stored, point: Point) -> Network:
        self._network = self._opener.open(kind, stored, point)
        self.inputs = self._network.inputs
        return self

    def bind(self, profile: int, tensors: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        self.tensors = tensors
        return self._network.bind(profile, tensors)


def opened(
    kind: Kind, model: Model, point: Point, folder: Path
) -> tuple[Callable[[], object], Mapping[str, torch.Tensor]]:
    """What is timed at a point, and the tensors that it reads and writes."""
    kept = Kept(folder)
    runtime = TensorRtRuntime(FP32, kept)
    run = (runtime.open_stack if kind == "stack" else runtime.open_whole)(model, [point])(point)
    return run, kept.tensors


def _num_before(point: Point) -> int:
    """A prompt is the first of its text, a single token takes the last slot."""
    return 0 if point.new_tokens > 1 else point.slots - 1


def _in_torch(model: Model, tensors: dict[str, torch.Tensor], point: Point) -> torch.Tensor:
    """The same layers in transformers, over what the caches hold before the new tokens: hidden states, BTD."""
    weights = {name: torch.from_numpy(np.array(array)) for name, array in RepeatedWeights(model).items()}
    child = load_weights(build_child(model, hf_config(model)), weights)
    child.model.norm = nn.Identity()
    num_before = _num_before(point)
    cache = DynamicCache()
    for index, block in enumerate(model.layers):
        if isinstance(block.mixer, Attention) and num_before:
            kept = (tensors[f"past_{word}_{index}"] for word in ("key", "value"))
            key, value = (each[:, :, torch.arange(num_before) % each.shape[2]] for each in kept)
            cache.update(key, value, index)
    positions_BT = torch.arange(num_before, num_before + point.new_tokens)[None]
    with torch.inference_mode():
        found = child.model(
            inputs_embeds=tensors["hidden_in"], position_ids=positions_BT, past_key_values=cache, use_cache=True
        )
    return found.last_hidden_state


@pytest.mark.parametrize("point", [DECODE, PREFILL, LONG], ids=["decode", "prefill", "behind many"])
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
def test_a_stack_computes_what_torch_computes(variant: Mixer | FFN, point: Point, tmp_path: Path) -> None:
    model = stack_of(variant)
    run, tensors = opened("stack", model, point, tmp_path / "engine")
    before = {name: tensor.clone() for name, tensor in tensors.items() if name.startswith("past_")}
    expected = _in_torch(model, {name: tensor.clone() for name, tensor in tensors.items()}, point)
    run()
    torch.testing.assert_close(tensors["hidden_out"], expected, atol=1e-4, rtol=1e-4)
    for name, cache in before.items():
        start = _num_before(point) % cache.shape[2]
        new = slice(start, start + point.new_tokens)
        assert not torch.equal(tensors[name][:, :, new], cache[:, :, new]), "caches are updated where they lie"
        tensors[name][:, :, new] = cache[:, :, new]
        assert torch.equal(tensors[name], cache), "and nowhere else"


def test_caches_and_hidden_states_are_random(tmp_path: Path) -> None:
    """Zeros take a GPU less power, and so may take it less time."""
    _, tensors = opened("stack", stack_of(VARIANTS[0]), PREFILL, tmp_path / "engine")
    read = [tensor for name, tensor in tensors.items() if name.startswith(("past_", "hidden_in"))]
    assert len(read) == 5
    for each in read:
        assert abs(each.mean()) < 0.1 and 0.9 < each.std() < 1.1


def test_a_run_of_a_whole_model_writes_where_its_tokens_stand_as_a_step_of_an_engine_does(tmp_path: Path) -> None:
    run, tensors = opened("whole", PARENT, DECODE, tmp_path / "engine")
    places = {name: each for name, each in tensors.items() if name not in ("ids", "last", "logits")}
    places = {name: each for name, each in places.items() if not name.startswith("past_")}
    written = {name: each.clone() for name, each in places.items()}
    assert written and all(each.any() for each in written.values())
    for each in places.values():
        each.zero_()
    run()
    for name, each in places.items():
        assert torch.equal(each, written[name]), name


def test_repeated_weights_have_the_names_and_shapes_of_random_ones() -> None:
    model = replace(PARENT, has_tied_embeddings=False, has_qkv_bias=True, has_qk_norm=True)
    repeated, random = RepeatedWeights(model, num_values=1000), random_weights(model)
    assert list(repeated) == list(random) and len(repeated) == len(random)
    assert all(repeated[name].shape == array.shape for name, array in random.items())
    assert all(repeated[name].dtype == np.float32 for name in random)
    gate, up = (repeated[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    assert not np.array_equal(gate, up) and 0.015 < gate.std() < 0.025
    assert 0.95 < repeated["model.norm.weight"].mean() < 1.05
    assert repeated.get("model.layers.0.mlp.gate_proj.bias") is None


def test_what_a_kill_left_is_not_taken_for_a_plan(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / PLAN_FILE).write_text("half a plan")
    opened("stack", stack_of(VARIANTS[0]), DECODE, folder)
    assert not folder.exists()


class Simulated(CpuDevice):
    """Runs what it is given once, and says what it would take: a second for each layer and ten beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.elapsed_s, self.depths = 0.0, list[int]()

    def eager(self, run: Callable[[], object]) -> Callable[[], float]:
        run()
        layers = 10.0 + self.depths.pop(0)

        def sample() -> float:
            self.elapsed_s += layers
            return layers

        return sample

    def now_s(self) -> float:
        return self.elapsed_s


def _bench(device: CpuDevice, tmp_path: Path, text: str = "fp16") -> Bench:
    return bench_of(TensorRtRuntime(parse_format(text), InOnnxRuntime(folder=tmp_path / "engine")), device)


@pytest.mark.parametrize("text", ["fp16", "int4-g32"])
def test_a_part_is_a_row_of_tensorrt_at_each_point_by_the_slope_of_its_stacks(text: str, tmp_path: Path) -> None:
    device = Simulated()
    device.cache_bytes, device.depths = 1, [4, 8, 4, 8]
    bench = _bench(device, tmp_path, text)
    variant = GatedFFN(width=96, weights=bench.runtime.weights)
    rows = [row for row, _ in measure_part(bench, variant, [DECODE, PREFILL])]
    assert [(row.backend, row.format, row.variant, row.point, row.time_s) for row in rows] == [
        ("tensorrt", text, "ffn-96", DECODE, 1.0),
        ("tensorrt", text, "ffn-96", PREFILL, 1.0),
    ]


def test_whole_children_choose_the_next_token(tmp_path: Path) -> None:
    chosen: list[object] = []

    class Kept(CpuDevice):
        def eager(self, run: Callable[[], object]) -> Callable[[], float]:
            chosen.append(run())
            return super().eager(run)

    bench = _bench(Kept(), tmp_path)
    ((row, _),) = measure_whole(bench, bench.parent, [PREFILL], is_anchor=True)
    assert isinstance(row, WholeRow)
    assert (row.backend, row.format, row.layers[1]) == ("tensorrt", "fp16", ("attention-kv2", "none"))
    (ids_B,) = chosen
    assert isinstance(ids_B, torch.Tensor) and ids_B.shape == (2,) and ids_B.dtype == torch.int64


def test_widths_are_whole_numbers_of_groups() -> None:
    wide = replace(PARENT, layers=(Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=4096)),))
    for text in ("fp16", "int4-g128"):
        weights = parse_format(text)
        _, ffns = variants(with_format(wide, weights), 20, weights)
        widths = [each.width for each in ffns if isinstance(each, GatedFFN)]
        assert len(widths) > 10 and all(width % (weights.group_size or 1) == 0 for width in widths)
        for each in ffns:
            if not isinstance(each, NoOp):
                stored_for_tensorrt(replace(wide, layers=(block_of(each),)), None)
