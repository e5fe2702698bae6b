"""Flags with values that cannot be: one clear error, exit code 2, and nothing half-written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from blockwright.cli.main import main

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
