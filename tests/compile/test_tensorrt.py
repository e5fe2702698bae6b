"""TensorRT plans, really parsed and built, which TensorRT-RTX does without a GPU; nothing here can run one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.numpy import save_file

from blockwright.cli.main import main
from blockwright.compile.engine import GRAPH_FILE, TOKENIZER_FILE
from blockwright.compile.tensorrt_build import build, build_apart
from blockwright.compile.tensorrt_engine import (
    PLAN_FILE,
    TensorRtOrder,
    build_tensorrt_engine,
    read_tensorrt_engine,
    token_ranges,
)
from blockwright.compile.tensorrt_package import Form
from blockwright.compile.tensorrt_stored import Stored, stored_for_tensorrt
from blockwright.errors import InputError
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FP16, Attention, Block, GatedFFN, Model, NoOp, parse_format, with_format
from decoders import LLAMA3
from tensorrt_requests import (
    CONTEXT,
    GPUS,
    HETEROGENEOUS,
    PACKAGE,
    PLAIN,
    SMALL,
    request_of,
    written_request,
)

MODELS: dict[str, tuple[Model, str]] = {
    "homogeneous": (SMALL, "fp16"),
    "heterogeneous": (PLAIN, "fp16"),
    "heterogeneous in bf16": (PLAIN, "bf16"),
    "heterogeneous in int4": (PLAIN, "int4-g32"),
    "untied with biases in groups of 128": (
        replace(PLAIN, has_tied_embeddings=False, has_qkv_bias=True, has_output_bias=True, has_ffn_bias=True),
        "int4-g128",
    ),
    "norms on queries and keys": (replace(SMALL, family="qwen3", has_qk_norm=True), "int4-g32"),
    "llama 3's rope": (replace(SMALL, rope=LLAMA3), "fp16"),
    "no attention": (replace(PLAIN, layers=(HETEROGENEOUS[0], HETEROGENEOUS[2])), "int4-g64"),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[Model], Path]:
    def write(model: Model) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        save_file(random_weights(model), folder / "model.safetensors")
        (folder / TOKENIZER_FILE).write_text("{}")
        (folder / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
        return folder

    return write


def order_of(model: Model, text: str, **changes: Any) -> TensorRtOrder:
    order = TensorRtOrder(
        stored=stored_for_tensorrt(model, parse_format(text)),
        num_positions=CONTEXT,
        most_sequences=2,
        package=PACKAGE,
        capabilities=GPUS,
        built_from="digest",
    )
    return replace(order, **changes)


in_both_forms = pytest.mark.parametrize("form", ["fused", "decomposed"])


@in_both_forms
@pytest.mark.parametrize("name", MODELS)
def test_children_parse_and_build_with_every_layer_they_have(
    name: str, form: Form, checkpoint: Callable[[Model], Path], tmp_path: Path
) -> None:
    model, text = MODELS[name]
    engine = build_tensorrt_engine(order_of(model, text, form=form), checkpoint(model), tmp_path / "engine")
    assert read_tensorrt_engine(tmp_path / "engine", is_whole=True) == engine
    assert (engine.is_attention_decomposed, engine.form) == (False, form)
    assert (engine.compute_capabilities, engine.slots, engine.package_version) == (GPUS, CONTEXT, PACKAGE.version)
    num_attentions = sum(isinstance(block.mixer, Attention) for block in model.layers)
    num_fused = num_attentions if form == "fused" else 0
    attentions = {
        "ATTENTION_INPUT": num_fused,
        "ATTENTION_OUTPUT": num_fused,
        "KV_CACHE_UPDATE": 2 * num_fused,
        "ROTARY_EMBEDDING": 2 * num_fused,
        "SOFTMAX": num_attentions - num_fused,
    }
    assert engine.census is not None
    assert {kind: engine.census.get(kind, 0) for kind in attentions} == attentions
    graph = onnx.load(tmp_path / "engine" / GRAPH_FILE, load_external_data=False).graph
    num_integers = sum(node.op_type == "DequantizeLinear" for node in graph.node)
    assert engine.census.get("DEQUANTIZE", 0) == num_integers
    assert (num_integers > 0) == text.startswith("int4")


@in_both_forms
def test_a_plan_is_hardly_larger_than_its_integers(form: Form, tmp_path: Path) -> None:
    """4.2 million weights in int4, a sixteenth in anything else: in fp16 they would be 8.4 MB."""
    layers = (Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=8192)),) * 2
    request = request_of(tmp_path, replace(PLAIN, layers=layers, hidden_size=512, head_dim=128), "int4-g128", form)
    graph_bytes = (tmp_path / GRAPH_FILE).stat().st_size
    build(replace(request, profiles=token_ranges(CONTEXT, decode_takes_one=True)), PACKAGE)
    assert (tmp_path / PLAN_FILE).stat().st_size < 1.1 * graph_bytes + 6e6


def test_int8_is_multiplied_out_which_is_why_it_is_refused(tmp_path: Path) -> None:
    layers = (Block(mixer=NoOp(), ffn=GatedFFN(width=13056)),)
    model = with_format(replace(PLAIN, layers=layers, hidden_size=512), parse_format("int8-g32"))
    request = written_request(tmp_path, Stored(model=replace(model, embedding_weights=FP16), activations="float16"))
    build(replace(request, expected=replace(request.expected, num_integer_matrices=3)), PACKAGE)
    assert (tmp_path / PLAN_FILE).stat().st_size > 1.4 * (tmp_path / GRAPH_FILE).stat().st_size


def test_two_profiles_keep_one_copy_of_the_weights(tmp_path: Path) -> None:
    layers = (Block(mixer=NoOp(), ffn=GatedFFN(width=65536)),)
    request = request_of(tmp_path, replace(PLAIN, layers=layers), profiles=token_ranges(CONTEXT))
    graph_bytes = (tmp_path / GRAPH_FILE).stat().st_size
    build(request, PACKAGE)
    assert 4e7 < graph_bytes < (tmp_path / PLAN_FILE).stat().st_size < 1.4 * graph_bytes


@pytest.mark.parametrize(("most_sequences", "has_copy"), [(1, True), (2, False)])
def test_a_profile_of_one_token_copies_fp16_where_the_batch_is_fixed_too(
    most_sequences: int, has_copy: bool, tmp_path: Path
) -> None:
    layers = (Block(mixer=NoOp(), ffn=GatedFFN(width=65536)),)
    profiles = token_ranges(CONTEXT, decode_takes_one=True)
    request = request_of(tmp_path, replace(PLAIN, layers=layers), profiles=profiles, most_sequences=most_sequences)
    graph_bytes = (tmp_path / GRAPH_FILE).stat().st_size
    build(request, PACKAGE)
    assert ((tmp_path / PLAN_FILE).stat().st_size > 1.6 * graph_bytes) == has_copy


def test_memory_that_a_plan_computes_in_is_its_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph cannot record what makes memory."""
    builder_class, configs = PACKAGE.trt.Builder, list[Any]()
    real = builder_class.create_builder_config

    def keep(builder: Any) -> Any:
        configs.append(real(builder))
        return configs[-1]

    monkeypatch.setattr(builder_class, "create_builder_config", keep)
    build(request_of(tmp_path, SMALL), PACKAGE)
    (config,) = configs
    assert config.get_flag(PACKAGE.trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def test_what_cannot_be_built_is_told_in_tensorrts_own_words(tmp_path: Path) -> None:
    request = request_of(tmp_path, SMALL, "int4-g32", capabilities=("sm75",))
    with pytest.raises(InputError, match=r"Cannot compile for target\(s\) sm75.*int4"):
        build_apart(request, PACKAGE)


@pytest.mark.parametrize(("most_sequences", "complaint"), [(10**7, "OutOfMemory"), (10**8, "volume exceeds")])
def test_too_much_for_the_memory_is_told_with_what_takes_less(
    most_sequences: int, complaint: str, tmp_path: Path
) -> None:
    request = request_of(tmp_path, SMALL, capabilities=("sm86",), most_sequences=most_sequences)
    with pytest.raises(InputError, match=complaint) as refused:
        build_apart(request, PACKAGE)
    assert "--batch" in refused.value.remedy and "--context" in refused.value.remedy


def test_a_build_that_is_killed_is_an_error_and_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_of(tmp_path, SMALL)
    shot = tmp_path / "python"
    shot.write_text("#!/bin/sh\necho terminate called >&2\nkill -ABRT $$\n")
    shot.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(shot))
    with pytest.raises(InputError, match="SIGABRT: terminate called"):
        build_apart(request, PACKAGE)


