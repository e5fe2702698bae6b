"""The command line as such: help, what it loads, and that the documented commands exist."""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from blockwright.cli import main as cli
from blockwright.pipeline.recipe import read_recipe
from pages import PAGES, all_text, name_of

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "onnxruntime", "onnx", "numpy", "pandas", "ortools", "matplotlib")
COMMANDS = [module.__name__.rpartition(".")[2] for module in cli._COMMANDS]

FLAGS = {
    "run": ["--budget", "--json", "--out", "--parent", "--profile", "--text", "-o"],
    "profile": [
        "--backend",
        "--device",
        "--for",
        "--format",
        "--load",
        "--out",
        "--precision",
        "--seconds",
        "--space",
        "--threads",
        "--time-limit",
        "-o",
    ],
    "space": ["--json", "--space", "--tokens"],
    "library": [
        "--batch",
        "--checkpoint-steps",
        "--coupled",
        "--device",
        "--dry-run",
        "--init",
        "--json",
        "--learning-rate",
        "--loss",
        "--mask-documents",
        "--memory",
        "--optimizer",
        "--out",
        "--pairs",
        "--per-token",
        "--precision",
        "--ray",
        "--seed",
        "--skip-first-tokens",
        "--space",
        "--start",
        "--text",
        "--text-field",
        "--tokens",
        "--window",
        "-o",
    ],
    "score": [
        "--backend",
        "--budget",
        "--contiguous",
        "--forbid",
        "--force",
        "--format",
        "--homogeneous",
        "--keep-first",
        "--keep-last",
        "--load",
        "--metric",
        "--out",
        "--parent",
        "--profile",
        "--ray",
        "--seed",
        "--servable-by",
        "--shapes",
        "--task",
        "--text",
        "--text-field",
        "--tokens",
        "--window",
        "-o",
    ],
    "search": [
        "--against",
        "--along",
        "--backend",
        "--budget",
        "--compare",
        "--contiguous",
        "--differ",
        "--extrapolate",
        "--forbid",
        "--force",
        "--format",
        "--frontier",
        "--homogeneous",
        "--json",
        "--keep-first",
        "--keep-last",
        "--load",
        "--metric",
        "--most-score",
        "--out",
        "--pool",
        "--profile",
        "--scores",
        "--servable-by",
        "--shapes",
        "--time-limit",
        "--tolerance",
        "--trials",
        "-o",
    ],
    "refine": [
        "--backend",
        "--budget",
        "--contiguous",
        "--extrapolate",
        "--forbid",
        "--force",
        "--format",
        "--heal-tokens",
        "--homogeneous",
        "--json",
        "--keep-first",
        "--keep-last",
        "--load",
        "--metric",
        "--out",
        "--pairs",
        "--parent",
        "--pool",
        "--profile",
        "--rounds",
        "--scores",
        "--seed",
        "--servable-by",
        "--shapes",
        "--text",
        "--text-field",
        "--time-limit",
        "--tokens",
        "--tolerance",
        "--window",
        "-o",
    ],
    "predict": ["--backend", "--extrapolate", "--format", "--json", "--load", "--parent", "--profile"],
    "realise": ["--library", "--out", "--parent", "-o"],
    "distill": [
        "--accumulate",
        "--batch",
        "--checkpoint-activations",
        "--clip",
        "--device",
        "--dtype",
        "--eval-every",
        "--js-beta",
        "--json",
        "--layer-map",
        "--learning-rate",
        "--loss",
        "--mask-documents",
        "--optimizer",
        "--out",
        "--patience",
        "--quality-tokens",
        "--schedule",
        "--seed",
        "--teacher",
        "--teacher-cache",
        "--teacher-logits",
        "--temperature",
        "--text",
        "--text-field",
        "--tokens",
        "--top-k",
        "--warm-up",
        "--window",
        "-o",
    ],
    "evaluate": ["--against", "--batch", "--json", "--limit", "--out", "--task-dir", "--tasks", "-o"],
    "compile": [
        *("--batch", "--context", "--embedding", "--flavour", "--for", "--form", "--format", "--head"),
        *("--kit", "--out", "--plan", "--profile", "--target", "--threads", "--tune", "-o"),
    ],
    "kernels": ["--dtype", "--for", "--heads", "--json", "--out", "-o"],
    "measure": ["--against", "--json", "--load", "--plan", "--seconds"],
    "generate": [
        "--device",
        "--no-stream",
        "--prompt",
        "--repetition-penalty",
        "--seed",
        "--stop",
        "--stream",
        "--temperature",
        "--tokens",
        "--top-k",
        "--top-p",
    ],
    "report": ["--out", "-o"],
}
"""Written out, so that a new flag is a decision: what a run is belongs in its recipe."""


def test_help_names_every_stage_and_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from blockwright.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in COMMANDS:
        assert re.search(rf"^    {command} ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_by_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"\n  blockwright {command} " in text, "no example"


def test_commands_have_these_flags_and_no_others() -> None:
    found: dict[str, list[str]] = {}
    for command, module in zip(COMMANDS, cli._COMMANDS, strict=True):
        parser = argparse.ArgumentParser(add_help=False)
        module.add_flags(parser)
        found[command] = sorted(parser._option_string_actions)
    assert found == FLAGS


def _documented_commands() -> list[str]:
    lines = all_text().replace("\\\n", " ").splitlines()
    return list(dict.fromkeys(line.strip() for line in lines if line.strip().startswith("blockwright ")))


def test_the_first_page_documents_the_main_job() -> None:
    assert "\n    blockwright run " in (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize("line", _documented_commands())
def test_commands_on_the_pages_are_accepted(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    arguments = cli._parser().parse_args(words)  # ends the test where a flag is unknown
    command = f"blockwright.cli.{words[0]}"
    assert arguments.action.__module__ in (command, f"{command}_{words[1]}")  # the second is an action of the first
    if words[0] == "run":
        assert read_recipe(REPOSITORY / arguments.recipe).name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_flags_in_sentences_exist(page: Path) -> None:
    of_any = {flag for flags in FLAGS.values() for flag in flags}
    unknown = []
    for span in re.findall(r"(?<!`)`((?:blockwright |--)[^`]+)`", page.read_text()):
        named, flags = span.split()[1:2], {*re.findall(r"--[a-z][\w-]*", span)} - {"--help"}
        if not span.startswith("blockwright "):
            is_known = flags <= of_any or name_of(page).startswith("benchmarks/")  # whose scripts have their own
        else:
            is_known = flags <= {*FLAGS.get(named[0], [])} if flags else named[0] in (*COMMANDS, "--help")
        if not is_known:
            unknown.append(span)
    assert unknown == []


def test_every_recipe_is_read() -> None:
    recipes = sorted((REPOSITORY / "recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        read_recipe(recipe)
