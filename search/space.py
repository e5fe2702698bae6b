"""Which candidates stand to choice: from a few shares to the variants of every layer."""

from dataclasses import dataclass, replace

from blockwright.errors import InputError
from blockwright.spec import FFN, Attention, Candidate, GatedFFN, LinearFFN, LinearMixer, Mixer, Model, NoOp

_WIDTH_MULTIPLE = 256
"""nemotron-nas readers take no other widths (see `blockwright/servable.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceSettings:
    """What to offer in every layer beside the parent's own mixer and ffn."""

    kv_head_shares: tuple[float, ...] = (0.5, 0.25)
    ffn_width_shares: tuple[float, ...] = (0.75, 0.5, 0.25)
    has_linear: bool = True
    has_no_op: bool = True

    def __post_init__(self) -> None:
        for name in ("kv_head_shares", "ffn_width_shares"):
            for index, share in enumerate(getattr(self, name)):
                if not 0 < share < 1:
                    raise InputError(
                        f"space.{name}[{index}]",
                        got=share,
                        expected="a share of the parent's between 0 and 1",
                        remedy="Correct the value, or leave it out: the parent's own is offered anyway.",
                    )


def candidates(parent: Model, settings: SpaceSettings) -> list[Candidate]:
    """Every candidate of every layer, the parent's own part first."""
    offered: list[Candidate] = []
    for layer, block in enumerate(parent.layers):
        offered += [Candidate(layer=layer, part="mixer", variant=v) for v in mixers(block.mixer, settings)]
        offered += [Candidate(layer=layer, part="ffn", variant=v) for v in ffns(block.ffn, settings)]
    return offered


def mixers(own: Mixer, settings: SpaceSettings) -> list[Mixer]:
    """The mixers that a layer may have; KV heads are the parent's divided by a whole number."""
    offered: list[Mixer] = [own]
    if isinstance(own, Attention):
        counts = {max(1, round(own.num_kv_heads * share)) for share in settings.kv_head_shares}
        usable = [count for count in counts if count < own.num_kv_heads and own.num_kv_heads % count == 0]
        offered += [replace(own, num_kv_heads=count) for count in sorted(usable, reverse=True)]
    offered += [LinearMixer()] * settings.has_linear + [NoOp()] * settings.has_no_op
    return list(dict.fromkeys(offered))


def ffns(own: FFN, settings: SpaceSettings) -> list[FFN]:
    """The ffns that a layer may have."""
    offered: list[FFN] = [own]
    if isinstance(own, GatedFFN):
        multiple = width_multiple(own.width)
        widths = {multiple * max(1, round(own.width * share / multiple)) for share in settings.ffn_width_shares}
        offered += [replace(own, width=width) for width in sorted(widths, reverse=True) if width < own.width]
    offered += [LinearFFN()] * settings.has_linear + [NoOp()] * settings.has_no_op
    return list(dict.fromkeys(offered))


def width_multiple(width: int) -> int:
    """What widths are rounded to: 256 for large models; the largest power of two that divides a small one's, to 32."""
    if width >= 16 * _WIDTH_MULTIPLE:
        return _WIDTH_MULTIPLE
    return min(32, width & -width)
