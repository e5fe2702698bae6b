"""Which candidates the engines of `--servable-by` leave out, and why.

A candidate is left out where they load it beside nothing that is offered for the other part of its layer. A part that
was offered something and has nothing but a no-op left is an error: whoever asks for an engine does not ask for layers
to be removed because their format does not suit it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import get_args

from blockwright.errors import InputError
from blockwright.servable import Engine, layer_obstacles
from blockwright.spec import Block, Candidate, Format, Model, NoOp, Part, parse_format, stored_as

_MOST_REASONS = 4
"""In a sentence."""

_FORMATS = tuple(map(parse_format, ("fp32", "int8", "int4")))
_TENSORRT_FORMATS = tuple(map(parse_format, ("fp16", "int4-g32", "int4-g64", "int4-g128")))
"""That remedies name, where they help."""


def block_obstacles(candidates: Sequence[Candidate], parent: Model, engine: Engine) -> list[str]:
    """What keeps an engine from loading a layer of the parent with these candidates in place."""
    layer = candidates[0].layer
    block: Block = replace(parent.layers[layer], **{each.part: each.variant for each in candidates})
    model = replace(parent, layers=(*parent.layers[:layer], block, *parent.layers[layer + 1 :]))
    return layer_obstacles(model, layer, engine)


def left_out(offered: Iterable[Candidate], parent: Model, engines: Sequence[Engine]) -> dict[Candidate, list[str]]:
    """The candidates that not all of these engines load beside any other of their layer, with the reasons."""
    by_part: dict[tuple[int, Part], list[Candidate]] = {}
    for candidate in offered:
        by_part.setdefault((candidate.layer, candidate.part), []).append(candidate)
    found: dict[Candidate, list[str]] = {}
    for (layer, part), candidates in by_part.items():
        others = by_part.get((layer, _other(part)), [])
        for candidate in candidates:
            if not any(_is_loaded(candidate, other, parent, engines) for other in others):
                found[candidate] = _reasons(candidate, others, parent, engines)
    return found


def left_out_words(offered: Sequence[Candidate], parent: Model, engines: Sequence[Engine]) -> list[str]:
    """A sentence on what is left out; none where nothing is."""
    found = left_out(offered, parent, engines)
    if not found:
        return []
    counts = Counter(reason for reasons in found.values() for reason in reasons)
    told = _first([f"{reason} ({number})" for reason, number in counts.most_common()])
    names = ", ".join(engines)
    return [f"--servable-by {names} leaves out {len(found)} of the {len(offered)} candidates offered: {told}."]


def check_something_left(
    emptied: Sequence[tuple[int, Part]], offered: Sequence[Candidate], parent: Model, engines: Sequence[Engine]
) -> None:
    """Refuses parts of layers of which the engines load nothing that was offered.

    Args:
        emptied: layers and parts that have nothing but no-ops left; maybe for what the user has forbidden.
        offered: the candidates before any rule.
        parent: the parent.
        engines: that must load the child.

    Raises:
        InputError: there are such; it names them, the reasons, and what formats would do.
    """
    layers = {layer for layer, _ in emptied}
    here = [candidate for candidate in offered if candidate.layer in layers]
    lost = left_out(here, parent, engines)
    real = {
        place: [c for c in here if (c.layer, c.part) == place and not isinstance(c.variant, NoOp)] for place in emptied
    }
    real = {place: some for place, some in real.items() if all(candidate in lost for candidate in some)}
    if not real:
        return
    reasons = list(dict.fromkeys(reason for some in real.values() for c in some for reason in lost[c]))
    parts: list[Part] = [part for part in get_args(Part) if any(its == part for _, its in real)]
    words = [f"the {part}s of {_layers_words([at for at, its in real if its == part], parent)}" for part in parts]
    helpful = remedy_of_formats(list(real.values()), here, parent, engines)
    raise InputError(
        f"--servable-by {', '.join(engines)}",
        got=f"nothing but no-ops left of {' and of '.join(words)}: {_first(reasons)}",
        expected="a candidate that can be loaded, where any are offered",
        remedy=(helpful or "Offer candidates in the space that can be loaded.")
        + " To remove them all the same, force it: "
        + " ".join(f"--force '*-{part}-none'" for part in parts)
        + ".",
    )


def remedy_of_formats(
    groups: Sequence[Sequence[Candidate]], offered: Sequence[Candidate], parent: Model, engines: Sequence[Engine]
) -> str:
    """Which formats would let each group be loaded whole, else in part, as a remedy; empty where none would."""
    is_tensorrt = "tensorrt" in engines
    loaded = {
        weights: [[_is_loaded_in(weights, c, offered, parent, engines) for c in group] for group in groups]
        for weights in (_TENSORRT_FORMATS if is_tensorrt else _FORMATS)
    }
    formats = [weights for weights, found in loaded.items() if all(map(all, found))]
    formats = formats or [weights for weights, found in loaded.items() if all(map(any, found))]
    if not formats:
        return ""
    flags = " or ".join(f"--format {weights}" for weights in formats)
    return f"Search with {flags}{', and with --backend tensorrt' * is_tensorrt}."


def _is_loaded_in(
    weights: Format, candidate: Candidate, offered: Sequence[Candidate], parent: Model, engines: Sequence[Engine]
) -> bool:
    others = [c for c in offered if c.layer == candidate.layer and c.part == _other(candidate.part)]
    own = _in(weights, candidate)
    return any(_is_loaded(own, _in(weights, other), parent, engines) for other in others)


def _in(weights: Format, candidate: Candidate) -> Candidate:
    return replace(candidate, variant=stored_as(candidate.variant, weights))


def _is_loaded(first: Candidate, second: Candidate, parent: Model, engines: Sequence[Engine]) -> bool:
    return not any(block_obstacles((first, second), parent, engine) for engine in engines)


def _reasons(candidate: Candidate, others: Sequence[Candidate], parent: Model, engines: Sequence[Engine]) -> list[str]:
    """Those that stand in its way beside anything, and beside nothing; where none does, all."""
    nothing = Candidate(layer=candidate.layer, part=_other(candidate.part), variant=NoOp())
    each = [
        [reason for engine in engines for reason in block_obstacles((candidate, other), parent, engine)]
        for other in (nothing, *others)
    ]
    common = [reason for reason in each[0] if all(reason in reasons for reasons in each)]
    return list(dict.fromkeys(common or [reason for reasons in each for reason in reasons]))


def _other(part: Part) -> Part:
    return "ffn" if part == "mixer" else "mixer"


def _first(reasons: Sequence[str]) -> str:
    more = len(reasons) - _MOST_REASONS
    return "; ".join(reasons[:_MOST_REASONS]) + (f"; and {more} more" if more > 0 else "")


def _layers_words(layers: Sequence[int], parent: Model) -> str:
    if len(layers) == len(parent.layers):
        return "all layers"
    return ("layers " if len(layers) > 1 else "layer ") + ", ".join(map(str, layers))
