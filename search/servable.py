"""A problem whose choices are exactly the children that some engines load.

What keeps an engine from loading a block, whatever the others are, leaves the block out. Where mixer and ffn of a layer
hang together in that, its groups become one of blocks. Formats that must not meet in one child are refused where both
stand to choice. What else hangs on other layers becomes limits, with a_i and f_i for whether layer i has attention and
an ffn:

    Σ_i a_i ≥ 1                                       attention somewhere              (1)
    Σ_{j ≤ i} a_j − f_i ≥ 0    for every layer i      no ffn before the first attention (2)
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from blockwright.errors import InputError
from blockwright.search.left_out import block_obstacles, check_something_left, remedy_of_formats
from blockwright.search.problem import Choice, Limit, Problem, merged
from blockwright.servable import ATTENTION_FIRST, NEED_ATTENTION, Engine, shape_obstacles
from blockwright.spec import Attention, Candidate, Model, NoOp, Part


def servable(problem: Problem, parent: Model, engines: Sequence[Engine], offered: Sequence[Candidate]) -> Problem:
    """The problem without the children that one of the engines cannot load.

    Args:
        problem: what stands to choice.
        parent: the parent.
        engines: that must load the child.
        offered: the candidates before any rule.

    Raises:
        InputError: an engine loads no child of the parent, no block that stands to choice in a layer, or nothing that
            is offered for a mixer or an ffn but a no-op.
    """
    engines = [engine for engine in engines if engine != "transformers"]
    if not engines:
        return problem
    for engine in engines:
        if obstacles := shape_obstacles(parent, engine):
            raise InputError(
                f"--servable-by {engine}",
                got="a parent no child of which it can load: " + "; ".join(obstacles),
                expected="an engine that loads children of this parent",
                remedy="Leave it out, or take another parent.",
            )
    if "tensorrt" in engines:
        _check_one_number(problem)
    groups: list[tuple[Choice, ...]] = []
    for layer, parts in itertools.groupby(problem.groups, key=lambda group: group[0].layer):
        groups += _loadable(replace(problem, groups=tuple(parts)), parent, layer, engines)
    _check_attention(problem, groups, parent, engines)
    left = _real_places(groups)
    emptied = [place for place in _real_places(problem.groups) if place not in left]
    if emptied:
        check_something_left(emptied, offered, parent, engines)
    problem = replace(problem, groups=tuple(groups))
    if needy := [engine for engine in engines if engine in NEED_ATTENTION]:
        problem = _with_attention(problem, needy)
    if strict := [engine for engine in engines if engine in ATTENTION_FIRST]:
        problem = _with_attention_first(problem, strict)
    return problem


def _loadable(problem: Problem, parent: Model, layer: int, engines: Sequence[Engine]) -> list[tuple[Choice, ...]]:
    """The layer's groups without what cannot be loaded; one of blocks where mixer and ffn hang together."""
    blocks = merged(problem).groups[0]
    good = [choice for choice in blocks if _is_loadable(choice, parent, engines)]
    if not good:
        groups = [[c for choice in group for c in choice.candidates] for group in problem.groups]
        here = [candidate for group in groups for candidate in group]
        raise InputError(
            f"--servable-by {', '.join(engines)}: layer {layer}",
            got="no block of this library that can be loaded: " + "; ".join(_reasons(blocks, parent, engines)),
            expected="one at least",
            remedy=remedy_of_formats(groups, here, parent, engines)
            or "Offer candidates in the space that it can load, or forbid and force others.",
        )
    left = {candidate for choice in good for candidate in choice.candidates}
    groups = [tuple(c for c in group if c.candidates[0] in left) for group in problem.groups]
    num_free = 1
    for group in groups:
        num_free *= len(group)
    return groups if num_free == len(good) else [tuple(good)]


def _is_loadable(choice: Choice, parent: Model, engines: Sequence[Engine]) -> bool:
    return not any(block_obstacles(choice.candidates, parent, engine) for engine in engines)


def _real_places(groups: Sequence[Sequence[Choice]]) -> dict[tuple[int, Part], None]:
    """The layers and parts that have more to choose than a no-op."""
    candidates = (candidate for group in groups for choice in group for candidate in choice.candidates)
    return {(c.layer, c.part): None for c in candidates if not isinstance(c.variant, NoOp)}


