"""Turns int4 codes from the order of a file into that of our own product, eight at a time in words of 32 bits.

A woven word holds 8 inputs of one output, in the order 0, 4, 1, 5, 2, 6, 3, 7 from the lowest half byte up, and the
words of 8 outputs lie side by side (`cpu_int4.c`). Opening an engine is mostly this, so no code is unpacked.

Shapes: K inputs, N outputs, W words of 8 inputs, P inputs with the last group filled up.
"""

import numpy as np

LANES = 8
"""Codes in a word, and outputs side by side."""
_ZERO_WORD = np.uint32(0x88888888)
"""Eight codes of 0."""
_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
_MOST_BYTES = 2**18
"""Worked on at once: about half of a core's second cache."""


def weave_by_output(data: np.ndarray, num_outputs: int) -> np.ndarray:
    """Weaves codes that lie output by output, unsigned, as MatMulNBits has them.

    Args:
        data: bytes, two codes in each, the lower half first; whole words for each output.
        num_outputs: N.

    Returns:
        woven bytes, of shape (N / 8 rounded up, W, 8, 4); outputs that are none have codes of 0.
    """
    words_NW = data.view(np.uint32).reshape(num_outputs, -1)
    num_words = words_NW.shape[1]
    woven = np.empty((-(-num_outputs // LANES), num_words, LANES), dtype=np.uint32)
    woven[num_outputs // LANES :] = _ZERO_WORD
    step = LANES * max(1, _MOST_BYTES // (4 * LANES * num_words))
    for start in range(0, num_outputs, step):
        part = words_NW[start : start + step].copy()
        _swap(part, part, 8, 0x0000FF00)  # bytes 1 and 2 of each word
        _swap(part, part, 4, 0x00F000F0)  # half bytes 1 and 2 of each half
        whole = len(part) // LANES * LANES
        first = start // LANES
        woven[first : first + whole // LANES] = part[:whole].reshape(-1, LANES, num_words).transpose(0, 2, 1)
        if whole < len(part):
            woven[-1, :, : len(part) - whole] = part[whole:].T
    return _bytes_of(woven)


def weave_by_input(data: np.ndarray, num_outputs: int, num_filled: int) -> np.ndarray:
    """Weaves codes that lie input by input, signed, as DequantizeLinear has them.

    Args:
        data: bytes, two codes in each, the lower half first; K and N are multiples of 8.
        num_outputs: N.
        num_filled: P, a multiple of 8.

    Returns:
        as `weave_by_output`, of shape (N / 8, P / 8, 8, 4).
    """
    words = data.view(np.uint32).reshape(-1, LANES, num_outputs // LANES)
    woven = np.empty((num_outputs // LANES, num_filled // LANES, LANES), dtype=np.uint32)
    woven[:, len(words) :] = _ZERO_WORD
    step = max(1, _MOST_BYTES // (4 * num_outputs))
    for start in range(0, len(words), step):
        part = words[start : start + step, _ORDER]
        part ^= _ZERO_WORD  # from -8 … 7 to 0 … 15
        # Half bytes change places with rows, in blocks of four, two and one.
        for lanes, mask in ((4, 0x0000FFFF), (2, 0x00FF00FF), (1, 0x0F0F0F0F)):
            pairs = part.reshape(len(part), -1, 2, lanes, words.shape[-1])
            _swap(pairs[:, :, 0], pairs[:, :, 1], 4 * lanes, mask)
        woven[:, start : start + len(part)] = part.transpose(2, 0, 1)
    return _bytes_of(woven)


def _swap(low: np.ndarray, high: np.ndarray, bits: int, mask: int) -> None:
    """Exchanges the bits of `high` under the mask for those of `low` that lie `bits` above it; both may be the same."""
    moved = low >> np.uint32(bits)
    moved ^= high
    moved &= np.uint32(mask)
    high ^= moved
    moved <<= np.uint32(bits)
    low ^= moved


def _bytes_of(words: np.ndarray) -> np.ndarray:
    return words.view(np.uint8).reshape(*words.shape, 4)
