"""Write text with an engine, as it comes.

Example:
  blockwright generate engine --prompt 'def main(' --tokens 100 --temperature 0.7 --stop 'def '
"""

import argparse
import io
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockwright.compile.generate import AnyDecoder


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("engine", type=Path, help="the engine's folder")
    parser.add_argument("--prompt", default="", help="what to go on with; - reads standard input")
    parser.add_argument("--tokens", type=int, default=128, help="at most so many new ones (default: 128)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    parser.add_argument(
        "--top-k",
        type=int,
        default=0,
        help="draw among so many tokens; 0 for all (default: 0); of no effect at temperature 0",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="draw among the likeliest share (default: 1); of no effect at temperature 0",
    )
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="of tokens seen before (default: 1)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this; may come again")
    parser.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, default=True, help="write text as it comes, or whole at last"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where ONNX Runtime runs (default: cpu)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.compile.generate import generate_text, open_tokenizer
    from blockwright.compile.sampling import Sampling
    from blockwright.errors import InputError
    from blockwright.pipeline.recipe import check_at_least, check_seed

    check_at_least("--tokens", arguments.tokens, 1)
    check_at_least("--temperature", arguments.temperature, 0)
    check_seed("--seed", arguments.seed)
    try:
        sampling = Sampling(
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            repetition_penalty=arguments.repetition_penalty,
            seed=arguments.seed,
        )
    except ValueError as error:
        given = ", ".join(
            map(str, (arguments.temperature, arguments.top_k, arguments.top_p, arguments.repetition_penalty))
        )
        flags = "--temperature, --top-k, --top-p, --repetition-penalty"
        raise InputError(flags, got=given, expected=str(error), remedy="Correct the value.") from error
    if "" in arguments.stop:
        raise InputError("--stop", got="no text", expected="a text to end before", remedy="Write one, or leave it out.")
    decoder, tokenizer = _open(arguments.engine, arguments.device), open_tokenizer(arguments.engine)
    prompt = sys.stdin.buffer.read().decode(errors="surrogateescape") if arguments.prompt == "-" else arguments.prompt
    check_is_text("--prompt", prompt)
    num_positions = decoder.engine.num_positions
    room = num_positions - max(1, len(tokenizer.encode(prompt).ids))  # an empty prompt begins with a token too
    if 0 < room < arguments.tokens:
        print(f"--tokens {arguments.tokens}: at most {room} fit into the context of {num_positions}", file=sys.stderr)
    pieces = generate_text(decoder, tokenizer, prompt, max(1, min(arguments.tokens, room)), sampling, arguments.stop)
    first = next(pieces, "")  # refuses what cannot be gone on with, before anything is written
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack a character
    whole = itertools.chain((prompt, first), pieces)
    for piece in whole if arguments.stream else ("".join(whole),):
        print(piece, end="", flush=True)
    print()


def _open(folder: Path, device: str) -> "AnyDecoder":
    """Opens an engine in the runtime that it was built for, and loads no other; TensorRT's is always on the GPU."""
    from blockwright.compile.described import engine_target

    if engine_target(folder) == "tensorrt":
        from blockwright.compile.tensorrt_session import TensorRtDecoder

        return TensorRtDecoder.open(folder)
    if device == "cuda":
        return _open_on_gpu(folder)
    from blockwright.compile.session import Decoder
    from blockwright.pipeline.software import say_what_is_missing

    say_what_is_missing()
    return Decoder.open(folder)


def _open_on_gpu(folder: Path) -> "AnyDecoder":
    """Opens an engine on the GPU, and says which of its nodes run elsewhere, for they make it slow."""
    from blockwright.compile.device_session import DeviceDecoder
    from blockwright.compile.providers import nodes_elsewhere

    decoder = DeviceDecoder.open(folder, "cuda")
    if elsewhere := nodes_elsewhere(decoder.session, "cuda"):
        listed = ", ".join(f"{count} {name}" for name, count in elsewhere.most_common())
        print(f"--device cuda: the CPU runs {listed}, which the GPU's provider has not", file=sys.stderr)
    return decoder


def check_is_text(field: str, text: str) -> None:
    """Refuses what was no UTF-8 before Python read it.

    Raises:
        InputError: it holds bytes that stand for no character.
    """
    from blockwright.errors import InputError

    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(field, got=str(error), expected="text in UTF-8", remedy="Correct the prompt.") from error
