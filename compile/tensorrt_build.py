"""Builds a TensorRT plan from a graph, in a process of its own: TensorRT aborts on some errors, and with it the caller.

    python -m blockwright.compile.tensorrt_build request.json answer.json PROCESS

On Linux it ends with its caller, the process of that number. The answer is a `Built`, or what an InputError says. Full
TensorRT needs a GPU to build, so with it this was never run.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blockwright.compile.tensorrt_checks import Expected, check_groups, check_network, layer_census
from blockwright.compile.tensorrt_package import Package, PackageName, find_package, in_words, no_start
from blockwright.errors import InputError
from blockwright.files import new_file, read_json, write_json
from blockwright.strict import from_data, to_data

_PR_SET_PDEATHSIG = 1
"""Of prctl: linux/prctl.h."""
_TOO_LARGE = ("out of memory", "outofmemory", "volume exceeds")
"""What TensorRT's errors say of it. TensorRT-RTX 1.7.1 has no tensors of more than 2**40 numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRange:
    """An optimisation profile: how many tokens of each sequence a run reads."""

    name: Literal["prefill", "decode"]
    fewest: int
    typical: int
    """What kernels are chosen for, in as many sequences as a plan takes."""
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build from which files."""

    package: PackageName
    graph: str
    plan: str
    capabilities: tuple[str, ...]
    """As ``sm86``, of TensorRT-RTX; TensorRT builds for the GPU at hand."""
    profiles: tuple[TokenRange, ...]
    most_sequences: int
    expected: Expected
    timing_cache: str | None
    """Times of kernels, read and written, so that the next build need not measure them. TensorRT only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What became of it."""

    census: dict[str, int]
    is_attention_decomposed: bool
    """TensorRT has no fused kernel for heads of this size, and writes out all scores instead."""
    build_s: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    field: str
    got: str
    expected: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    built: Built | None = None
    refused: _Refused | None = None


def build_apart(request: BuildRequest, package: Package) -> Built:
    """Builds in another process.

    Raises:
        InputError: TensorRT refuses the graph or cannot build it; or the process was killed.
    """
    # Beside the plan: who removes what a killed build left there removes these too.
    with tempfile.TemporaryDirectory(dir=Path(request.plan).parent) as folder:
        order, answer_file = Path(folder) / "request.json", Path(folder) / "answer.json"
        words = (str(order), str(answer_file), str(os.getpid()))
        write_json(order, to_data(request))
        done = subprocess.run(
            [sys.executable, "-m", "blockwright.compile.tensorrt_build", *words],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        if not answer_file.exists():
            raise _died(done, package)
        answer = from_data(_Answer, read_json(answer_file), "answer of the build")
    if answer.refused is not None:
        refused = answer.refused
        raise InputError(refused.field, got=refused.got, expected=refused.expected, remedy=refused.remedy)
    assert answer.built is not None, "one of the two"
    return answer.built


def _died(done: subprocess.CompletedProcess[str], package: Package) -> InputError:
    last_line = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
    was_killed = -done.returncode == signal.SIGKILL
    how = f"signal {signal.Signals(-done.returncode).name}" if done.returncode < 0 else f"exit code {done.returncode}"
    return InputError(
        "build",
        got=f"{package.title} ended with {how}: {last_line}",
        expected="a plan, or an error",
        remedy="Give it more memory: the system ends what takes too much."
        if was_killed
        else "Try another version of TensorRT, or another format.",
    )


def build(request: BuildRequest, package: Package) -> Built:
    """Builds in this process, and writes the plan.

    Raises:
        InputError: TensorRT refuses the graph or cannot build it; says why in its own words.
    """
    check_groups(request.expected, package)
    start, trt = time.perf_counter(), package.trt
    log = package.new_log()
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # what its interface makes of a null pointer
        raise no_start(package, log) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(request.graph):
        raise _unparsed(parser, package)
    check_network(network, request.expected, package.title)
    config = builder.create_builder_config()
    for profile in request.profiles:
        config.add_optimization_profile(_shapes(builder, network, profile, request.most_sequences))
    if package.name == "tensorrt_rtx":
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # CUDA graphs forbid to make any
        config.num_compute_capabilities = len(request.capabilities)
        for index, name in enumerate(request.capabilities):
            config.set_compute_capability(trt.ComputeCapability.__members__[name.upper()], index)
    timings = None if request.timing_cache is None else Path(request.timing_cache)
    if timings is not None:
        _take_timings(config, timings.read_bytes() if timings.exists() else b"")
    log.errors.clear()  # a cache that is no longer of use is no reason why the build fails
    plan = builder.build_serialized_network(network, config)
    has_no_kernel = plan is None and any("is_decomposable" in error for error in log.errors)
    if has_no_kernel:
        _decompose(network, trt)
        log.errors.clear()
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _unbuilt(log.errors, package)
    with new_file(Path(request.plan)) as temporary:
        temporary.write_bytes(plan)
    if timings is not None:
        with new_file(timings) as temporary:
            temporary.write_bytes(config.get_timing_cache().serialize())
    return Built(
        census=layer_census(network),
        is_attention_decomposed=has_no_kernel,
        build_s=time.perf_counter() - start,
        warnings=tuple(dict.fromkeys(log.warnings)),
    )


def _take_timings(config: Any, known: bytes) -> None:
    """Begins with the times that are known, or with none where they are another version's or another GPU's."""
    for data in (known, b""):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return


def _decompose(network: Any, trt: Any) -> None:
    """Lets TensorRT write attention as products and a softmax, which it does not unless told so."""
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # how its Python interface casts a layer
            layer.attention.decomposable = True


def _shapes(builder: Any, network: Any, tokens: TokenRange, most_sequences: int) -> Any:
    """A profile over all inputs: their first dimension is the batch, any other that is open the tokens."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        bounds = ((1, tokens.fewest), (most_sequences, tokens.typical), (most_sequences, tokens.most))
        shapes = [
            tuple(size if size >= 0 else open_sizes[axis > 0] for axis, size in enumerate(tensor.shape))
            for open_sizes in bounds
        ]
        profile.set_shape(tensor.name, *shapes)
    return profile


