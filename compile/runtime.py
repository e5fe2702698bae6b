"""The one place that imports ONNX Runtime, which comes with the extra [cpu] or [cuda]."""

try:
    import onnxruntime as ort
except ImportError as error:
    raise ImportError(
        "Blockwright needs ONNX Runtime here. Install one of its two builds: "
        "pip install 'blockwright[cpu]' or pip install 'blockwright[cuda]'."
    ) from error

import onnxruntime.capi.onnxruntime_pybind11_state as _state

ORT_ERRORS: tuple[type[Exception], ...] = (
    _state.Fail,
    _state.InvalidArgument,
    _state.InvalidGraph,
    _state.InvalidProtobuf,
    _state.NoSuchFile,
    _state.NotImplemented,
    _state.RuntimeException,
)
"""What ONNX Runtime raises; they have no base class of their own."""

__all__ = ["ORT_ERRORS", "ort"]