def _reasons(blocks: Sequence[Choice], parent: Model, engines: Sequence[Engine]) -> list[str]:
    """What keeps blocks from being loaded, each reason once."""
    found = (reason for c in blocks for engine in engines for reason in block_obstacles(c.candidates, parent, engine))
    return list(dict.fromkeys(found))


def _check_one_number(problem: Problem) -> None:
    """Refuses what could become a network of fp16 and bf16, which TensorRT does not build."""
    variants = (c.variant for group in problem.groups for choice in group for c in choice.candidates)
    names = {variant.weights.name for variant in variants if not isinstance(variant, NoOp)}
    if {"fp16", "bf16"} <= names:
        raise InputError(
            "--servable-by tensorrt",
            got="fp16 and bf16 to choose from",
            expected="one of them, for TensorRT computes a network in one",
            remedy="Search with --backend tensorrt and --format fp16, or --format bf16, and int4 beside it.",
        )


def _check_attention(
    problem: Problem, left: Sequence[tuple[Choice, ...]], parent: Model, engines: Sequence[Engine]
) -> None:
    """Refuses, with the reasons, where no block with attention is left of a problem and an engine needs one."""
    needy = [engine for engine in engines if engine in NEED_ATTENTION]
    if not needy or any(_has_attention(choice) for group in left for choice in group):
        return
    blocks = [choice for group in merged(problem).groups for choice in group if _has_attention(choice)]
    reasons = _reasons(blocks, parent, engines) or ["the rules leave none"]
    mixers = [c for choice in blocks for c in choice.candidates if c.part == "mixer"]
    offered = [c for group in problem.groups for choice in group for c in choice.candidates]
    helpful = remedy_of_formats([mixers], offered, parent, engines) if mixers else ""
    raise InputError(
        f"--servable-by {', '.join(needy)}",
        got="no block with attention that can be loaded: " + "; ".join(reasons),
        expected="attention in one layer at least, which these engines need",
        remedy=helpful or "Offer candidates in the space that they can load, or leave out a rule.",
    )


def _with_attention(problem: Problem, engines: Sequence[str]) -> Problem:
    """Limit (1)."""
    text = f"servable by {', '.join(engines)}: attention somewhere"
    somewhere = Limit(text=text, fixed=0.0, limit=1.0, is_least=True, is_rule=True)
    groups = tuple(
        tuple(replace(choice, costs=(*choice.costs, float(_has_attention(choice)))) for choice in group)
        for group in problem.groups
    )
    return replace(problem, groups=groups, limits=(*problem.limits, somewhere))


def _with_attention_first(problem: Problem, engines: Sequence[str]) -> Problem:
    """Limits (2), but for layers before which, or in which, there is attention whatever is chosen."""
    layers: list[int] = []
    for layer, parts in itertools.groupby(problem.groups, key=lambda group: group[0].layer):
        groups = list(parts)
        if any(all(map(_has_attention, group)) for group in groups):
            break
        if any(_has_ffn(choice) for group in groups for choice in group):
            layers.append(layer)
    limits = tuple(
        Limit(
            text=f"servable by {', '.join(engines)}: attention up to layer {layer} if it has an ffn",
            fixed=0.0,
            limit=0.0,
            is_least=True,
            is_rule=True,
        )
        for layer in layers
    )
    groups = tuple(
        tuple(replace(choice, costs=(*choice.costs, *_turns(choice, layers))) for choice in group)
        for group in problem.groups
    )
    return replace(problem, groups=groups, limits=(*problem.limits, *limits))


def _turns(choice: Choice, layers: Sequence[int]) -> list[float]:
    """What a choice adds to the left side of (2) for each of the layers."""
    return [
        float(_has_attention(choice) and choice.layer <= layer) - float(_has_ffn(choice) and choice.layer == layer)
        for layer in layers
    ]


def _has_attention(choice: Choice) -> bool:
    return any(isinstance(candidate.variant, Attention) for candidate in choice.candidates)


def _has_ffn(choice: Choice) -> bool:
    return any(c.part == "ffn" and not isinstance(c.variant, NoOp) for c in choice.candidates)
