"""Flags that several sub-commands share, and how they are read. Loads nothing heavy."""

import argparse
import contextlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.units import parse_quantity

if TYPE_CHECKING:
    from blockwright.search.build import Rules

_LOAD = re.compile(r"([\w.-]+)=(\d+)x(\d+)\+(\d+)")
DEFAULT_LOAD = "chat=1x128+128"
LOCAL_BACKENDS = ("onnxruntime", "torch")
ALL_BACKENDS = (*LOCAL_BACKENDS, "llama.cpp", "vllm", "tensorrt")
_TIME_LIMIT = "for each solve: the plan, every further plan of a pool, every point of a frontier (default: 60)"


class Command(Protocol):
    """A module that is a sub-command; its docstring is the help."""

    __name__: str
    __doc__: str | None

    def add_flags(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> None: ...


def add_command(commands: Any, module: Command, name: str) -> None:
    """Adds a sub-command to what `add_subparsers` returned."""
    text = module.__doc__ or ""
    command = commands.add_parser(
        name,
        help=text.splitlines()[0].rstrip("."),
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_flags(command)
    command.set_defaults(action=module.run)


def add_out(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    """The flag for what is written."""
    parser.add_argument("-o", "--out", type=Path, default=Path(default), help=f"{what} to write (default: {default})")


class _Sources(argparse.Action):
    """Keeps what several flags say of the text as one name, whichever comes first."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        from blockwright.train.sources import join_sources

        if self.dest == "text":
            namespace.text_sources = [*getattr(namespace, "text_sources", []), str(values)]
        else:
            setattr(namespace, self.dest, values)
        namespace.text = join_sources(getattr(namespace, "text_sources", [""]), namespace.text_field)


def add_text(parser: argparse.ArgumentParser) -> None:
    """The flags for text and how it is cut; all sources come out as `text`."""
    parser.add_argument(
        "--text",
        action=_Sources,
        required=True,
        metavar="SOURCE",
        help="a file or folder of text, JSONL (also .gz) or Parquet; hf:NAME[/CONFIG][:SPLIT] for a Hugging Face "
        "dataset; or 'python' for the standard library's sources; repeatable, or several with commas between them",
    )
    parser.add_argument(
        "--text-field", action=_Sources, metavar="NAME", help="where records have their text (default: text)"
    )
    parser.add_argument("--window", type=int, default=256, metavar="TOKENS", help="length of a window (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="fixes the order of the text (default: 0)")


def add_packing(parser: argparse.ArgumentParser) -> None:
    """The flag for how documents share a window."""
    parser.add_argument(
        "--mask-documents", action="store_true", help="no token sees another document of its window (default: it does)"
    )


def add_loads(parser: argparse.ArgumentParser) -> None:
    """The flag for loads."""
    parser.add_argument(
        "--load",
        action="append",
        default=None,
        metavar="NAME=BATCHxPROMPT+NEW",
        help=f"a load: sequences at once, tokens of the prompt, new tokens; repeatable (default: {DEFAULT_LOAD})",
    )


def add_search_loads(parser: argparse._ActionsContainer) -> None:
    """The flag for loads of which some may leave the batch open."""
    parser.add_argument(
        "--load",
        action="append",
        default=None,
        metavar="NAME=BATCH[,BATCH…]xPROMPT+NEW",
        help="a load: sequences at once, or several numbers to choose from, tokens of the prompt, new tokens; "
        f"repeatable (default: {DEFAULT_LOAD})",
    )


def read_search_loads(texts: Sequence[str] | None) -> dict[str, tuple[Load, ...]]:
    """Reads loads as `add_search_loads` describes them.

    Raises:
        InputError: one of them has another form.
    """
    found: dict[str, tuple[Load, ...]] = {}
    for text in texts or [DEFAULT_LOAD]:
        match = re.fullmatch(r"([\w.-]+)=(\d+(?:,\d+)*)x(\d+\+\d+)", text)
        if match and match[1] in found:
            raise InputError(
                "--load", got=f"{match[1]} more than once", expected="a name of its own", remedy="Rename one of them."
            )
        batches = dict.fromkeys(match[2].split(",")) if match else {}
        parts = [f"{match[1]}={batch}x{match[3]}" for batch in batches] if match else [text]
        loads = [load for part in parts for load in read_loads([part]).items()]
        found[loads[0][0]] = tuple(load for _, load in loads)
    return found


def add_solving(parser: argparse.ArgumentParser, backends: Sequence[str] = LOCAL_BACKENDS) -> None:
    """The flags for how a plan is looked for, whatever it must be, on one of some runtimes."""
    parser.add_argument("--backend", default="onnxruntime", choices=backends)
    parser.add_argument("--extrapolate", action="store_true", help="allow loads beyond what was measured, less certain")
    parser.add_argument("--tolerance", type=float, default=0.0, metavar="SCORE", help="stop this near to the best")
    parser.add_argument("--time-limit", type=float, default=60.0, metavar="SECONDS", help=_TIME_LIMIT)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON instead of a table")


def check_finite(arguments: argparse.Namespace, fields: Sequence[str]) -> None:
    """Refuses numbers that are none, or endless; those that were not given may be.

    Raises:
        InputError: names the first flag that has one.
    """
    for field in fields:
        value = getattr(arguments, field)
        if value is not None and not math.isfinite(value):
            raise InputError(
                f"--{field.replace('_', '-')}", got=value, expected="a finite number", remedy="Correct the value."
            )


@contextlib.contextmanager
def explaining(arguments: argparse.Namespace) -> Iterator[None]:
    """With ``--json``, prints why no child is within the budgets before that error goes on its way."""
    from blockwright.search.choose import InfeasibleError

    try:
        yield
    except InfeasibleError as error:
        if arguments.json:
            print(json.dumps(error.to_data(), indent=1))
        raise


def add_rules(parser: argparse.ArgumentParser) -> None:
    """The flags for what a child must look like beside its budgets."""
    rules = parser.add_argument_group("rules", "What the child must look like beside its budgets.")
    rules.add_argument(
        "--servable-by",
        default="",
        metavar="ENGINE[,ENGINE…]",
        help="engines that must load it as it is: transformers, vllm, sglang, tensorrt-llm, llama.cpp, "
        "onnxruntime-genai, tensorrt, ours",
    )
    rules.add_argument("--shapes", type=int, metavar="K", help="at most so many kinds of block, removed ones aside")
    rules.add_argument("--homogeneous", action="store_true", help="one kind of block: the same as --shapes 1")
    rules.add_argument("--contiguous", action="store_true", help="removed layers stand next to each other")
    rules.add_argument("--keep-first", type=int, default=0, metavar="N", help="first layers that stay as they are")
    rules.add_argument("--keep-last", type=int, default=0, metavar="N", help="last layers that stay as they are")
    rules.add_argument(
        "--forbid", action="append", default=[], metavar="PATTERN", help="candidates, such as 'layer-0?-ffn-none'"
    )
    rules.add_argument(
        "--force", action="append", default=[], metavar="PATTERN", help="where one fits, a fitting one is taken"
    )


def read_rules(arguments: argparse.Namespace) -> "Rules":
    """Reads the flags that `add_rules` adds.

    Raises:
        InputError: an engine is unknown, or a number is out of range.
    """
    from blockwright.pipeline.recipe import check_at_least
    from blockwright.search.build import Rules
    from blockwright.servable import ENGINES, parse_engines

    for field in ("keep_first", "keep_last"):
        check_at_least(f"--{field.replace('_', '-')}", getattr(arguments, field), 0)
    if arguments.shapes is not None:
        check_at_least("--shapes", arguments.shapes, 1)
    engines = parse_engines(arguments.servable_by.split(","), "--servable-by")
    if arguments.servable_by and not engines:
        raise InputError(
            "--servable-by",
            got=repr(arguments.servable_by),
            expected="an engine: " + ", ".join(ENGINES),
            remedy="Name one, or leave the flag out.",
        )
    return Rules(
        servable_by=engines,
        most_shapes=1 if arguments.homogeneous else arguments.shapes,
        removes_contiguously=arguments.contiguous,
        keep_first=arguments.keep_first,
        keep_last=arguments.keep_last,
        forbidden=tuple(arguments.forbid),
        forced=tuple(arguments.force),
    )


def read_loads(texts: Sequence[str] | None) -> dict[str, Load]:
    """Reads loads as written on the command line.

    Raises:
        InputError: one of them has another form.
    """
    loads: dict[str, Load] = {}
    for text in texts or [DEFAULT_LOAD]:
        match = _LOAD.fullmatch(text)
        if not match or not all(int(number) for number in match.groups()[1:]):
            raise InputError(
                "--load",
                got=repr(text),
                expected=f"NAME=BATCHxPROMPT+NEW with numbers of at least 1, such as {DEFAULT_LOAD}",
                remedy="Write it in this form.",
            )
        if match[1] in loads:
            raise InputError(
                "--load", got=f"{match[1]} more than once", expected="a name of its own", remedy="Rename one of them."
            )
        batch, prompt, new = (int(number) for number in match.groups()[1:])
        try:
            loads[match[1]] = Load(batch=batch, prompt_tokens=prompt, new_tokens=new)
        except ValueError as error:
            raise InputError("--load", got=repr(text), expected=str(error), remedy="Ask for less.") from error
    return loads


def read_tokens(arguments: argparse.Namespace) -> int:
    """Reads ``--tokens``, such as ``64k`` or ``1B``, and checks the flags that `add_text` adds.

    Raises:
        InputError: one of them cannot be, or the tokens are less than a window.
    """
    from blockwright.pipeline.recipe import LEAST_WINDOW_TOKENS, check_at_least, check_seed

    check_at_least("--window", arguments.window, LEAST_WINDOW_TOKENS)
    check_seed("--seed", arguments.seed)
    tokens = parse_quantity(arguments.tokens, "tokens", "--tokens")
    if not arguments.window <= tokens < math.inf:
        raise InputError(
            "--tokens",
            got=arguments.tokens,
            expected=f"at least the {arguments.window} of one window (--window)",
            remedy="Ask for more tokens, or for a shorter window.",
        )
    return int(tokens)
