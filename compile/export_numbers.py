"""Numbers in fewer bits: what does not fit is refused, what rounding adds is measured."""

import numpy as np

from blockwright.errors import InputError


def as_type(name: str, value: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """The tensor in another type.

    Raises:
        InputError: a finite number in it is too large for the type.
    """
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(value.astype(dtype))
    if not np.isfinite(cast.astype(np.float32)).all() and np.isfinite(value.astype(np.float32)).all():
        raise InputError(
            f"weights: {name}",
            got=f"{np.abs(value).max():g}",
            expected=f"at most the largest number of {np.dtype(dtype).name}",
            remedy="Take --format fp32, or bf16 where the target takes it.",
        )
    return cast


def scale_error(codes_KN: np.ndarray, scales_GN: np.ndarray) -> float:
    """What scales in fp16 instead of fp32 add to a matrix: root mean square over that of the weights."""
    blocks_GSN = codes_KN.reshape(len(scales_GN), -1, codes_KN.shape[1]).astype(np.float32)
    change_GN = scales_GN.astype(np.float16).astype(np.float32) - scales_GN
    size = np.square(blocks_GSN * scales_GN[:, None]).sum()
    return float(np.sqrt(np.square(blocks_GSN * change_GN[:, None]).sum() / size)) if size > 0 else 0.0
