"""Kits that build a TensorRT engine elsewhere: packed here, and really built where TensorRT-RTX is installed."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from safetensors.numpy import save_file

from blockwright.compile import older_python, tensorrt_kit_run
from blockwright.compile.engine import TOKENIZER_FILE, special_ids
from blockwright.compile.tensorrt_engine import PLAN_FILE, read_tensorrt_engine, token_ranges
from blockwright.compile.tensorrt_kit import TensorRtKitOrder, write_tensorrt_kit
from blockwright.compile.tensorrt_package import Form
from blockwright.compile.tensorrt_stored import stored_for_tensorrt
from blockwright.errors import InputError
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Attention, parse_format
from decoders import every_kind
from tensorrt_here import needs_rtx

MODEL = llama(every_kind(512, 256, 128), hidden_size=128, num_heads=4, head_dim=32, vocab_size=256, max_positions=128)


@pytest.fixture(scope="module", params=["fused", "decomposed"])
def form(request: pytest.FixtureRequest) -> Form:
    return request.param


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory, form: Form) -> Path:
    """A kit, unpacked."""
    home = tmp_path_factory.mktemp("kit")
    checkpoint = home / "checkpoint"
    checkpoint.mkdir()
    save_file(random_weights(MODEL), checkpoint / "model.safetensors")
    (checkpoint / TOKENIZER_FILE).write_text("{}")
    (checkpoint / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    order = TensorRtKitOrder(
        stored=stored_for_tensorrt(MODEL, parse_format("int4-g32")),
        num_positions=128,
        most_sequences=2,
        capabilities=("sm86", "sm120"),
        built_from="a digest",
        form=form,
    )
    size = write_tensorrt_kit(order, checkpoint, home / "kit.zip")
    assert size == (home / "kit.zip").stat().st_size
    with zipfile.ZipFile(home / "kit.zip") as archive:
        archive.extractall(home / "kit")
    assert not list(home.glob(".*")), "unfinished work is left"
    return home / "kit"


AS_OLDER = "import hashlib, typing; del hashlib.file_digest, typing.assert_never"
"""Takes away what Python 3.10 lacks of all that the packed modules use, as pyright tells for that version."""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on PYTHONPATH in which every Python has no more than 3.10 has."""
    folder = tmp_path_factory.mktemp("older")
    (folder / "sitecustomize.py").write_text(AS_OLDER)
    return folder


def _run(kit: Path, *flags: str, older: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The kit's own builder, in a Python that finds no other Blockwright."""
    code = "import blockwright, runpy, sys; assert blockwright.__file__.startswith(sys.path[0]), blockwright.__file__; "
    code += f"sys.argv = ['build.py', *{list(flags)!r}]; runpy.run_path({str(kit / 'build.py')!r}, run_name='__main__')"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(kit)!r}); {code}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {} if older is None else {"PYTHONPATH": str(older)}
    # Elsewhere than in this repository, for «python -m» looks for modules in the working directory first.
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=kit.parent)


def test_the_builder_imports_what_is_packed_and_nothing_that_a_device_lacks(kit: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(kit)!r}); before = set(sys.modules); import build; "
    code += "print([[n, sys.modules[n].__file__] for n in set(sys.modules) - before - sys.stdlib_module_names "
    code += "if getattr(sys.modules[n], '__file__', None) and n.partition('.')[0] not in sys.stdlib_module_names])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {Path(file).relative_to(kit).as_posix() for _, file in ast.literal_eval(done.stdout)}
    assert loaded == {path.relative_to(kit).as_posix() for path in kit.rglob("*.py")}


def test_packed_modules_are_of_the_syntax_of_python_3_10(kit: Path) -> None:
    for path in kit.rglob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 10))
    empty = ModuleType("typing")
    older_python.complete(empty)
    with pytest.raises(AssertionError, match="unreachable: 3"):
        vars(empty)["assert_never"](3)