def test_a_failed_build_leaves_the_engine_that_stood_there(checkpoint: Callable[[Model], Path], tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "kept").write_text("")
    with pytest.raises(InputError, match="sm75"):
        build_tensorrt_engine(order_of(SMALL, "int4-g32", capabilities=("sm75",)), checkpoint(SMALL), folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "engine"]
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_the_command_builds_and_says_what_generating_lacks(
    small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "engine"
    words = ["compile", str(small_parent), "--target", "tensorrt", "--for", "sm86", "--out", str(engine)]
    assert main(words) == 0
    assert "\nbuilt by tensorrt_rtx" in capsys.readouterr().out
    built = read_tensorrt_engine(engine)
    assert (built.format, built.compute_capabilities) == ("fp16", ("sm86",))
    assert built.is_attention_decomposed, "heads of 8 have no kernel of their own"
    before = (engine / PLAN_FILE).stat().st_mtime_ns
    assert main([*words, "--for", " SM86 "]) == 0, "and is not built twice"
    assert "\nunchanged, built by tensorrt_rtx" in capsys.readouterr().out
    assert (engine / PLAN_FILE).stat().st_mtime_ns == before
    assert main([*words, "--form", "decomposed"]) == 0, "the other form is another engine"
    assert (read_tensorrt_engine(engine).form, built.form) == ("decomposed", "fused")
    (engine / PLAN_FILE).unlink()
    with pytest.raises(InputError, match=r"model\.plan: got no such file"):
        read_tensorrt_engine(engine)
