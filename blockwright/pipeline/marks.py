"""Rows of a profile that are not to be relied on: written beside it, and shown with it."""

from dataclasses import replace
from pathlib import Path

from blockwright.hw_profiles.folder import write_profile
from blockwright.hw_profiles.profile import Profile
from blockwright.pipeline.console import say
from blockwright.profiler.agree import odd_rows
from blockwright.profiler.check import too_fast

_MOST_SHOWN = 10


def marks_of(profile: Profile) -> tuple[str, ...]:
    """What was marked when the profile was written, and now that it is read what is faster than its ceilings allow, or
    contradicted by all other rows."""
    found = map(str, (*too_fast(profile), *odd_rows(profile)))
    return tuple(dict.fromkeys([*profile.coverage.marked, *found]))


def write_marked(profile: Profile, folder: Path) -> Profile:
    """Writes a profile with its marks, and says which there are: a measurement is not thrown away for its mark.

    Returns:
        The profile as it was written.
    """
    marked = replace(profile, coverage=replace(profile.coverage, marked=marks_of(profile)))
    write_profile(marked, folder)
    for line in mark_lines(marked.coverage.marked):
        say(line)
    return marked


def mark_lines(marks: tuple[str, ...]) -> list[str]:
    """Marks for people, the first few in full; nothing where there are none."""
    if not marks:
        return []
    rest = len(marks) - _MOST_SHOWN
    more = [f"  and {rest} more"] if rest > 0 else []
    return [f"marked, not to be relied on: {len(marks)} rows", *(f"  {each}" for each in marks[:_MOST_SHOWN]), *more]
