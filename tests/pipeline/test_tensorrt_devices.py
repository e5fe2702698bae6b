"""A search for a TensorRT device from end to end: scores in two formats, a profile, budgets of time and memory, a plan.

The profile is of a device that is made up (`tensorrt_simulated`); the engine is really built, by TensorRT-RTX.
"""

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from blockwright.cli.main import BAD_INPUT, main
from blockwright.compile.engine import GRAPH_FILE
from blockwright.compile.tensorrt_engine import TensorRtEngine, read_tensorrt_engine
from blockwright.cost import Load, Quantity
from blockwright.hw_profiles.folder import read_profile, write_profile
from blockwright.hw_profiles.profile import Profile
from blockwright.llama import llama
from blockwright.model.parent import Parent, open_parent
from blockwright.pipeline.compile_tensorrt import beyond_promises
from blockwright.pipeline.gpu_profile import GpuOrder, profile_gpu
from blockwright.pipeline.library import LibraryOrder, build_library
from blockwright.profiler.cost_model import part_costs, reaches_of
from blockwright.profiler.counted import counting_of
from blockwright.profiler.gpu_plan import QUICK
from blockwright.search.plan import Plan, read_plan
from blockwright.search.scores import format_of, read_scores
from blockwright.search.space import SpaceSettings
from blockwright.spec import Attention, Block, Full, Model, NoOp, Window, parse_format, stored_as, with_format
from plans import plan_here
from tensorrt_here import needs_rtx
from tensorrt_on_cpu import engine_of
from tensorrt_simulated import Simulated, Weighing, simulate

