"""The command `blockwright`."""

import argparse
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import blockwright
from blockwright.cli import (
    compile,
    distill,
    evaluate,
    generate,
    kernels,
    library,
    measure,
    predict,
    profile,
    realise,
    refine,
    report,
    run,
    score,
    search,
    space,
)
from blockwright.cli.flags import Command, add_command
from blockwright.cli.parser import BAD_INPUT, Parser, message_of
from blockwright.errors import InputError

_COMMANDS: tuple[Command, ...] = (
    run,
    profile,
    space,
    library,
    score,
    search,
    refine,
    predict,
    realise,
    distill,
    evaluate,
    compile,
    kernels,
    measure,
    generate,
    report,
)

_DESCRIPTION = """\
Fits a language model to a piece of hardware: finds the child of a parent model that keeps most of its quality
within a budget, distils it, compiles it, and shows what was promised beside what was measured.
"""

_EPILOG = """\
Start here:
  blockwright run recipes/demo.yaml            all stages, on this machine's CPU; then open runs/demo/report.html
  blockwright run recipes/demo.yaml --parent Qwen/Qwen3-0.6B --text my-texts/
Every stage is a command of its own and says with --help what it reads and writes. All of them can be killed and
run again: they go on from the last finished piece.
"""


class _Terminated(KeyboardInterrupt):
    """The system, or who started this, asks it to end: SIGTERM."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sub-command and returns the exit code.

    0; 2 for input to be mended; 130 when interrupted, and 143 by SIGTERM, as shells count them.
    """
    # Threads that wait must not spin: on shared cores that costs more than half of the speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    arguments = _parser().parse_args(argv)
    try:
        with _ending_by_sigterm():
            arguments.action(arguments)
    except InputError as error:
        print(message_of(error), file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(message_of(_input_error_of(error)), file=sys.stderr)
        return BAD_INPUT
    except MemoryError as error:
        print(message_of(_input_error_of_memory(error)), file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as stop:
        print("\nStopped. Run the same command again to go on from the last finished piece.", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
    return 0


@contextmanager
def _ending_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end what runs as Ctrl-C does, with all that it cleans up."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other one listen
        yield
        return
    ours = os.getpid()

    def terminate(number: int, frame: FrameType | None) -> None:
        if os.getpid() != ours:  # a fork, which has nothing of ours to clean up
            os._exit(128 + number)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice, and the second would end the cleaning
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="blockwright",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"blockwright {blockwright.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in _COMMANDS:
        add_command(commands, module, module.__name__.rpartition(".")[2])
    return parser


def _input_error_of(error: OSError) -> InputError:
    remedies = {
        errno.ENOSPC: "Free some space and run the same command again: it goes on from the last finished piece.",
        errno.EDQUOT: "Free some space and run the same command again: it goes on from the last finished piece.",
        errno.EFBIG: "Raise the limit on file sizes and run the same command again.",
        errno.EROFS: "Name a folder that can be written to with --out.",
        errno.EACCES: "Name a folder that can be written to with --out, or mend its permissions.",
        errno.EPERM: "Name a folder that can be written to with --out, or mend its permissions.",
    }
    return InputError(
        error.filename or "files",
        got=error.strerror or str(error),
        expected="a place that can be read and written",
        remedy=remedies.get(error.errno or 0, "Check the path."),
    )


def _input_error_of_memory(error: MemoryError) -> InputError:
    return InputError(
        "memory",
        got=str(error) or "less than is needed",
        expected="room for what was asked",
        remedy="Free some of this machine's memory, or ask for less: fewer or shorter sequences, a smaller model.",
    )


if __name__ == "__main__":
    sys.exit(main())