@needs_rtx
def test_a_kit_builds_the_engine_that_is_built_here(kit: Path, form: Form, older: Path, tmp_path: Path) -> None:
    done = _run(kit, "--out", str(tmp_path / "engine"), older=older)
    assert done.returncode == 0, done.stderr
    engine = read_tensorrt_engine(tmp_path / "engine", is_whole=True)
    assert engine.compute_capabilities == ("sm86", "sm120") and engine.package == "tensorrt_rtx"
    assert engine.model == stored_for_tensorrt(MODEL, parse_format("int4-g32")).model
    num_attentions = sum(isinstance(block.mixer, Attention) for block in MODEL.layers)
    assert engine.census is not None
    census = Counter(engine.census)
    fused = (num_attentions, 2 * num_attentions, 0)
    expected = fused if form == "fused" else (0, 0, num_attentions)
    assert (census["ATTENTION_INPUT"], census["KV_CACHE_UPDATE"], census["SOFTMAX"]) == expected
    assert engine.form == form
    assert engine.profiles == token_ranges(128, decode_takes_one=True), "as it is built here"
    assert (engine.stop_ids, engine.start_id) == special_ids(kit.parent / "checkpoint")
    assert (engine.num_positions, engine.most_sequences) == (128, 2)
    assert engine.files[PLAN_FILE].size_bytes == (tmp_path / "engine" / PLAN_FILE).stat().st_size
    again = _run(kit, "--out", str(tmp_path / "engine"))
    assert again.returncode == 0, "an earlier engine is replaced"


def test_the_script_names_every_open_size_of_the_graph(kit: Path) -> None:
    script = (kit / "build.sh").read_text()
    assert (kit / "build.sh").exists() and script.startswith("#!/bin/sh")
    inputs = onnx.load(kit / "model.onnx", load_external_data=False).graph.input
    for flag in ("min", "opt", "max"):
        for shapes in re.findall(rf"--{flag}Shapes=(\S+)", script):
            sizes = dict(each.split(":") for each in shapes.split(","))
            assert sizes.keys() == {each.name for each in inputs}
            for each in inputs:
                given = sizes[each.name].split("x")
                fixed = [size.dim_value for size in each.type.tensor_type.shape.dim]
                assert len(given) == len(fixed)
                assert all(size == int(text) for size, text in zip(fixed, given, strict=True) if size)
    assert "--maxShapes=ids:2x128,last:2," in script, "two sequences of 128 tokens"
    assert script.count("--profile=") == 2
    assert subprocess.run(["sh", "-n", str(kit / "build.sh")], check=False).returncode == 0


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json", "build.sh", "blockwright/spec.py"])
def test_a_kit_that_was_cut_short_is_refused(kit: Path, tmp_path: Path, name: str) -> None:
    broken = Path(shutil.copytree(kit, tmp_path / "kit"))
    (broken / name).write_bytes((broken / name).read_bytes()[:-1])
    done = _run(broken, "--out", str(tmp_path / "engine"))
    assert done.returncode == 2 and f"a {name} that was changed or cut short" in done.stderr
    (broken / name).unlink()
    done = _run(broken, "--out", str(tmp_path / "engine"))
    assert done.returncode and "error: kit: got" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda told: [], "kit: got"),
        (lambda told: {}, "kit: got"),
        (lambda told: told | {"schema_version": 9}, "schema_version"),
        (lambda told: told | {"int4_bytes": "a"}, "int4_bytes"),
        (lambda told: told | {"engine": {}}, "says too little of the engine"),
    ],
)
def test_a_description_that_is_none_is_refused(
    changed: Callable[[Any], Any], said: str, kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(kit, tmp_path / "kit"))
    (broken / "kit.json").write_text(json.dumps(changed(json.loads((kit / "kit.json").read_text()))))
    assert tensorrt_kit_run.main(["--out", str(tmp_path / "engine")], broken) == 2
    assert said in capsys.readouterr().err