LOAD = Load(batch=1, prompt_tokens=16, new_tokens=16)
FORMATS = ("fp16", "int4-g32")
WORDS = ["--load", "chat=1x16+16", "--backend", "tensorrt"]
BOTH = ["--format", "fp16", "--format", "int4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("devices")


@pytest.fixture(scope="module")
def parent(small_parent: Path) -> Parent:
    return open_parent(str(small_parent))


@pytest.fixture(scope="module")
def library(folder: Path, parent: Parent, small_text: Path) -> Path:
    space = SpaceSettings(kv_head_shares=(0.5,), ffn_width_shares=(0.5,))
    order = LibraryOrder(
        space=space, text=str(small_text), window_tokens=32, seed=0, tokens=512, batch_windows=4, learning_rate=1e-3
    )
    build_library(parent, order, folder / "library")
    return folder / "library"


@pytest.fixture(scope="module")
def scores(folder: Path, library: Path, small_text: Path) -> Path:
    out = folder / "scores.parquet"
    small = ["--text", str(small_text), "--window", "32", "--tokens", "512"]
    assert main(["score", str(library), *small, *BOTH, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def profile(folder: Path, parent: Parent) -> Path:
    plan = replace(QUICK, num_variants=7, num_validated=2, load=LOAD)
    formats = tuple(map(parse_format, FORMATS))
    order = GpuOrder(parent=parent.spec, device="cpu", plan=plan, backend="tensorrt", formats=formats)
    with pytest.MonkeyPatch.context() as monkeypatch:
        simulate(monkeypatch)
        profile_gpu(order, folder / "device")
    return folder / "device"


@pytest.fixture(scope="module")
def budgets(profile: Path, parent: Parent) -> dict[Quantity, float]:
    """Halfway between the parent in fp16 and the parent in int4."""
    known, plain = read_profile(profile), with_format(parent.spec, parse_format("fp16"))
    found: dict[Quantity, float] = {}
    for quantity in ("time_per_token", "memory"):
        reaches = reaches_of(block.mixer for block in plain.layers)
        int4 = parse_format("int4-g32")
        costs = part_costs(known, plain, LOAD, quantity, "tensorrt", formats=[int4], reaches=reaches)
        ends = [costs.of_model(model).high for model in (plain, _layers_in(plain, "int4-g32"))]
        assert ends[1] < ends[0]
        found[quantity] = sum(ends) / 2
    return found


@pytest.fixture(scope="module")
def plan(folder: Path, scores: Path, profile: Path, budgets: dict[Quantity, float]) -> Path:
    out = folder / "plan.json"
    asked = [f"time_per_token@chat <= {1e3 * budgets['time_per_token']:.6f} ms", f"memory@chat <= {budgets['memory']}B"]
    words = [word for text in asked for word in ("--budget", text)]
    common = ["--scores", str(scores), "--profile", str(profile), "--frontier", "0", "--out", str(out)]
    assert main(["search", *common, *WORDS, *BOTH, *words, "--servable-by", "tensorrt"]) == 0
    return out


def _layers_in(model: Model, text: str) -> Model:
    weights = parse_format(text)
    layers = tuple(Block(mixer=stored_as(b.mixer, weights), ffn=stored_as(b.ffn, weights)) for b in model.layers)
    return replace(model, layers=layers)


def _formats(model: Model) -> set[str]:
    parts = [part for block in model.layers for part in (block.mixer, block.ffn)]
    return {str(part.weights) for part in parts if not isinstance(part, NoOp)}


def test_every_candidate_is_scored_in_both_formats_and_loses_less_in_fp16(scores: Path, parent: Parent) -> None:
    table = read_scores(scores)
    assert {format_of(score.candidate) for score in table.scores} == {*FORMATS, ""}
    for layer, block in enumerate(parent.spec.layers):
        lost = {
            format_of(score.candidate): score.estimate.value
            for score in table.scores
            if (score.candidate.layer, score.candidate.part) == (layer, "ffn")
            and score.candidate.variant == stored_as(block.ffn, parse_format(format_of(score.candidate) or "fp32"))
        }
        assert lost["fp16"] < lost["int4-g32"] / 2


def test_a_race_is_run_for_budgets_on_tensorrt(
    library: Path, profile: Path, small_text: Path, budgets: dict[Quantity, float], tmp_path: Path
) -> None:
    small = ["--text", str(small_text), "--window", "32", "--tokens", "1024", "--out", str(tmp_path / "scores.parquet")]
    race = ["--profile", str(profile), "--budget", f"memory@chat <= {budgets['memory']}B"]
    assert main(["score", str(library), *small, *BOTH, *race, *WORDS]) == 0
    table = read_scores(tmp_path / "scores.parquet")
    assert table.effort is not None and table.effort.spent < table.effort.offered


def test_the_plan_keeps_both_budgets_with_a_format_for_each_layer(
    plan: Path, profile: Path, budgets: dict[Quantity, float]
) -> None:
    found = read_plan(plan)
    assert (found.backend, found.format, _formats(found.child)) == ("tensorrt", "mixed", set(FORMATS))
    promised = {promise.quantity: promise for promise in found.promises}
    for quantity, most in budgets.items():
        assert promised[quantity].child.high <= most < promised[quantity].parent.high
    counted = counting_of("tensorrt").whole_bytes(found.child, LOAD)
    assert promised["memory"].child.value == pytest.approx(3e6 + 1.25 * counted, rel=1e-6), "as it is made up"


@needs_rtx
def test_the_plan_is_built_as_it_says_with_the_weights_that_were_counted(
    folder: Path, plan: Path, library: Path
) -> None:
    assert main(["realise", str(plan), "--library", str(library), "--out", str(folder / "child")]) == 0
    words = ["--target", "tensorrt", "--plan", str(plan), "--context", "32", "--for", "sm89"]
    assert main(["compile", str(folder / "child"), *words, "--out", str(folder / "engine")]) == 0
    engine, child = read_tensorrt_engine(folder / "engine", is_whole=True), read_plan(plan).child
    assert (engine.format, engine.activations, engine.model.layers) == ("mixed", "float16", child.layers)
    assert engine.census is not None and engine.census["DEQUANTIZE"] > 0
    counted = counting_of("tensorrt").disk(child).of_model(child).value
    graph = onnx.load(folder / "engine" / GRAPH_FILE, load_external_data=False).graph
    caches = [each for each in graph.input if each.name.startswith("past_")]
    slots = {each.type.tensor_type.shape.dim[2].dim_value for each in caches}
    assert slots <= {engine.slots} and engine.slots == 64
    tables = 2 * engine.num_positions * child.head_dim
    small = sum(_size(each) for each in graph.initializer if not each.external_data)
    assert 0 <= engine.weight_bytes + small - tables - counted < 64 * len(graph.initializer)


def _size(tensor: onnx.TensorProto) -> int:
    """Of what stands in the graph itself, shapes and axes aside."""
    return len(tensor.raw_data) if tensor.data_type == onnx.TensorProto.FLOAT16 else 0


def test_fp16_and_bf16_are_no_choices_of_one_network(
    scores: Path, profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--scores", str(scores), "--profile", str(profile), "--budget", "memory@chat <= 2GB"]
    common += ["--out", str(tmp_path / "plan.json")]
    assert main(["search", *common, *WORDS, "--format", "fp16", "--format", "bf16"]) == BAD_INPUT
    told = " ".join(capsys.readouterr().err.split())
    assert "fp16 and bf16" in told and "Search twice" in told


def test_nor_does_a_race_choose_among_them(
    library: Path, profile: Path, small_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.parquet"
    words = ["score", str(library), "--text", str(small_text), "--window", "32", "--tokens", "512", "--out", str(out)]
    words += ["--format", "fp16", "--format", "bf16"]
    race = ["--profile", str(profile), "--budget", "memory@chat <= 2GB", *WORDS]
    assert main([*words, *race]) == BAD_INPUT
    told = " ".join(capsys.readouterr().err.split())
    assert "fp16 and bf16" in told and "Race twice" in told and not out.exists()
    assert main(words) == 0, "without budgets nothing is chosen"


@pytest.fixture
def without_memory(profile: Path, tmp_path: Path) -> Path:
    """As profiles were before children were weighed."""
    found: Profile = read_profile(profile)
    accuracy = tuple(row for row in found.accuracy if row.quantity != "memory")
    write_profile(replace(found, memory=(), accuracy=accuracy), tmp_path / "older")
    return tmp_path / "older"


def test_a_profile_without_memory_says_what_to_do(
    without_memory: Path, scores: Path, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    common = ["--scores", str(scores), "--profile", str(without_memory), *WORDS, *BOTH, "--frontier", "0"]
    common += ["--out", str(out)]
    assert main(["search", *common, "--budget", "memory@chat <= 2GB"]) == BAD_INPUT
    told = " ".join(capsys.readouterr().err.split())
    assert "no measurement of fp16, int4-g32 on tensorrt at batch 1, 16+16 tokens" in told
    assert "blockwright profile --device cuda --backend tensorrt --load" in told
    assert main(["search", *common, "--budget", "time_per_token@chat <= 90%"]) == 0
    assert "memory" not in {promise.quantity for promise in read_plan(out).promises}
    capsys.readouterr()
    assert main(["predict", str(plan), "--profile", str(without_memory), "--json"]) == 0
    printed = capsys.readouterr()
    assert "memory" not in {record["quantity"] for record in json.loads(printed.out)}
    assert "no memory of tensorrt was measured" in " ".join(printed.err.split())
    assert "--device cuda --backend tensorrt" in " ".join(printed.err.split())


def test_predict_tells_memory_where_it_was_measured(
    profile: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(plan), "--profile", str(profile), "--json"]) == 0
    printed = capsys.readouterr()
    found = {record["quantity"]: record for record in json.loads(printed.out)}
    promised = {promise.quantity: promise for promise in read_plan(plan).promises}
    assert found["memory"]["model"]["value"] == pytest.approx(promised["memory"].child.value)
    assert "memory" not in printed.err


def test_a_sitting_from_before_children_were_weighed_goes_on(
    parent: Parent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(QUICK, num_variants=7, num_validated=2, load=LOAD)
    order = GpuOrder(parent=parent.spec, device="cpu", plan=plan, backend="tensorrt")

    class Killed(Simulated):
        def now_s(self) -> float:
            if len(list(tmp_path.glob("device.work/step-*.json"))) == 14:
                raise KeyboardInterrupt
            return super().now_s()

    with monkeypatch.context() as before:
        simulate(before, Killed)
        with pytest.raises(KeyboardInterrupt):
            profile_gpu(order, tmp_path / "device")
    assert not list(tmp_path.glob("device.work/*.json.tmp"))
    simulate(monkeypatch, Weighing)
    found = profile_gpu(order, tmp_path / "device")
    assert found.coverage.status == "complete"
    assert 0 < len(found.memory) < len(found.wholes) / 2 == 12
    assert read_profile(tmp_path / "device").memory == found.memory


@pytest.mark.parametrize(("context", "is_told"), [(2048, True), (256, False)])
def test_an_engine_for_longer_texts_than_promised_says_what_more_it_takes(context: int, is_told: bool) -> None:
    layer = Block(mixer=Attention(num_kv_heads=2, reach=Full()), ffn=NoOp())
    window = replace(layer, mixer=Attention(num_kv_heads=2, reach=Window(num_tokens=9)))
    model = _wide((window, layer))
    promised: Plan = replace(
        plan_here(model, model),
        backend="tensorrt",
        loads={"chat": Load(batch=2, prompt_tokens=200, new_tokens=20)},
    )
    engine: TensorRtEngine = engine_of(model, context)
    lines = beyond_promises(promised, engine)
    assert bool(lines) == is_told
    if is_told:  # keys and values of 2 heads of 16 numbers in fp16, for 2 sequences: 1024 slots and 2048 for 256 each
        more = 2 * 2 * 2 * 16 * 2 * (1024 + 2048 - 256 - 256)
        assert "--context 220" in lines[0] and f"{more / 1e6:.2f} MB" in lines[0]
    assert beyond_promises(replace(promised, backend="onnxruntime"), engine) == []


def _wide(layers: tuple[Block, ...]) -> Model:
    return llama(layers, hidden_size=64, num_heads=4, head_dim=16, vocab_size=80, max_positions=2048)
