"""Weights in a file beside the graph that points into it, written one by one as they are made.

So building a graph never holds more than one of them, nothing is bound to the 2 GiB of a protobuf message, and ONNX
Runtime maps the file into memory instead of copying it.
"""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
from onnx import TensorProto, helper, numpy_helper

_MIN_BYTES = 1024
"""Smaller constants stay in the graph: shapes and axes decide what it does."""
_ALIGNMENT = 64
"""Tensors begin at multiples of this: a line of the caches."""
_MOST_CODES = 2**24
"""Packed at once: an even number."""


class WeightFile:
    """A file of tensors that grows at its end.

    Args:
        stream: a new file.
        location: the name under which a graph finds it beside itself.
    """

    def __init__(self, stream: BinaryIO, location: str) -> None:
        self.size_bytes = 0
        self._stream, self._location = stream, location
        self._sha = hashlib.sha256()
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._hashing: Future[None] | None = None

    @property
    def sha256(self) -> str:
        """Of all that was written."""
        self._finish_hashing()
        return self._sha.hexdigest()

    def add(self, name: str, value: np.ndarray) -> TensorProto:
        """Writes a tensor and returns what points at it, or small ones themselves."""
        if value.nbytes < _MIN_BYTES:
            return numpy_helper.from_array(value, name)
        element = helper.np_dtype_to_tensor_dtype(value.dtype)
        self._write(bytes(-self.size_bytes % _ALIGNMENT))
        start = self.size_bytes
        if element == TensorProto.INT4:  # the only kind that is packed
            codes = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            for first in range(0, codes.size, _MOST_CODES):
                self._write(_packed(codes[first : first + _MOST_CODES]))
        else:
            self._write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        tensor = TensorProto(name=name, data_type=element, dims=value.shape, data_location=TensorProto.EXTERNAL)
        for key, entry in (("location", self._location), ("offset", start), ("length", self.size_bytes - start)):
            tensor.external_data.add(key=key, value=str(entry))
        return tensor

    def _write(self, data: bytes | memoryview) -> None:
        # Hashing takes a third of the time, so it goes on while the next tensor is made: at most one waits for it.
        self._finish_hashing()
        self._hashing = self._worker.submit(self._sha.update, data)
        self._stream.write(data)
        self.size_bytes += len(data)

    def _finish_hashing(self) -> None:
        if self._hashing is not None:
            self._hashing.result()


def _packed(codes: np.ndarray) -> memoryview:
    """Two codes of 4 bits in a byte, the lower half first, from a byte for each; the last may stand alone."""
    packed = codes[::2] & 15
    packed[: codes.size // 2] |= codes[1::2] << 4
    return packed.data
