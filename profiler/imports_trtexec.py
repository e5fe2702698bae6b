"""What trtexec writes with ``--exportTimes`` (NVIDIA/TensorRT, samples/common/sampleReporting.cpp, `exportJSONTrace`).

A list of iterations, in newer versions without the warm-up; of each we read, in milliseconds,

    startComputeMs, endComputeMs    on the device, from the start of the run
    computeMs                       the same, with all of its digits

and not startEnqMs, startH2dMs, startD2hMs, their ends, h2dMs, d2hMs and latencyMs, which are the host's and transfers.
TensorRT's version does not stand in it, nor what the engine's inputs were: with a context it was one step of writing
over as many tokens, without one the reading of the load's prompts.
"""

from blockwright.errors import InputError
from blockwright.profiler.imports import (
    NOT_TOLD,
    Results,
    Told,
    WholeTime,
    check_agree,
    decode,
    field,
    needed_format,
    needed_load,
    parsed,
    prefill,
    records_of,
    seconds_of,
)

_NUMBER = (int, float)
_DIGITS = 2e-5
"""C++ streams write six digits: so much of a late iteration's start and end is rounded away, each."""


def read_trtexec(text: str, place: str, told: Told) -> Results:
    """Reads a file of trtexec.

    Args:
        text: of the file.
        place: its name, for messages.
        told: the load, the context where tokens were written, and the format.

    Raises:
        InputError: the file is broken or of another program, or something was not told.
    """
    samples_s = []
    for number, record in enumerate(records_of(parsed(text, place), place)):
        where = f"{place}: iteration {number}"
        start, end, took = (
            field(record, f"{name}Ms", _NUMBER, where) for name in ("startCompute", "endCompute", "compute")
        )
        rounding = _DIGITS * abs(end)
        if abs(end - start - took) > rounding:
            check_agree(where, ("computeMs", took), ("endComputeMs - startComputeMs", end - start), 0.01)
        samples_s.append(took * 1e-3)
    load = needed_load(told, place, "the batch, and the prompt that it read")
    if told.context is None and load.prompt_tokens < 2:
        raise InputError(
            "--context",
            got="none, and a prompt of one token",
            expected="the tokens in the caches where a token was written, or a prompt of several",
            remedy="Add --context N.",
        )
    point = prefill(load.batch, load.prompt_tokens) if told.context is None else decode(load.batch, told.context)
    time = WholeTime(point=point, weights=needed_format(told, place), seconds=seconds_of(samples_s, place))
    return Results(software={"tensorrt": NOT_TOLD}, times=(time,))
