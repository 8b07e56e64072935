"""From pieces of the catalogue's files to shards of `items`, in independent passes; no process holds the catalogue.

`CleanItems` writes the cleaned rows of a piece to the drafts. `number_catalogue` numbers items by their ids, the only
column that one process, a worker, holds for all items. `PartitionItems` then orders each piece's rows by shard of
item_index, `MergeItems` merges the parts of a shard, and `WriteItems` writes it once interactions are counted. Drafts
are Arrow IPC files. The module `items` knows what a row means.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import find_manifest, read_manifest, read_rows, read_table, shard_name, write_shard
from allmrec.core.columns import take
from allmrec.core.drafts import read_draft, write_draft
from allmrec.core.mapped_columns import MappedColumns
from allmrec.core.shard_tasks import Report, ShardTask
from allmrec.core.storage import Storage
from allmrec.data.catalogue import ITEMS_PER_SHARD, StoredCounts
from allmrec.data.prepare.histories import count_values
from allmrec.data.prepare.item_ids import ItemIds, ItemLookup
from allmrec.data.prepare.items import CLEANED, clean_items, merge_items, number_items, with_counts
from allmrec.data.sources.source import Source
from schemas import items, rejected

NARROW = ["item_id", "reason"]  # columns of cleaned rows that numbering reads
_PARTS = CLEANED.append(pa.field("item_index", pa.int32()))  # 0 in rejected rows


@dataclass(frozen=True)
class CleanItems(ShardTask):
    """Numbers of pieces of the catalogue → their cleaned rows, in the drafts; counts `rows` and rejected ones."""

    source: Source
    drafts: Storage

    def process(self, piece: int) -> Report:
        part, config = self.source.pieces[piece], self.source.config
        place = self.source.place(part)
        cleaned = (clean_items(table, config, place) for table in self.source.read(part))
        rows = pa.concat_tables([CLEANED.empty_table(), *cleaned])
        write_draft(self.drafts, f"cleaned-{piece}", CLEANED, rows.to_batches())
        narrow = rows.select(NARROW)
        write_draft(self.drafts, f"narrow-{piece}", narrow.schema, narrow.to_batches())
        return Report(counts=Counter(rows=len(rows)), rejected=count_values(rows.column("reason").drop_null()))


@dataclass(frozen=True)
class NumberedItems:
    """The items of a catalogue whose cleaned rows are drafts, n of them; arrays by item are drafts, too."""

    ids: ItemIds
    known: int  # of them, the first ones, had their numbers before
    gone: int  # how many have left the catalogue
    repeated: int  # rows of an item that has one already
    row_before: MappedColumns | None  # `row`, int32 (n,): of items that are gone in the existing `items`; else -1

    def rows_before(self, items: slice) -> np.ndarray:
        """Of some items, by item_index - 1: ascending, of those that are gone."""
        assert self.row_before is not None, "asked for where some are gone"
        rows = self.row_before.read().column("row").to_numpy()[items]
        return np.sort(rows[rows >= 0])


def number_catalogue(drafts: Storage, files: Sequence[str], known: pa.Array, existing: Storage) -> NumberedItems:
    """Number the items of cleaned rows; each row's item_index, 0 of rejected ones, is written to the drafts.

    Args:
        files: of each piece.
        known: see `number_items`.
        existing: the `items` of the preparation before, if any.
    """
    tables = [read_draft(drafts, f"narrow-{piece}") for piece in range(len(files))]
    piece_R = np.repeat(np.arange(len(files), dtype=np.int32), [len(table) for table in tables])
    rows = pa.concat_tables(tables)
    good_R = pc.is_null(rows.column("reason")).to_numpy()
    ids = rows.column("item_id").filter(pa.array(good_R))
    del tables, rows
    file_P = np.unique(files, return_inverse=True)[1].astype(np.int32)
    item_ids = number_items(ids, file_P[piece_R[good_R]], known)
    lookup = ItemLookup.of(item_ids)
    index, index_R = lookup.find(ids), np.zeros(len(piece_R), dtype=np.int32)
    assert not index.null_count, "two items have the same hash"
    index_R[good_R] = index.to_numpy()
    for piece, index_P in enumerate(np.split(index_R, np.searchsorted(piece_R, np.arange(1, len(files))))):
        table = pa.table({"item_index": index_P})
        write_draft(drafts, f"index-{piece}", table.schema, table.to_batches())
    counts = np.bincount(index_R, minlength=len(item_ids) + 1)[1:]
    repeated = int((counts - 1).clip(min=0).sum())
    before = _rows_before(drafts, item_ids, counts > 0, existing)
    return NumberedItems(ItemIds.write(drafts, lookup), len(known), int((counts == 0).sum()), repeated, before)


def _rows_before(drafts: Storage, item_ids: pa.Array, listed: np.ndarray, existing: Storage) -> MappedColumns | None:
    if listed.all() or find_manifest(existing) is None:
        return None
    known = read_table(existing, columns=["item_id"]).column("item_id")
    row = np.full(len(item_ids), -1, dtype=np.int32)
    row[~listed] = pc.fill_null(pc.index_in(item_ids.filter(pa.array(~listed)), value_set=known), -1).to_numpy()
    return MappedColumns.write(drafts, "rows-before.arrow", pa.table({"row": row}))


@dataclass(frozen=True)
class PartitionItems(ShardTask):
    """Numbers of pieces → their rows in the drafts, one record batch per shard of item_index."""

    drafts: Storage
    num_shards: int

    def process(self, piece: int) -> Report:
        index_R = read_draft(self.drafts, f"index-{piece}").column("item_index").to_numpy()
        shard_R = np.where(index_R > 0, (index_R - 1) // ITEMS_PER_SHARD, piece % self.num_shards)
        rows = read_draft(self.drafts, f"cleaned-{piece}").append_column("item_index", pa.array(index_R, pa.int32()))
        rows, bounds = rows.combine_chunks(), np.cumsum(np.bincount(shard_R, minlength=self.num_shards))
        parts = np.split(np.argsort(shard_R, kind="stable"), bounds[:-1])
        write_draft(self.drafts, f"parts-{piece}", _PARTS, (_batch(rows, part) for part in parts))
        return Report()


@dataclass(frozen=True)
class MergeItems(ShardTask):
    """Shard numbers → the shards' items without interactions, in the drafts, and their files of rejected rows."""

    drafts: Storage
    pieces: int  # in the drafts
    numbered: NumberedItems
    excluded: Sequence[str]
    existing: Storage  # the `items` of the previous preparation
    rejected: Storage

    def process(self, shard: int) -> Report:
        first = shard * ITEMS_PER_SHARD
        here = slice(first, first + ITEMS_PER_SHARD)
        rows, before = pa.concat_tables(self._parts(shard)), None
        if self.numbered.row_before is not None:
            before = read_rows(self.existing, read_manifest(self.existing), self.numbered.rows_before(here))
        table, bad = merge_items(rows, self.numbered.ids.read()[here], first + 1, self.excluded, before)
        write_draft(self.drafts, f"items-{shard}", items.SCHEMA, table.to_batches())
        name = "items.parquet" if shard == 0 else f"items-{shard:05d}.parquet"
        return Report(files={name: write_shard(self.rejected, rejected.SCHEMA, name, bad)})

    def _parts(self, shard: int) -> Iterator[pa.Table]:
        for piece in range(self.pieces):
            yield read_draft(self.drafts, f"parts-{piece}", shard)


@dataclass(frozen=True)
class WriteItems(ShardTask):
    """Shard numbers → shards of `items`."""

    drafts: Storage
    items: Storage
    counts: StoredCounts

    def process(self, shard: int) -> Report:
        counts = self.counts.read()
        table = with_counts(read_draft(self.drafts, f"items-{shard}"), counts.popularity, counts.interactions)
        name = shard_name(shard)
        return Report(files={name: write_shard(self.items, items.SCHEMA, name, table)})


def num_item_shards(num_items: int) -> int:
    return max(1, -(-num_items // ITEMS_PER_SHARD))


def _batch(table: pa.Table, rows: np.ndarray) -> pa.RecordBatch:
    """Some rows of a table, perhaps none, as one batch."""
    columns = [take(column, rows).combine_chunks() for column in table.columns]
    return pa.record_batch(
        [pa.array([], column.type) if not len(column) else column for column in columns], table.schema
    )
