"""What was measured of a finished child: its costs, its quality and its writing, beside its parent's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blockwright.cost import Cost, Load, Quantity
from blockwright.files import read_json, write_json
from blockwright.statistics import Estimate
from blockwright.strict import from_data, to_data

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A child beside its parent; every figure with its 95 % bootstrap interval over documents."""

    kl: Estimate
    """KL(parent ‖ child) in nats per token."""
    bits_per_byte: Estimate
    parent_bits_per_byte: Estimate
    bits_per_byte_ratio: Estimate
    """The child's over the parent's: 1 is as good."""
    agreement: Estimate
    """Share of positions where both hold the same token for the likeliest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCost:
    """One quantity at one load, in one weight format, of both engines measured in turn."""

    format: str
    quantity: Quantity
    load: str
    parent: Cost
    child: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """How both go on with a prompt."""

    prompt: str
    parent: str
    child: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All that was measured at the end of a run."""

    schema_version: Literal[1]
    device: str
    software: dict[str, str]
    created: str
    """Date and time in UTC, ISO 8601."""
    loads: dict[str, Load]
    costs: tuple[MeasuredCost, ...]
    realised: Quality
    """Of the child before distillation."""
    distilled: Quality
    held_out_tokens: int
    samples: tuple[Sample, ...]

    def cost(self, weights_format: str, quantity: Quantity, load: str) -> MeasuredCost:
        """The costs of one quantity at one load in one format.

        Raises:
            KeyError: it was not measured.
        """
        for cost in self.costs:
            if (cost.format, cost.quantity, cost.load) == (weights_format, quantity, load):
                return cost
        raise KeyError((weights_format, quantity, load))


def write_measured(measured: Measured, path: Path) -> None:
    """Writes the measurements, whole or not at all."""
    write_json(path, to_data(measured))


def read_measured(path: Path) -> Measured:
    """Reads measurements.

    Raises:
        InputError: there are none, or the file is broken.
    """
    return from_data(Measured, read_json(path), str(path))
