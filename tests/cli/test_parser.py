"""Wrong words on the command line: the usage, what was got and expected, what to do, and exit code 2."""

import re
from collections.abc import Callable

import pytest

from blockwright.cli.main import main

SEARCH = "search --scores s --profile p --budget b"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[str], dict[str, str]]:
    """Reads words that must be refused; gives the usage's program and the parts of the error."""

    def read(words: str) -> dict[str, str]:
        with pytest.raises(SystemExit) as stop:
            main(words.split())
        assert stop.value.code == 2
        told = capsys.readouterr()
        assert told.out == ""
        usage, _, error = told.err.partition("blockwright: error in ")
        field, *lines = error.splitlines()
        parts = {word: text for word, text in (line.split(maxsplit=1) for line in lines)}
        assert list(parts) == ["got", "expected", "remedy"]
        program = re.match(r"usage: (blockwright(?: [a-z]+)*) \[", usage)
        assert program is not None
        return parts | {"field": field, "program": program[1]}

    return read


@pytest.mark.parametrize(
    ("words", "program", "field", "got", "expected", "remedy"),
    [
        (f"{SEARCH} --pool two", "blockwright search", "--pool", "'two'", "a whole number", "Write it so: --pool 1"),
        (f"{SEARCH} --pool 2.5", "blockwright search", "--pool", "'2.5'", "a whole number", "Write it so: --pool 1"),
        (f"{SEARCH} --tolerance x", "blockwright search", "--tolerance", "'x'", "a number", "so: --tolerance 0.0"),
        (f"{SEARCH} --shapes x", "blockwright search", "--shapes", "'x'", "a whole number", "so: --shapes K"),
        (f"{SEARCH} --backend lama.cpp", "blockwright search", "--backend", "'lama.cpp'", "vllm", "mean llama.cpp?"),
        ("compile c --flavour x", "blockwright compile", "--flavour", "'x'", "one of standard, contrib", "--help`"),
        ("profile --seconds", "blockwright profile", "--seconds", "too little", "one argument", "--seconds=VALUE"),
        ("run r -o", "blockwright run", "--out", "too little", "one argument", "behind --out"),
        (f"{SEARCH} --json=1", "blockwright search", "--json", "argument '1'", "--help` says", "Correct it."),
        ("run", "blockwright run", "recipe", "nothing", "a value", "`blockwright run --help`"),
        ("run r x y", "blockwright run", "blockwright run", "'x', 'y' too many", "usage", "quotes"),
    ],
)
def test_a_wrong_word_is_told_with_what_belongs_there(
    words: str, program: str, field: str, got: str, expected: str, remedy: str, refused: Callable[[str], dict[str, str]]
) -> None:
    told = refused(words)
    assert (told["program"], told["field"]) == (program, field)
    assert got in told["got"] and expected in told["expected"] and remedy in told["remedy"]


@pytest.mark.parametrize(
    ("words", "program", "unknown", "meant"),
    [
        ("serach --scores s", "blockwright", "'serach'", "search"),
        ("profile vlidate x", "blockwright profile", "'vlidate'", "validate"),
        ("--vesion", "blockwright", "--vesion", "--version"),
        (f"{SEARCH} --servable vllm", "blockwright search", "--servable", "--servable-by"),
        (f"{SEARCH} --tim-limit=3", "blockwright search", "--tim-limit", "--time-limit"),
        ("search --scores s --profile p --buget b", "blockwright search", "--buget", "--budget"),
        ("profile show x --plt y", "blockwright profile show", "--plt", "--plot"),
    ],
)
def test_the_nearest_name_is_offered_for_one_that_is_unknown(
    words: str, program: str, unknown: str, meant: str, refused: Callable[[str], dict[str, str]]
) -> None:
    told = refused(words)
    assert told["program"] == program and unknown in told["got"]
    assert told["remedy"].startswith(f"Did you mean {meant}? `{program} --help` says")


@pytest.mark.parametrize("words", ["zzz", f"{SEARCH} --qqqqq"])
def test_nothing_is_offered_where_nothing_is_near(words: str, refused: Callable[[str], dict[str, str]]) -> None:
    assert refused(words)["remedy"].startswith("`blockwright")


def test_commands_that_are_offered_are_all_there_are(refused: Callable[[str], dict[str, str]]) -> None:
    assert refused("zzz")["expected"].startswith("one of run, profile, space, library, ")
    assert refused("")["field"] == "COMMAND"