def _unparsed(parser: Any, package: Package) -> InputError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    first = errors[0]
    return InputError(
        f"graph: {first.node_name()} ({first.node_operator()})" if first.node_name() else "graph",
        got=in_words(first.desc()),
        expected=f"a graph that {package.title} parses",
        remedy="Choose another format or another block, or a newer TensorRT.",
    )


def _unbuilt(errors: list[str], package: Package) -> InputError:
    said = [in_words(error) for error in errors] or ["nothing said"]
    is_memory = any(word in error.lower() for error in errors for word in _TOO_LARGE)
    return InputError(
        "build",
        got=said[0],
        expected=f"a network that {package.title} builds",
        remedy="Free memory, or build for fewer sequences (--batch) or a shorter --context."
        if is_memory
        else "Choose other compute capabilities, another format or another block, or --form decomposed.",
    )


def _end_with(process: int) -> None:
    """Has Linux kill this process when its parent ends; ends now where the parent is another one already."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != process:
        sys.exit(f"process {process}, which asked for the build, has ended")


def main(argv: list[str]) -> int:
    """Reads a request, builds, and writes the answer."""
    _end_with(int(argv[2]))
    order, answer_file = map(Path, argv[:2])
    request = from_data(BuildRequest, read_json(order), str(order))
    try:
        answer = _Answer(built=build(request, find_package((request.package,))))
    except InputError as error:
        refused = _Refused(field=error.field, got=str(error.got), expected=error.expected, remedy=error.remedy)
        answer = _Answer(refused=refused)
    write_json(answer_file, to_data(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
