"""Int4 codes laid out for our kernels: planar, so that both halves of a byte meet activations that lie side by side.

Of a group of G inputs of one output, byte j < G/2 holds code j in its lower half and code j + G/2 in its upper one,
both counted from 0 for -8. The codes are those of `quantise_blocks`, and come back as they were.

Shapes: K inputs, N outputs, G groups.
"""

import numpy as np

from blockwright.errors import InputError

ZERO = 8
"""The code of a weight of 0."""


def pack_planar(codes_KN: np.ndarray, group_size: int) -> np.ndarray:
    """Packs codes from -8 to 7 as bytes_NK, half as many as inputs.

    Raises:
        InputError: the inputs are no whole number of groups.
    """
    num_inputs, num_outputs = codes_KN.shape
    if num_inputs % group_size:
        raise InputError(
            "codes",
            got=f"{num_inputs} inputs",
            expected=f"whole groups of {group_size}",
            remedy="Choose a group size that divides the inputs.",
        )
    codes_NGS = (codes_KN.T.astype(np.int16) + ZERO).astype(np.uint8).reshape(num_outputs, -1, 2, group_size // 2)
    packed_NGS = codes_NGS[:, :, 0] | (codes_NGS[:, :, 1] << 4)
    return np.ascontiguousarray(packed_NGS.reshape(num_outputs, num_inputs // 2))


def unpack_planar(bytes_NK: np.ndarray, group_size: int) -> np.ndarray:
    """The codes_KN that `pack_planar` packed."""
    halves_NGS = bytes_NK.reshape(len(bytes_NK), -1, group_size // 2)
    codes_NGS = np.concatenate([halves_NGS & 15, halves_NGS >> 4], axis=2).astype(np.int8) - np.int8(ZERO)
    return np.ascontiguousarray(codes_NGS.reshape(len(bytes_NK), -1).T)
