"""Variants by their names, as files of measurements write them."""

import re

from blockwright.spec import (
    FFN,
    FP32,
    Attention,
    Format,
    Full,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Mixer,
    NoOp,
    Part,
    Window,
)


def parse_variant(part: Part, name: str, weights: Format = FP32) -> Mixer | FFN:
    """The mixer or ffn that `variant_name` gives this name.

    Raises:
        ValueError: there is none; says which names there are.
    """
    if name == "none":
        return NoOp()
    if name == "linear":
        return LinearMixer(weights=weights) if part == "mixer" else LinearFFN(weights=weights)
    if part == "ffn" and (found := re.fullmatch(r"ffn-([1-9]\d*)", name)):
        return GatedFFN(width=int(found[1]), weights=weights)
    if part == "mixer" and (found := re.fullmatch(r"attention-kv([1-9]\d*)(?:-w([1-9]\d*))?", name)):
        reach = Window(num_tokens=int(found[2])) if found[2] else Full()
        return Attention(num_kv_heads=int(found[1]), reach=reach, weights=weights)
    names = {"mixer": "attention-kvN, attention-kvN-wN", "ffn": "ffn-N"}[part]
    raise ValueError(f"the name of a variant: {names}, linear or none")
