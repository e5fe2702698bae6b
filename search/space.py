"""Which candidates stand to choice: from a few shares and numbers to the variants of every layer.

Settings hold for all layers; overrides change single keys for ranges of layers. `search/space_file.py` reads them
from a file, `search/space_size.py` counts what they come to.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from blockwright.errors import InputError
from blockwright.servable import SCORABLE
from blockwright.spec import (
    FFN,
    Attention,
    Candidate,
    Format,
    Full,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Mixer,
    Model,
    NoOp,
    Reach,
    Window,
    format_words,
    parse_format,
)

_WIDTH_MULTIPLE = 256
"""nemotron-nas readers take no other widths (see `blockwright/servable.py`)."""
_SHARES_OF: dict[str, tuple[float, ...]] = {"kv_head_shares": (0.5, 0.25), "ffn_width_shares": (0.75, 0.5, 0.25)}
"""What is offered where neither shares nor numbers are given."""
_NUMBERS = {"kv_head_shares": "kv_heads", "ffn_width_shares": "ffn_widths"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpace:
    """What to offer in some layers; a key that is left out stays as it is for all layers."""

    layers: int | str
    """Counted from 0: ``5``, ``0-3`` or ``0-3,7``."""
    kv_head_shares: tuple[float, ...] | None = None
    kv_heads: tuple[int, ...] | None = None
    windows: tuple[int, ...] | None = None
    ffn_width_shares: tuple[float, ...] | None = None
    ffn_widths: tuple[int, ...] | None = None
    has_linear: bool | None = None
    has_no_op: bool | None = None
    formats: tuple[str, ...] | None = None

    def indices(self, field: str = "layers") -> frozenset[int]:
        """The layers meant; `field` is where they stood, for messages.

        Raises:
            InputError: the text is no list of ranges.
        """
        found: set[int] = set()
        for piece in str(self.layers).split(","):
            match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", piece)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if first > last:
                raise InputError(
                    field,
                    got=repr(self.layers),
                    expected="layers counted from 0, such as 5, 0-3 or 0-3,7",
                    remedy="Write them in this form.",
                )
            found |= set(range(first, last + 1))
        return frozenset(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceSettings:
    """What to offer in every layer beside the parent's own mixer and ffn.

    Numbers take the place of the default shares; where shares and numbers are given, both are offered.
    """

    kv_head_shares: tuple[float, ...] | None = None
    """Of the parent's; what would not divide its heads is left out. By default 0.5 and 0.25."""
    kv_heads: tuple[int, ...] | None = None
    """Numbers of KV heads."""
    windows: tuple[int, ...] = ()
    """Reaches in tokens, the token itself included, beside the parent's own: each with every number of KV heads."""
    ffn_width_shares: tuple[float, ...] | None = None
    """Of the parent's, rounded to widths that engines like. By default 0.75, 0.5 and 0.25."""
    ffn_widths: tuple[int, ...] | None = None
    """Numbers of channels, taken as they stand."""
    has_linear: bool = True
    has_no_op: bool = True
    formats: tuple[str, ...] = ()
    """Weight formats that may be chosen, such as ``int4-g32``; none for all that are scored."""
    overrides: tuple[LayerSpace, ...] = ()
    """For ranges of layers; the last that names a key decides."""

    def __post_init__(self) -> None:
        _check(self, "space.")
        for index, override in enumerate(self.overrides):
            override.indices(f"space.overrides[{index}].layers")
            _check(override, f"space.overrides[{index}].")

    def of_layer(self, layer: int) -> "SpaceSettings":
        """The settings for one layer. An override of shares or of numbers replaces both."""
        found = replace(self, overrides=())
        for override in self.overrides:
            if layer in override.indices():
                found = replace(found, **_changes(override))
        return found

    def formats_of(self, layer: int) -> tuple[Format, ...]:
        """The formats that a layer may be stored in; none for all that are scored."""
        return tuple(parse_format(text) for text in self.of_layer(layer).formats)

    def formats_by_layer(self, num_layers: int) -> tuple[tuple[Format, ...], ...]:
        """The formats of every layer; nothing at all where no layer is bound to any."""
        found = tuple(map(self.formats_of, range(num_layers)))
        return found if any(found) else ()


def candidates(parent: Model, settings: SpaceSettings) -> list[Candidate]:
    """Every candidate of every layer, the parent's own part first.

    Raises:
        InputError: a number is none that the parent's layer could have.
    """
    check_space(parent, settings)
    offered: list[Candidate] = []
    for layer, block in enumerate(parent.layers):
        here = settings.of_layer(layer)
        offered += [Candidate(layer=layer, part="mixer", variant=v) for v in mixers(block.mixer, here)]
        offered += [Candidate(layer=layer, part="ffn", variant=v) for v in ffns(block.ffn, here)]
    return offered


def mixers(own: Mixer, settings: SpaceSettings) -> list[Mixer]:
    """The mixers that a layer may have; KV heads are the parent's divided by a whole number."""
    offered: list[Mixer] = [own]
    if isinstance(own, Attention):
        shares = _shares(settings, "kv_head_shares")
        counts = {max(1, round(own.num_kv_heads * share)) for share in shares} | set(settings.kv_heads or ())
        usable = [count for count in counts if count < own.num_kv_heads and own.num_kv_heads % count == 0]
        reaches: list[Reach] = [own.reach, *(Window(num_tokens=n) for n in sorted(settings.windows, reverse=True))]
        offered += [
            replace(own, num_kv_heads=count, reach=reach)
            for reach in reaches
            for count in (own.num_kv_heads, *sorted(usable, reverse=True))
        ]
    offered += [LinearMixer()] * settings.has_linear + [NoOp()] * settings.has_no_op
    return list(dict.fromkeys(offered))