def test_the_script_says_what_it_lacks_and_what_comes_next(kit: Path, tmp_path: Path) -> None:
    command = ["sh", str(kit / "build.sh")]
    environment = os.environ | {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2 and "trtexec: got none" in done.stderr
    fake = tmp_path / "trtexec"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert f"python3 {kit}/build.py --plan {kit}/model.plan --version VERSION" in done.stdout


def test_a_folder_with_other_things_is_not_replaced(kit: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    done = _run(kit, "--out", str(tmp_path))
    assert done.returncode == 2 and "with mine, which no engine.json names" in done.stderr
    for broken in ('{"schema_version": 1,', "[]"):
        (tmp_path / "engine.json").write_text(broken)
        done = _run(kit, "--out", str(tmp_path))
        assert done.returncode == 2 and "with mine, which no engine.json names" in done.stderr
    for target, said in (("onnxruntime", "compiled for onnxruntime"), ("tensorrt", "not written by compile")):
        (tmp_path / "engine.json").write_text(json.dumps({"schema_version": 1, "target": target, "files": {}}))
        done = _run(kit, "--out", str(tmp_path))
        assert done.returncode == 2 and said in done.stderr
    assert (tmp_path / "mine").read_text() == "mine"
    (tmp_path / "mine").unlink()
    (tmp_path / "engine.json").rename(tmp_path / "model.onnx")
    done = _run(kit, "--out", str(tmp_path))
    assert done.returncode == 2 and "with other things in it" in done.stderr
    done = _run(kit, "--out", str(tmp_path / "model.onnx"))
    assert done.returncode == 2 and "the file " in done.stderr


def test_a_plan_of_trtexec_is_taken_in_with_its_version(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, output = tmp_path / "model.plan", tmp_path / "engine"
    plan.write_bytes(b"a plan")
    flags = ["--out", str(output), "--plan", str(plan)]
    assert tensorrt_kit_run.main([*flags, "--version", "10.15.1"], kit) == 2
    assert "GPU" in capsys.readouterr().err
    monkeypatch.setattr(tensorrt_kit_run, "device_capability", lambda: "sm87")
    assert tensorrt_kit_run.main(flags, kit) == 2
    assert "--version" in capsys.readouterr().err
    assert tensorrt_kit_run.main([*flags, "--version", "10.15.1"], kit) == 0
    engine = read_tensorrt_engine(output, is_whole=True)
    assert (engine.package, engine.package_version, engine.compute_capabilities) == ("tensorrt", "10.15.1", ("sm87",))
    assert (engine.census, engine.is_attention_decomposed, engine.build_s) == (None, None, None), "nobody looked"


@pytest.mark.parametrize("installed", ["10.3.0", "10.14.1"])
def test_a_kit_asks_for_what_its_form_needs(
    installed: str,
    kit: Path,
    form: Form,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = ModuleType("tensorrt")
    module.__dict__["__version__"] = installed
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert tensorrt_kit_run.main(["--out", str(tmp_path / "engine")], kit) == 2
    said = capsys.readouterr().err
    if form == "fused":
        assert "too old" in said and "--form decomposed" in said
    else:
        assert "error: GPU:" in said, "the version will do"


def test_a_device_without_tensorrt_is_told_what_to_install_there(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert tensorrt_kit_run.main(["--out", str(tmp_path / "engine")], kit) == 2
    said = capsys.readouterr().err
    assert "Install it: pip install tensorrt or pip install tensorrt-rtx. On a Jetson it comes with JetPack." in said


def test_a_kit_for_the_device_needs_a_gpu_there(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package: Any = type("Package", (), {"name": "tensorrt", "title": "TensorRT 10.15"})()
    with pytest.raises(InputError, match="none that CUDA's driver tells of"):
        tensorrt_kit_run._capabilities(("sm86",), package)
    monkeypatch.setattr(tensorrt_kit_run, "device_capability", lambda: "sm87")
    assert tensorrt_kit_run._capabilities(("sm86",), package) == ("sm87",), "TensorRT builds for no other"
