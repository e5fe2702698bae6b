"""Opens graphs on a device by ONNX Runtime's provider for it, and says which nodes run where.

``cuda`` was never run: no GPU was at hand. Where its provider lacks an operator for some type, ONNX Runtime leaves the
node to the CPU without a word and copies what it reads and writes.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from blockwright.compile.engine import SessionSettings
from blockwright.compile.runtime import RUNNING_ERRORS, ort, refused
from blockwright.compile.session import session_entries
from blockwright.errors import InputError

DeviceName = Literal["cuda", "cpu"]

_CPU = "CPUExecutionProvider"
_PROVIDERS: dict[DeviceName, str] = {"cuda": "CUDAExecutionProvider", "cpu": _CPU}
_CUDA_OPTIONS = {"use_tf32": "0"}
"""An engine's activations are fp32, whose mantissas CUDA would else round to 10 bits for its tensor cores."""


def open_on(device: DeviceName, graph: Path, settings: SessionSettings) -> ort.InferenceSession:
    """Opens a graph on a device, with the CPU for what its provider lacks.

    Raises:
        InputError: the graph is broken, or ONNX Runtime cannot use the device.
    """
    _check_is_built_for(device)
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    recorded = {"session.record_ep_graph_assignment_info": "1"}
    for key, value in (session_entries(settings) | recorded).items():
        options.add_session_config_entry(key, value)
    providers = [_CPU]
    if device == "cuda":
        ort.preload_dlls()  # finds CUDA's libraries where they came as Python packages
        providers = [(_PROVIDERS[device], _CUDA_OPTIONS), _CPU]
    try:
        session = ort.InferenceSession(str(graph), options, providers=providers)
    except RUNNING_ERRORS as error:
        raise refused(error, str(graph), f"a graph that ONNX Runtime opens on {device}", device) from error
    check_runs_on(device, session.get_providers())
    return session


def _check_is_built_for(device: DeviceName) -> None:
    available = ort.get_available_providers()
    if _PROVIDERS[device] not in available:
        raise InputError(
            "device",
            got=f"{device}, where ONNX Runtime has {', '.join(available)}",
            expected=f"a build of ONNX Runtime with {_PROVIDERS[device]}",
            remedy="With an NVIDIA GPU, pip uninstall onnxruntime and pip install 'blockwright[cuda]' in place of "
            "[cpu]; without one, take the CPU.",
        )


def check_runs_on(device: DeviceName, providers: Sequence[str]) -> None:
    """Refuses a session that ONNX Runtime opened without the device: it only warns of that.

    Raises:
        InputError: its first provider is another one.
    """
    if providers[0] != _PROVIDERS[device]:
        raise InputError(
            "device",
            got=f"{device}, which ONNX Runtime could not use: it took {', '.join(providers)}",
            expected="a GPU, its driver, and the CUDA and cuDNN that onnxruntime-gpu was built for",
            remedy="See whether nvidia-smi shows the GPU, and pip install 'onnxruntime-gpu[cuda,cudnn]'.",
        )


def nodes_by_provider(session: ort.InferenceSession) -> dict[str, Counter[str]]:
    """How many nodes of each operator every provider runs, in a session that `open_on` opened."""
    found: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return found


def nodes_elsewhere(session: ort.InferenceSession, device: DeviceName) -> Counter[str]:
    """How many nodes of each operator the device's own provider has left to another."""
    others = (nodes for name, nodes in nodes_by_provider(session).items() if name != _PROVIDERS[device])
    return sum(others, Counter[str]())