def ffns(own: FFN, settings: SpaceSettings) -> list[FFN]:
    """The ffns that a layer may have."""
    offered: list[FFN] = [own]
    if isinstance(own, GatedFFN):
        multiple = width_multiple(own.width)
        shares = _shares(settings, "ffn_width_shares")
        widths = {multiple * max(1, round(own.width * share / multiple)) for share in shares}
        widths |= set(settings.ffn_widths or ())
        offered += [replace(own, width=width) for width in sorted(widths, reverse=True) if width < own.width]
    offered += [LinearFFN()] * settings.has_linear + [NoOp()] * settings.has_no_op
    return list(dict.fromkeys(offered))


def width_multiple(width: int) -> int:
    """What widths are rounded to: 256 for large models; the largest power of two that divides a small one's, to 32."""
    if width >= 16 * _WIDTH_MULTIPLE:
        return _WIDTH_MULTIPLE
    return min(32, width & -width)


def check_space(parent: Model, settings: SpaceSettings, field: str = "space") -> None:
    """Refuses numbers that no layer of the parent could have.

    Args:
        parent: the parent.
        settings: the space.
        field: where the settings stood, for messages.

    Raises:
        InputError: names the first number.
    """
    plain, all_layers = replace(settings, overrides=()), range(len(parent.layers))
    overridden = [override.indices() for override in settings.overrides]
    for index, (override, layers) in enumerate(zip(settings.overrides, overridden, strict=True)):
        where = f"{field}.overrides[{index}]"
        if max(layers) >= len(parent.layers):
            raise InputError(
                f"{where}.layers",
                got=repr(override.layers),
                expected=f"layers of the parent's {len(parent.layers)}, counted from 0",
                remedy="Correct the range.",
            )
        for layer in sorted(layers):
            _check_fits(parent, layer, replace(plain, **_changes(override)), where, set(_changes(override)))
    for layer in all_layers:
        named = {key for o in settings.overrides if layer in o.indices() for key in _changes(o)}
        _check_fits(parent, layer, plain, field, {"kv_heads", "windows", "ffn_widths"} - named)


def _check_fits(parent: Model, layer: int, settings: SpaceSettings, field: str, keys: set[str]) -> None:
    block = parent.layers[layer]
    if isinstance(block.mixer, Attention):
        own = block.mixer.num_kv_heads
        reach = parent.max_positions if isinstance(block.mixer.reach, Full) else block.mixer.reach.num_tokens
        for index, count in enumerate(settings.kv_heads or ()):
            if "kv_heads" in keys and own % count:
                raise _unfit(f"{field}.kv_heads[{index}]", count, layer, f"a number that divides its {own} KV heads")
        for index, window in enumerate(settings.windows):
            if "windows" in keys and window >= reach:
                raise _unfit(f"{field}.windows[{index}]", window, layer, f"less than the {reach} tokens it reaches")
    if isinstance(block.ffn, GatedFFN):
        for index, width in enumerate(settings.ffn_widths or ()):
            if "ffn_widths" in keys and width > block.ffn.width:
                expected = f"at most its {block.ffn.width} channels"
                raise _unfit(f"{field}.ffn_widths[{index}]", width, layer, expected)


def _unfit(field: str, got: int, layer: int, expected: str) -> InputError:
    return InputError(
        field,
        got=f"{got} for layer {layer}",
        expected=expected,
        remedy="Correct the number, or override it for that layer.",
    )


def _changes(override: LayerSpace) -> dict[str, Any]:
    named = {key: getattr(override, key) for key in override.__dataclass_fields__ if key != "layers"}
    changes = {key: value for key, value in named.items() if value is not None}
    for pair in _NUMBERS.items():
        if not changes.keys().isdisjoint(pair):
            changes |= {key: changes.get(key) for key in pair}
    return changes


def _shares(settings: SpaceSettings, name: str) -> Sequence[float]:
    given: tuple[float, ...] | None = getattr(settings, name)
    if given is None:
        return _SHARES_OF[name] if getattr(settings, _NUMBERS[name]) is None else ()
    return given


def _check(settings: SpaceSettings | LayerSpace, prefix: str) -> None:
    for name in _SHARES_OF:
        for index, share in enumerate(getattr(settings, name) or ()):
            if not 0 < share < 1:
                raise InputError(
                    f"{prefix}{name}[{index}]",
                    got=share,
                    expected="a share of the parent's between 0 and 1",
                    remedy="Correct the value, or leave it out: the parent's own is offered anyway.",
                )
    for name in ("kv_heads", "windows", "ffn_widths"):
        for index, number in enumerate(getattr(settings, name) or ()):
            if number < 1:
                raise InputError(
                    f"{prefix}{name}[{index}]", got=number, expected="at least 1", remedy="Correct the number."
                )
    for index, text in enumerate(settings.formats or ()):
        _check_format(f"{prefix}formats[{index}]", text)


def _check_format(field: str, text: str) -> None:
    expected = f"a format that an engine can be built in: {format_words(SCORABLE)}"
    try:
        is_buildable = parse_format(text).name in SCORABLE
    except InputError:
        is_buildable = False
    if not is_buildable:
        raise InputError(field, got=repr(text), expected=expected, remedy="Choose one of these.")
