"""Partition the catalogue into shards of `items`, in passes over its pieces and over shards; see `item_shards`.

The driver holds the items' ids and indices, and none of their texts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import Manifest, find_manifest, read_table
from allmrec.core.storage import Storage
from allmrec.data.catalogue import ItemCounts
from allmrec.data.prepare.clean import ItemLookup
from allmrec.data.prepare.histories import count_values
from allmrec.data.prepare.item_shards import NARROW, CleanItems, MergeItems, PartitionItems, WriteItems, num_item_shards
from allmrec.data.prepare.items import number_items
from allmrec.data.sources.source import Source
from jobs.runtime.ray_data import gather_reports, iter_results, map_tasks
from jobs.runtime.step import Context
from schemas import rejected


@dataclass(frozen=True)
class NumberedItems:
    """The items of a catalogue whose cleaned rows are drafts."""

    item_ids: pa.Array  # string (n,), by item_index - 1
    listed: np.ndarray  # bool (n,): the catalogue has it
    rejected: Counter[str]  # rows, by reason
    index: dict[int, np.ndarray]  # by piece, for `PartitionItems`

    @property
    def gone(self) -> int:
        """Number of items that have left the catalogue."""
        return int(len(self.listed) - self.listed.sum())


def number_catalogue(catalogue: Source, drafts: Storage, known: pa.Array) -> NumberedItems:
    """Clean the catalogue into the drafts and number its items.

    Args:
        known: see `number_items`.

    Raises:
        ValueError: no row is left.
    """
    tables = iter_results(map_tasks(len(catalogue.pieces), CleanItems(catalogue, drafts)))
    found = pa.concat_tables([NARROW.empty_table(), *tables])
    bad, piece_R = count_values(found.column("reason").drop_null()), found.column("piece").to_numpy()
    good = pc.is_null(found.column("reason"))
    ids, good_R = found.column("item_id").filter(good), good.to_numpy()
    del found
    if not len(ids):
        why = ", ".join(f"{reason} {rows:,}" for reason, rows in bad.most_common())
        raise ValueError(f"items: none of {bad.total():,} rows can be used ({why}); fix the catalogue or data.items")
    names = [catalogue.place(piece)["file"] for piece in catalogue.pieces]
    file_P = np.unique(names, return_inverse=True)[1].astype(np.int32)
    item_ids = number_items(ids, file_P[piece_R[good_R]], known)
    index, index_R = ItemLookup(item_ids).find(ids), np.zeros(len(piece_R), dtype=np.int32)
    assert not index.null_count, "two items have the same hash"
    index_R[good_R] = index.to_numpy()
    counts = np.bincount(index_R, minlength=len(item_ids) + 1)[1:]
    bad[rejected.DUPLICATE_ITEM] += int((counts - 1).clip(min=0).sum())
    ends_P = np.cumsum(np.bincount(piece_R, minlength=len(names)))
    by_piece = np.split(index_R[np.argsort(piece_R, kind="stable")], ends_P[:-1])
    return NumberedItems(item_ids, counts > 0, Counter(dict(sorted((+bad).items()))), dict(enumerate(by_piece)))


def merge_catalogue(
    context: Context, items: NumberedItems, drafts: Storage, excluded: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Make shards of items in the drafts; returns the entries of the files of `rejected` that this writes."""
    shards, before = num_item_shards(len(items.item_ids)), _before(context, items)
    partition = PartitionItems(drafts, items.index, shards)
    gather_reports(context.console, "partition items", len(items.index), partition)
    merge = MergeItems(drafts, len(items.index), items.item_ids, excluded, *before, context.workspace.rejected)
    return gather_reports(context.console, "merge items", shards, merge)[1].files


def write_catalogue(context: Context, drafts: Storage, counts: ItemCounts) -> dict[str, dict[str, Any]]:
    """Write the shards of `items`; returns their entries."""
    shards = num_item_shards(len(counts.popularity) - 1)
    write = WriteItems(drafts, context.workspace.items, counts)
    return gather_reports(context.console, "write items", shards, write)[1].files


def _before(context: Context, items: NumberedItems) -> tuple[tuple[Storage, Manifest] | None, np.ndarray]:
    """The existing `items`, and in them the row of each item that has left the catalogue: int32 (n,); else -1."""
    storage, row = context.workspace.items, np.full(len(items.listed), -1, dtype=np.int32)
    manifest = find_manifest(storage) if items.gone else None
    if manifest is None:
        return None, row
    ids = items.item_ids.filter(pa.array(~items.listed))
    known = read_table(storage, columns=["item_id"]).column("item_id")
    row[~items.listed] = pc.fill_null(pc.index_in(ids, value_set=known), -1).to_numpy()
    return (storage, manifest), row
