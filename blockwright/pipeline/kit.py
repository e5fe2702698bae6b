"""Kits: what is to be measured on a device without torch, packed here and measured there."""

from collections.abc import Sequence
from pathlib import Path

from blockwright.cost import Load
from blockwright.hw_profiles.profile import Profile
from blockwright.pipeline.console import progress, say
from blockwright.pipeline.lock import at_work
from blockwright.pipeline.marks import write_marked
from blockwright.pipeline.stage import check_is_ours
from blockwright.profiler.kit import KitOrder, write_kit
from blockwright.profiler.kit_results import read_kit_results
from blockwright.search.space import SpaceSettings, candidates
from blockwright.spec import FFN, Mixer, Model, parse_format
from blockwright.units import format_bytes


def pack(parent: Model, space: SpaceSettings, loads: Sequence[Load], formats: Sequence[str], output: Path) -> None:
    """Writes the kit for a parent's blocks.

    Raises:
        InputError: the parent is too large to be measured as one graph.
    """
    mixers, ffns = offered(parent, space)
    order = KitOrder(
        parent=parent,
        mixers=mixers,
        ffns=ffns,
        formats=tuple(parse_format(text) for text in formats),
        loads=tuple(loads),
    )
    with progress("pack", len(order.cases())) as advance:
        num_cases = write_kit(order, output, advance)
    say(f"{output}: {num_cases} cases, {format_bytes(output.stat().st_size)}. On the device:")
    say(f"  unzip {output.name} -d kit && cd kit && python run.py")
    say("Bring its folder results/ back, then: blockwright profile import results/")


def take_in(results: Path, output: Path | None) -> Profile:
    """Writes the profile of the device that a kit was run on, with marks on what cannot be.

    Args:
        results: the folder that the runner made.
        output: the profile's folder; None for `folder_of_imported`.

    Raises:
        InputError: the results are incomplete or damaged, or somebody is at work on the profile.
    """
    profile = read_kit_results(results)
    folder = folder_of_imported(profile) if output is None else output
    check_is_ours(folder, "profile", folder.parent)
    with at_work(folder.parent, f"import-{folder.name}", folder, [results]):
        return write_marked(profile, folder)


def folder_of_imported(profile: Profile) -> Path:
    """Where a profile goes that was taken in: never where this machine's own does."""
    return Path(f"profile-{profile.name}")


def offered(parent: Model, space: SpaceSettings) -> tuple[tuple[Mixer, ...], tuple[FFN, ...]]:
    """The mixers and the ffns that a space offers, each once."""
    found = candidates(parent, space)
    mixers = dict.fromkeys(c.variant for c in found if isinstance(c.variant, Mixer) and c.part == "mixer")
    ffns = dict.fromkeys(c.variant for c in found if isinstance(c.variant, FFN) and c.part == "ffn")
    return tuple(mixers), tuple(ffns)
