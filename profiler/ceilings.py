"""The most that the runtime gets out of this machine: the measure for everything else."""

import numpy as np
from onnx import TensorProto, helper

from blockwright.compile.engine import SessionSettings
from blockwright.compile.graph import Graph
from blockwright.compile.session import make_session
from blockwright.hw_profiles.profile import Ceilings
from blockwright.profiler.clock import Effort, time_in_turn
from blockwright.profiler.reference import Reference

_COLUMNS = 4096
_ROWS = 16384  # with the columns 256 MiB in fp32: beyond any cache
_SIZE = 1024


def measure_ceilings(session: SessionSettings, effort: Effort, reference: Reference) -> Ceilings:
    """Times a large matrix-vector product and a large matrix product in ONNX Runtime, and adds the reference's best."""
    vector_s = _time_product(1, _ROWS, _COLUMNS, session, effort)
    matrix_s = _time_product(_SIZE, _SIZE, _SIZE, session, effort)
    return Ceilings(
        read_bytes_per_s=4 * _ROWS * _COLUMNS / vector_s,
        fp32_flop_per_s=2 * _SIZE**3 / matrix_s,
        reference_s=reference.least_s,
    )


def _time_product(rows: int, inputs: int, outputs: int, settings: SessionSettings, effort: Effort) -> float:
    generator = np.random.default_rng(0)
    graph = Graph()
    graph.input("x", "float32", [rows, inputs])
    graph.constant("w", generator.standard_normal((inputs, outputs), dtype=np.float32))
    graph.node("MatMul", ["x", "w"], "y")
    graph.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, outputs]))
    session = make_session(graph.model().SerializeToString(), settings)
    x = generator.standard_normal((rows, inputs), dtype=np.float32)
    return time_in_turn([lambda: session.run(None, {"x": x})], effort, settings.num_threads)[0].median_s
