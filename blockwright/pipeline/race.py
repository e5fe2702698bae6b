"""A race: more text for the candidates that the plan still hangs on only."""

from collections.abc import Collection, Mapping
from typing import Any

from blockwright.files import digest_of
from blockwright.hw_profiles.profile import Profile
from blockwright.pipeline.rounds import Undecided
from blockwright.pipeline.search import SearchOrder, full_order
from blockwright.search.racing import undecided
from blockwright.search.scores import ScoreTable
from blockwright.spec import Candidate
from blockwright.strict import to_data


def race_for(order: SearchOrder, devices: Mapping[str, Profile]) -> tuple[dict[str, Any], Undecided]:
    """What decides a race for a plan: as plain data for the stage's key, and as the function that chooses who goes on.

    Raises:
        InputError: a budget or a format is none.
    """
    asked = full_order(order, devices)

    def choose(table: ScoreTable) -> Collection[Candidate]:
        return undecided(table, asked)

    profiles = {name: digest_of(to_data(profile)) for name, profile in devices.items()}
    return {"search": to_data(order), "profiles": profiles}, choose
