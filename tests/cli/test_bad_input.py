"""Bad input: one clear error, exit code 2, and nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from transformers import BertConfig

from blockwright.cli.main import main
from blockwright.hw_profiles.folder import read_profile, write_profile
from blockwright.search.plan import read_plan, write_plan
from forked import fork_command

DEMO_PARENT = Path(__file__).parents[2] / "recipes" / "demo-parent"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must be refused; gives the message."""

    def run(*command: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in command]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("blockwright: error in ") == 1
        for word in ("got", "expected", "remedy"):
            assert f"\n  {word} " in captured.err
        assert captured.out == ""
        return captured.err[captured.err.index("blockwright: error in ") :]

    return run


@pytest.fixture
def parent_copy(tmp_path: Path, small_parent: Path) -> Path:
    """A copy of the small parent to break."""
    return Path(shutil.copytree(small_parent, tmp_path / "broken"))


def test_a_parent_that_is_no_decoder(
    tmp_path: Path, parent_copy: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    config = BertConfig(architectures=["BertForMaskedLM"])
    config.save_pretrained(parent_copy)
    message = refused("run", write_recipe(parent=str(parent_copy)), "-o", tmp_path / "run")
    assert "architectures" in message and "BertForMaskedLM" in message and "decoder" in message
    assert not (tmp_path / "run").exists()


def test_a_decoder_of_a_family_that_is_not_known(
    tmp_path: Path, parent_copy: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (parent_copy / "config.json").write_text(json.dumps(config))
    message = refused("run", write_recipe(parent=str(parent_copy)), "-o", tmp_path / "run")
    assert "GPT2LMHeadModel" in message or "gpt2" in message


def test_a_parent_that_is_not_there(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused("run", write_recipe(parent="no/such-model"), "-o", tmp_path / "run")
    assert "no/such-model" in message


def test_a_parent_without_weights(
    tmp_path: Path, parent_copy: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    (parent_copy / "model.safetensors").unlink()
    message = refused("run", write_recipe(parent=str(parent_copy)), "-o", tmp_path / "run")
    assert "no safetensors file" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kept_share", [0.0, 0.01, 0.5, 0.999])
def test_a_parent_whose_weights_are_cut_short(
    tmp_path: Path,
    parent_copy: Path,
    kept_share: float,
    write_recipe: Callable[..., Path],
    refused: Callable[..., str],
) -> None:
    weights = parent_copy / "model.safetensors"
    os.truncate(weights, int(weights.stat().st_size * kept_share))
    message = refused("run", write_recipe(parent=str(parent_copy)), "-o", tmp_path / "run")
    assert "model.safetensors" in message and "download it again" in message
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_with_more_tokens_than_the_parent_knows(
    tmp_path: Path, parent_copy: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    tokenizer = json.loads((parent_copy / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"extra{index}": len(vocabulary) + index for index in range(100)}
    (parent_copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = refused("run", write_recipe(parent=str(parent_copy)), "-o", tmp_path / "run")
    assert "tokenizer" in message and "vocabulary of 300" in message
    assert not (tmp_path / "run").exists()


def test_a_parent_without_a_tokenizer_that_engines_take(
    tmp_path: Path, parent_copy: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    (parent_copy / "tokenizer.json").rename(parent_copy / "tokenizer.model")
    message = refused("run", write_recipe(parent=str(parent_copy)), "-o", tmp_path / "run")
    assert "tokenizer.json" in message and "save_pretrained" in message
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_of_another_model_of_the_same_size(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    parent = Path(shutil.copytree(DEMO_PARENT, tmp_path / "parent"))
    tokenizer = json.loads((parent / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    size = len(vocabulary)
    tokenizer["model"]["vocab"] = {token: (size - 1 - index if index else 0) for token, index in vocabulary.items()}
    tokenizer["model"]["vocab"] |= {token: size - 1 for token, index in vocabulary.items() if index == size - 1}
    (parent / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = refused("run", write_recipe(parent=str(parent), text="python"), "-o", tmp_path / "run")
    assert "another model's" in message
    assert not (tmp_path / "run").exists()


def test_a_budget_that_nothing_can_meet_is_refused_before_anything_is_trained(
    tmp_path: Path, small_run: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run / "run" / "profile", folder / "profile")
    measured = json.loads((small_run / "run" / "manifest.json").read_text())["profile"]
    (folder / "manifest.json").write_text(json.dumps({"profile": measured}))
    message = refused("run", write_recipe(budgets=["parameters@chat <= 1K"]), "-o", folder)
    assert "parameters@chat <= 1K" in message and "the least that any child costs" in message
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "manifest.json",
        "profile",
        "recipe.yaml",
    ]


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("speed@chat <= 1ms", "'speed'"),
        ("memory@talk <= 1GB", "'talk'"),
        ("memory@chat <= 1ms", "ms"),
        ("memory@chat = 1GB", "quantity[@[device:]load] <= amount"),
        ("memory@chat < 1GB", "quantity[@[device:]load] <= amount"),
        ("time_per_token@chat <= 5", "time_per_token"),
    ],
)
def test_a_budget_that_is_none(
    budget: str, words: str, tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    assert words in refused("run", write_recipe(budgets=[budget]), "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_with_an_unknown_key(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    message = refused("run", write_recipe(libary={}), "-o", tmp_path / "run")
    assert "libary" in message and "library" in message
    nested = yaml.safe_load(write_recipe().read_text())
    nested["library"]["learning_rat"] = 1.0
    assert "library.learning_rat" in refused("run", write_recipe(library=nested["library"]), "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"library": {"tokens": "many", "batch_windows": 4, "learning_rate": 1e-3}}, "library.tokens"),
        ({"loads": {"chat": {"batch": 0, "prompt_tokens": 1, "new_tokens": 1}}}, "loads.chat"),
        ({"loads": {"chat": {"batch": 1, "prompt_tokens": 60, "new_tokens": 60}}}, "the parent's context of 64"),
        ({"loads": {"chat": {"batch": 1, "prompt_tokens": 10**25, "new_tokens": 1}}}, "loads.chat"),
        ({"window_tokens": 65}, "window_tokens"),
        ({"text": "no-such-folder"}, "no-such-folder"),
        ({"engine": {"formats": ["int3"], "threads": 1}}, "int3"),
        ({"engine": {"formats": ["bf16"], "threads": 1}}, "engine.formats"),
        ({"engine": {"formats": [], "threads": 1}}, "engine.formats"),
        ({"window_tokens": 0}, "window_tokens"),
        ({"score": {"tokens": 31}}, "score.tokens"),
    ],
)
def test_a_recipe_with_a_value_that_does_not_fit(
    changes: dict, words: str, tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    assert words in refused("run", write_recipe(**changes), "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_text_shorter_than_one_window(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    text = tmp_path / "short"
    text.mkdir()
    for index in range(40):
        (text / f"{index}.txt").write_text(f"a{index}")  # the content decides what is held out
    message = refused("run", write_recipe(text=str(text)), "-o", tmp_path / "run")
    assert "at least one window of 32 tokens" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("largest_file_bytes", [1_000, 60_000])
def test_a_full_disk_leaves_nothing_half_written_and_the_run_goes_on_later(
    largest_file_bytes: int, tmp_path: Path, small_run: Path, write_recipe: Callable[..., Path]
) -> None:
    folder = tmp_path / "run"
    command = ["run", str(write_recipe()), "--profile", str(small_run / "run" / "profile"), "-o", str(folder)]
    code, told = fork_command(*command, file_bytes=largest_file_bytes).wait()
    assert code == 2, told
    assert told.count("blockwright: error in ") == 1 and "Traceback" not in told
    assert "Run the same command again" in told or "run the same command again" in told
    written = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    manifest = folder / "manifest.json"
    stages = json.loads(manifest.read_text()) if manifest.exists() else {}
    assert written - {"recipe.yaml", "manifest.json"} == {stage["output"] for stage in stages.values()}
    assert main(command) == 0


def test_a_run_folder_that_cannot_be_written(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    # Permissions do not hold root back; the kernel's own folder does.
    folder = Path("/sys/run") if os.geteuid() == 0 else locked / "run"
    message = refused("run", write_recipe(), "-o", folder)
    assert str(folder) in message and "--out" in message


def test_a_run_folder_that_is_a_file(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    (tmp_path / "file").write_text("kept")
    assert str(tmp_path / "file") in refused("run", write_recipe(), "-o", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_profile_of_another_machine(
    tmp_path: Path, small_run: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    folder, other = small_run / "run", tmp_path / "other"
    profile = read_profile(folder / "profile")
    write_profile(replace(profile, device=replace(profile.device, model="Another CPU")), other)
    message = refused("run", write_recipe(), "--profile", other, "--out", tmp_path / "again")
    assert "Another CPU" in message and profile.device.model in message
    assert not (tmp_path / "again" / "library").exists()

    plan = tmp_path / "plan.json"
    write_plan(replace(read_plan(folder / "plan.json"), profile="another-machine"), plan)
    engines = folder / "engine" / "onnxruntime"
    message = refused("measure", engines / "child-fp32", "--against", engines / "parent-fp32", "--plan", plan)
    assert "another-machine" in message


def test_two_runs_in_one_folder_at_once(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    folder = tmp_path / "run"
    program = f"""
from pathlib import Path
from blockwright.pipeline.lock import locked
with locked(Path({str(folder)!r})):
    print("locked", flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdin is not None
    assert other.stdout.readline() == "locked\n"
    try:
        assert "a whole run at work here" in refused("run", write_recipe(), "-o", folder)
    finally:
        other.communicate("\n")
    assert not (folder / "recipe.yaml").exists()


def test_broken_files_between_stages_are_named(tmp_path: Path, refused: Callable[..., str]) -> None:
    missing = tmp_path / "missing"
    for command in (
        ("search", "--scores", missing, "--profile", missing, "--budget", "memory <= 1GB"),
        ("realise", missing, "--library", missing),
        ("score", missing, "--text", "python"),
        ("generate", missing),
        ("measure", missing, "--against", missing),
        ("report", missing),
        ("distill", missing, "--teacher", missing, "--text", "python"),
    ):
        assert "missing" in refused(*command)


_COMMANDS = {
    "compile": ["none"],
    "distill": ["none", "--teacher", "none", "--text", "python"],
    "generate": ["none"],
    "library": ["none", "--text", "python"],
    "measure": ["none", "--against", "none"],
    "profile": ["--for", "none"],
    "score": ["none", "--text", "python"],
    "search": ["--scores", "none", "--profile", "none", "--budget", "memory <= 1GB"],
}


@pytest.mark.parametrize(
    ("command", "flag", "values"),
    [
        ("compile", "--format", ["bf16", "fp16-g32", "int3", ""]),
        ("compile", "--threads", ["0", "-1"]),
        ("compile", "--context", ["0", "-1"]),
        *((command, "--window", ["-1", "0", "1"]) for command in ("distill", "library", "score")),
        *((command, "--seed", ["-1", str(2**32)]) for command in ("distill", "generate", "library", "score")),
        *((command, "--tokens", ["0", "-1", "nan", "255", "1e999"]) for command in ("distill", "library", "score")),
        *((command, "--batch", ["0", "-1"]) for command in ("distill", "library")),
        *((command, "--learning-rate", ["0", "-1", "nan", "inf"]) for command in ("distill", "library")),
        ("distill", "--loss", ["", "kl+", "kld", "nan*kl", "0*kl"]),
        ("distill", "--temperature", ["0", "-1", "nan", "inf"]),
        *(("distill", flag, ["0", "-1"]) for flag in ("--accumulate", "--top-k")),
        ("distill", "--clip", ["0", "-1", "nan"]),
        ("generate", "--tokens", ["0", "-1"]),
        ("generate", "--temperature", ["-1", "nan", "inf"]),
        ("generate", "--top-k", ["-1"]),
        ("generate", "--repetition-penalty", ["0", "-1", "nan", "inf"]),
        ("generate", "--stop", [""]),
        ("generate", "--top-p", ["0", "-1", "nan", "2"]),
        *((command, "--seconds", ["0", "-1", "nan", "inf"]) for command in ("measure", "profile")),
        *((command, "--load", ["chat=0x1+1", "chat=1x00+1", "chat=-1x1+1"]) for command in ("measure", "profile")),
        ("profile", "--load", ["chat=99999999999x1+1", f"chat=1x1{'0' * 25}+1", "chat=1x9999999+9999999"]),
        ("search", "--load", ["chat=0x1+1", "chat=1x00+1"]),
        ("profile", "--format", ["fp16", "int3"]),
        ("profile", "--threads", ["0", "-1"]),
        ("search", "--format", ["bf16", "int3"]),
        ("search", "--time-limit", ["0", "-1", "nan", "inf"]),
        ("search", "--frontier", ["-1"]),
    ],
)
def test_a_flag_with_a_value_that_cannot_be(
    command: str, flag: str, values: list[str], refused: Callable[..., str]
) -> None:
    for value in values:
        message = refused(command, *_COMMANDS[command], flag, value)
        assert flag in message.splitlines()[0], message


@pytest.mark.parametrize(("flag", "value"), [("--format", "int4"), ("--backend", "torch"), ("--load", "chat=1x16+16")])
def test_a_flag_that_says_the_same_twice(flag: str, value: str, refused: Callable[..., str]) -> None:
    assert flag in refused("profile", *_COMMANDS["profile"], flag, value, flag, value)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--load", "chat=1x128+128"),  # these are the defaults: given is given
        ("--format", "fp32"),
        ("--backend", "onnxruntime"),
        ("--precision", "1"),
        ("--time-limit", "600"),
    ],
)
def test_flags_of_a_parent_without_a_parent(tmp_path: Path, refused: Callable[..., str], flag: str, value: str) -> None:
    message = refused("profile", flag, value, "-o", tmp_path / "profile")
    assert f"error in {flag}\n" in message and "without --for" in message
    assert not (tmp_path / "profile").exists()


def test_flags_that_do_not_fit(tmp_path: Path, small_parent: Path, refused: Callable[..., str]) -> None:
    assert "--load" in refused("profile", "--for", small_parent, "--load", "chat=0x1+1")
    assert "format" in refused("compile", small_parent, "--format", "int3", "-o", tmp_path / "engine")
    assert "--tokens" in refused("library", small_parent, "--text", "python", "--tokens", "many")
    with pytest.raises(SystemExit) as stop:
        main(["run"])
    assert stop.value.code == 2


def test_a_prompt_that_leaves_no_room_to_write(
    refused: Callable[..., str], tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    recipe = yaml.safe_load(write_recipe().read_text())
    long = write_recipe(measure=recipe["measure"] | {"prompts": ["the cat " * 40]})
    message = refused("run", long, "--out", tmp_path / "run")
    assert "measure.prompts[0]" in message and "context of 64" in message


def test_text_of_a_single_window_gives_no_interval(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    text = tmp_path / "short"
    text.mkdir()
    for index in range(40):
        (text / f"{index}.txt").write_text(f"the cat sat on mat {index} " * 4)
    message = refused("run", write_recipe(text=str(text), window_tokens=60), "-o", tmp_path / "run")
    assert "one window of 60 tokens" in message
    assert not (tmp_path / "run").exists()


def test_a_library_does_not_replace_its_parent(parent_copy: Path, refused: Callable[..., str]) -> None:
    weights = (parent_copy / "model.safetensors").read_bytes()
    assert "an input" in refused("library", parent_copy, "--text", "python", "-o", parent_copy)
    assert (parent_copy / "model.safetensors").read_bytes() == weights


def test_notes_in_the_folder_to_write_are_kept(tmp_path: Path, small_parent: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("hi")
    for command in (["compile", small_parent], ["library", small_parent, "--text", "python"], ["profile"]):
        message = refused(*command, "-o", tmp_path / "mine")
        assert "notes.txt" in message and "--out" in message
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["hi"]
