"""`blockwright compile`: in which operators an engine is written, and how that is refused."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from blockwright.cli.main import main
from blockwright.compile.engine import GRAPH_FILE, read_engine
from blockwright.compile.flavour import FlavourName
from blockwright.compile.session import Decoder
from blockwright.errors import InputError
from blockwright.model.parent import open_parent
from blockwright.pipeline.compile import CompileOrder, compile_checkpoint
from blockwright.pipeline.measure import check_promises_hold_here
from blockwright.search.plan import Plan
from plans import plan_here

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    def run(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(("flavour", "domains"), [("standard", {""}), ("contrib", {"", "com.microsoft"})])
def test_an_engine_is_written_in_the_operators_that_were_asked_for(
    flavour: FlavourName, domains: set[str], small_parent: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    words = ["compile", str(small_parent), "--format", "int4", "--flavour", flavour, "--out", str(engine)]
    assert main(words) == 0
    assert read_engine(engine).flavour == flavour
    assert {node.domain for node in onnx.load(engine / GRAPH_FILE, load_external_data=False).graph.node} == domains
    assert Decoder.open(engine).start(1, 8).prefill([[1, 2, 3]]).shape[0] == 1


def test_without_a_flavour_engines_are_written_as_profiles_measure_them(small_parent: Path, tmp_path: Path) -> None:
    assert main(["compile", str(small_parent), "--out", str(tmp_path / "engine")]) == 0
    assert read_engine(tmp_path / "engine").flavour == "standard"


def test_heads_that_contrib_has_no_attention_for_are_refused_before_anything_is_written(
    small_parent: Path, refused: Refused, tmp_path: Path
) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(small_parent, parent)
    LlamaForCausalLM(LlamaConfig.from_pretrained(parent, head_dim=12)).save_pretrained(parent)
    said = refused("compile", parent, "--flavour", "contrib", "--out", tmp_path / "engine")
    assert "contrib for heads of 12" in said and "multiple of 8" in said
    assert not (tmp_path / "engine").exists()
    assert main(["compile", str(parent), "--flavour", "standard", "--out", str(tmp_path / "engine")]) == 0


def test_checkpoints_for_others_have_no_settings_of_onnxruntime(
    small_parent: Path, refused: Refused, tmp_path: Path
) -> None:
    for words, said in (
        (("--flavour", "contrib"), ("--flavour", "contrib for")),
        (("--tune",), ("--tune", "it for")),
    ):
        error = refused("compile", small_parent, "--target", "transformers", *words, "--out", tmp_path / "out")
        assert f"error in {said[0]}" in error and f"{said[1]} transformers" in error


@pytest.mark.parametrize("target", ["onnxruntime", "vllm", "onnxruntime-genai"])
def test_only_engines_of_tensorrt_have_a_form(
    target: str, small_parent: Path, refused: Refused, tmp_path: Path
) -> None:
    words = ["compile", small_parent, "--target", target, "--form", "decomposed", "--out", tmp_path / "out"]
    error = refused(*words)
    assert "error in --form" in error and f"decomposed for {target}" in error and "--target tensorrt" in error
    assert not (tmp_path / "out").exists()


def test_what_tensorrt_needs_is_no_flavour_of_onnxruntime(
    small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["compile", str(small_parent), "--flavour", "decomposed", "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert "error in --flavour\n  got       'decomposed'\n  expected  one of standard, contrib\n" in error


@pytest.mark.parametrize(
    ("target", "offered"),
    [
        ("onnxruntime", "fp32, fp16, int8-g32, int4-g32, int4-g64 or int4-g128"),
        ("tensorrt", "fp16, bf16, int4-g32, int4-g64 or int4-g128"),
        ("tensorrt-llm", "fp32, fp16 or bf16"),
        ("vllm", "fp32, fp16, bf16, int8-g32, int4-g32, int4-g64 or int4-g128"),
    ],
)
@pytest.mark.parametrize("unknown", ["fp8", "int4-g48"])
def test_a_format_that_is_none_is_answered_with_those_that_the_target_takes(
    target: str, offered: str, unknown: str, small_parent: Path, refused: Refused, tmp_path: Path
) -> None:
    words = ["--target", target, "--format", unknown, "--out", tmp_path / "out"]
    said = refused("compile", small_parent, *words)
    assert re.search(rf"expected +{offered}\n", said)
    assert target != "tensorrt" or "error in --format\n" in said


def test_what_generate_cannot_write_is_told_before_it_writes_less(
    small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = str(tmp_path / "engine")
    assert main(["compile", str(small_parent), "--context", "16", "--out", engine]) == 0
    for prompt, room in (("the cat", 13), ("", 15)):
        capsys.readouterr()
        assert main(["generate", engine, "--prompt", prompt, "--tokens", "5000"]) == 0
        assert f"--tokens 5000: at most {room} fit into the context of 16\n" == capsys.readouterr().err
    assert main(["generate", engine, "--tokens", "4"]) == 0
    assert capsys.readouterr().err == ""


def test_promises_are_about_one_flavour(small_parent: Path, tmp_path: Path) -> None:
    plan = _plan_of(small_parent)
    for flavour in ("standard", "contrib"):
        order = CompileOrder(format="fp32", threads=1, flavour=flavour)
        compile_checkpoint(str(small_parent), order, tmp_path / flavour)
    check_promises_hold_here(plan, tmp_path / "standard", tmp_path / "contrib")
    with pytest.raises(InputError, match="plan: flavour: got promises about standard"):
        check_promises_hold_here(plan, tmp_path / "contrib", tmp_path / "standard")


@pytest.mark.parametrize("part", ["head", "embedding"])
def test_promises_are_about_one_format_of_head_and_embedding(part: str, small_parent: Path, tmp_path: Path) -> None:
    plan, order = _plan_of(small_parent), CompileOrder(format="fp32", threads=1)
    compile_checkpoint(str(small_parent), replace(order, **{part: "int8-g32"}), tmp_path / "engine")
    compile_checkpoint(str(small_parent), order, tmp_path / "parent")
    check_promises_hold_here(plan, tmp_path / "parent", tmp_path / "parent")
    with pytest.raises(InputError, match=r"head and embedding: got .*int8-g32.*; expected fp32 and fp32, as the plan"):
        check_promises_hold_here(plan, tmp_path / "engine", tmp_path / "parent")


def test_promises_are_about_one_setting_of_both_engines(small_parent: Path, tmp_path: Path) -> None:
    plan = _plan_of(small_parent)
    for threads in (1, 2):
        compile_checkpoint(str(small_parent), CompileOrder(format="fp32", threads=threads), tmp_path / str(threads))
    check_promises_hold_here(plan, tmp_path / "2", tmp_path / "2")
    with pytest.raises(InputError, match=r"plan: settings: got 2 threads, .*those of .*/1, 1 thread, "):
        check_promises_hold_here(plan, tmp_path / "2", tmp_path / "1")


def _plan_of(parent: Path) -> Plan:
    model = open_parent(str(parent)).spec
    return plan_here(model, model)


def test_a_kit_is_a_zip_unless_told_otherwise_and_is_to_be_built_before_it_writes(
    small_parent: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compile", str(small_parent), "--target", "tensorrt", "--kit"]) == 0
    said = refused("generate", "kit.zip")
    assert "got       a kit\n" in said and "python3 -m zipfile -e kit.zip kit && python3 kit/build.py" in said
    shutil.unpack_archive("kit.zip", "unpacked")
    said = refused("generate", "unpacked")
    assert "got       a kit\n" in said and "to run it: python3 unpacked/build.py --out engine" in said
    Path("kit.zip").write_text("")
    assert "got       a file\n" in refused("generate", "kit.zip")


@pytest.mark.parametrize("name", ["a/b/missing", "../missing"])
def test_a_name_that_no_repository_can_have_is_a_folder_that_is_not_there(
    name: str, refused: Refused, tmp_path: Path
) -> None:
    said = refused("compile", name, "--target", "tensorrt", "--out", tmp_path / "engine")
    assert f"got       {name} (no such folder)\n" in said and "Repo id" not in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--profile", "raspberry_pi_5"], "got       raspberry_pi_5, of Raspberry Pi"),
        (["--profile", "nothing"], "nothing"),
        (["--profile", "rtx_4090", "--for", "sm86"], "error in --for, --profile"),
        (["--profile", "rtx_4090", "--target", "vllm"], "error in --profile"),
    ],
)
def test_a_profile_that_names_no_gpu_to_build_for_is_refused(
    flags: list[str], said: str, small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "kit.zip")
    assert main(["compile", str(small_parent), "--target", "tensorrt", *flags, "--out", out]) == 2
    assert said in capsys.readouterr().err
    assert not Path(out).exists()


@pytest.mark.parametrize(("device", "named"), [("rtx_4090", ["sm89"]), ("jetson_agx_orin", None)])
def test_a_kit_is_packed_for_the_gpu_of_a_profile(
    device: str, named: list[str] | None, small_parent: Path, tmp_path: Path
) -> None:
    """TensorRT-RTX builds for the first; on an Orin TensorRT builds for what it finds."""
    out = tmp_path / "kit.zip"
    words = ["--target", "tensorrt", "--kit", "--profile", device, "--out", str(out)]
    assert main(["compile", str(small_parent), *words]) == 0
    with zipfile.ZipFile(out) as archive:
        assert json.loads(archive.read("kit.json"))["capabilities"] == named


def test_an_engine_is_built_for_the_gpu_of_a_profile(
    small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is needed (the extra tensorrt-rtx)")
    words = ["compile", str(small_parent), "--target", "tensorrt", "--out", str(tmp_path / "engine")]
    assert main([*words, "--profile", "rtx_4090"]) == 0
    assert json.loads((tmp_path / "engine" / "engine.json").read_text())["compute_capabilities"] == ["sm89"]
    assert main([*words, "--profile", "jetson_agx_orin"]) == 2
    assert "A Jetson Orin is served by TensorRT" in capsys.readouterr().err
