"""What is known of the lists that a run is given: how many ids each names, knows, and was applied to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allmrec.data.sources.lists import refuse_unknown


@dataclass(frozen=True)
class ListCount:
    name: str  # its key in the config
    of: str  # users or items
    listed: int
    known: int
    least: float  # min_known_fraction

    @property
    def stats(self) -> dict[str, Any]:
        return {"list": self.name, "of": self.of, "listed": self.listed, "known": self.known}


def check_lists(counts: Sequence[ListCount]) -> None:
    """Raises ValueError for the first list of which too little is known."""
    for count in counts:
        refuse_unknown(count.name, count.listed, count.known, count.least, count.of)


def applied(counts: Sequence[ListCount], figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lists as the report has them; `applied` is null where a list takes nothing out and asks for no users.

    Args:
        figures: of the report.
    """
    filtered_out = figures["items_left_out"]
    by_key = {
        "nightly.users": figures["users"],  # rows
        "nightly.suppressed_users": figures["suppressed_users"],  # who would have had a row
        "nightly.blocked_items": filtered_out["blocked"],  # that are left out for no other reason before
        "nightly.suppressed_items": filtered_out["suppressed"],
    }
    return [{**count.stats, "applied": by_key.get(count.name)} for count in counts]
