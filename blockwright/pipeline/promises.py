"""Refuses to hold a plan's promises against what they were not made of."""

from blockwright.errors import InputError
from blockwright.search.plan import Plan
from blockwright.spec import Model


def check_is_of_engine(plan: Plan, weights: str, target: str) -> None:
    """Refuses an engine that a plan says nothing of.

    Args:
        plan: the child's.
        weights: the engine's format.
        target: who runs it.

    Raises:
        InputError: the plan is about another format or runtime.
    """
    if (plan.format, plan.backend) != (weights, target):
        raise InputError(
            "plan: format and backend",
            got=f"{plan.format} on {plan.backend}",
            expected=f"the engine's, {weights} on {target}",
            remedy="Compile the child as the plan says, with --plan, or search again for this one.",
        )


def check_has_tables(stored: Model, promised: Model) -> None:
    """Refuses an engine whose embedding or head is stored otherwise than a plan's promises are about.

    Args:
        stored: the engine's.
        promised: as the promises are about them.

    Raises:
        InputError: they differ.
    """
    found, expected = _tables(stored), _tables(promised)
    if found != expected:
        raise InputError(
            "engine: head and embedding",
            got=found,
            expected=f"{expected}, as the plan's promises are about them",
            remedy="Measure it without --plan, or compile without --head and --embedding.",
        )


def _tables(model: Model) -> str:
    return f"{model.head_format} and {model.embedding_weights}"


def check_is_of_device(plan: Plan, here: str | None, device: str) -> None:
    """Refuses a device that a plan was not made for.

    Args:
        plan: the child's.
        here: the device's name, as profiles have it; None where there is none.
        device: what is meant by it: a machine, or its GPU.

    Raises:
        InputError: the plan rests on another one's profile.
    """
    if plan.profile != here:
        raise InputError(
            "plan: profile",
            got=plan.profile,
            expected=f"this {device}'s, {here or 'which is not there'}",
            remedy=f"Measure on the {device} that the plan was made for, or profile this one and search again.",
        )
