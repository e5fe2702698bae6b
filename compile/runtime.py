"""The one place that imports ONNX Runtime, which comes with the extra [cpu] or [cuda], and knows what it raises."""

from blockwright.errors import InputError

try:
    import onnxruntime as ort
except ImportError as error:
    raise ImportError(
        "Blockwright needs ONNX Runtime here. Install one of its two builds: "
        "pip install 'blockwright[cpu]' or pip install 'blockwright[cuda]'."
    ) from error

import onnxruntime.capi.onnxruntime_pybind11_state as _state

ORT_ERRORS: tuple[type[Exception], ...] = (
    _state.EPFail,
    _state.Fail,
    _state.InvalidArgument,
    _state.InvalidGraph,
    _state.InvalidProtobuf,
    _state.NoSuchFile,
    _state.NotImplemented,
    _state.RuntimeException,
)
"""What ONNX Runtime raises; they have no base class of their own."""
RUNNING_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, RuntimeError, MemoryError)
"""The same while it runs or makes room on a device, where the errors of C++ come as Python's."""
_NO_MEMORY = ("out of memory", "allocat", "bad_alloc", "alloc_failed")
"""Words, in small letters, of what CUDA, its libraries, ONNX Runtime and our operators say where it is too small."""

__all__ = ["ORT_ERRORS", "RUNNING_ERRORS", "ort", "refused"]


def refused(error: Exception, where: str, expected: str, device: str) -> InputError:
    """What ONNX Runtime raised, with what to do about it.

    Args:
        error: one of `RUNNING_ERRORS`.
        where: the graph, or what was done with it.
        expected: what it should have been.
        device: whose memory may be too small.
    """
    said = (str(error).splitlines() or [type(error).__name__])[0]
    remedy = "Compile the engine again with the installed versions."
    if isinstance(error, MemoryError) or any(word in str(error).lower() for word in _NO_MEMORY):
        remedy = (
            f"The memory of {device} is too small: free some of it, ask for fewer or shorter sequences, or compile "
            "the engine with a smaller --format."
        )
    return InputError(where, got=said, expected=expected, remedy=remedy)
