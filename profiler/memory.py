"""The memory that an engine takes: measured in a process of its own, beyond what the empty runtime takes.

python -m blockwright.profiler.memory ENGINE BATCH PROMPT_TOKENS NEW_TOKENS
"""

import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from blockwright.compile.engine import SessionSettings
from blockwright.compile.graph import IR_VERSION, OPSET
from blockwright.compile.session import Decoder, make_session
from blockwright.cost import Load
from blockwright.profiler.process import run_module

_STEPS = 8


def peak_bytes(engine: Path, load: Load) -> int:
    """Peak resident bytes of opening an engine, reading a prompt and writing a few tokens at a load.

    Raises:
        InputError: the process failed; its last line of output is given.
    """
    numbers = (load.batch, load.prompt_tokens, load.new_tokens)
    return int(run_module("blockwright.profiler.memory", [str(engine), *map(str, numbers)], f"{engine}: memory"))


def _run(engine: Path, load: Load) -> int:
    _warm_up_runtime()
    before = _peak_resident_bytes()
    sequences = Decoder.open(engine).start(load.batch, load.total_tokens)
    logits_BV = sequences.prefill([[1] * load.prompt_tokens] * load.batch)
    for _ in range(min(_STEPS, load.new_tokens)):
        logits_BV = sequences.step(logits_BV.argmax(-1))
    return _peak_resident_bytes() - before


def _warm_up_runtime() -> None:
    """Opens and runs a graph of one node, so that what the runtime itself takes is not counted."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    session = make_session(model.SerializeToString(), SessionSettings(num_threads=1))
    session.run(None, {"x": np.zeros(1, dtype=np.float32)})


def _peak_resident_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows, where there is no other way either

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    batch, prompt_tokens, new_tokens = map(int, sys.argv[2:])
    print(_run(Path(sys.argv[1]), Load(batch=batch, prompt_tokens=prompt_tokens, new_tokens=new_tokens)))
