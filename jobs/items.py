"""Partition the catalogue into shards of `items`, in passes over its pieces and over shards; see `item_shards`.

The driver holds nothing by item: workers number the items, and what is known of each is in drafts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from allmrec.core.storage import Storage
from allmrec.data.catalogue import StoredCounts
from allmrec.data.prepare.incremental import HistoriesPlan, LogItems
from allmrec.data.prepare.item_shards import (
    CleanItems,
    MergeItems,
    NumberedItems,
    PartitionItems,
    WriteItems,
    num_item_shards,
)
from allmrec.data.sources.source import Source
from jobs.runtime.ray_data import gather_reports, on_worker
from jobs.runtime.step import Context
from schemas import rejected


@dataclass(frozen=True)
class PreparedCatalogue:
    """The items of a catalogue, numbered."""

    numbered: NumberedItems
    log_items: LogItems
    pieces: int
    rejected: Counter[str]  # rows, by reason

    @property
    def num_items(self) -> int:
        return len(self.numbered.ids)

    @property
    def listed(self) -> int:
        """How many items the catalogue has; the others have left it."""
        return self.num_items - self.numbered.gone


def clean_catalogue(context: Context, catalogue: Source, plan: HistoriesPlan, drafts: Storage) -> PreparedCatalogue:
    """Clean the catalogue into the drafts and number its items, new ones after those that the histories know.

    Raises:
        ValueError: no row is left.
    """
    pieces, clean = len(catalogue.pieces), CleanItems(catalogue, drafts)
    _, cleaned = gather_reports(context.console, "clean items", pieces, clean)
    bad = cleaned.rejected
    if cleaned.counts["rows"] == bad.total():
        why = ", ".join(f"{reason} {rows:,}" for reason, rows in bad.most_common())
        raise ValueError(f"items: none of {bad.total():,} rows can be used ({why}); fix the catalogue or data.items")
    files = [catalogue.place(piece)["file"] for piece in catalogue.pieces]
    numbered, log_items = on_worker(plan.number, files, drafts, context.workspace.items)
    bad[rejected.DUPLICATE_ITEM] += numbered.repeated
    return PreparedCatalogue(numbered, log_items, pieces, Counter(dict(sorted((+bad).items()))))


def merge_catalogue(
    context: Context, catalogue: PreparedCatalogue, drafts: Storage, excluded: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Make shards of items in the drafts; returns the entries of the files of `rejected` that this writes."""
    shards, workspace = num_item_shards(catalogue.num_items), context.workspace
    gather_reports(context.console, "partition items", catalogue.pieces, PartitionItems(drafts, shards))
    merge = MergeItems(drafts, catalogue.pieces, catalogue.numbered, excluded, workspace.items, workspace.rejected)
    return gather_reports(context.console, "merge items", shards, merge)[1].files


def write_catalogue(
    context: Context, drafts: Storage, num_items: int, counts: StoredCounts
) -> dict[str, dict[str, Any]]:
    """Write the shards of `items`; returns their entries."""
    write = WriteItems(drafts, context.workspace.items, counts)
    return gather_reports(context.console, "write items", num_item_shards(num_items), write)[1].files
