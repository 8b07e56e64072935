"""From pieces of the catalogue's files to shards of `items`, in independent passes; no process holds the catalogue.

`CleanItems` writes the cleaned rows of a piece to the drafts. Items are numbered by their ids, the only column that one
process holds for all items. `PartitionItems` then orders each piece's rows by shard of item_index, `MergeItems` merges
the parts of a shard, and `WriteItems` writes it once interactions are counted. Drafts are Arrow IPC files. The module
`items` knows what a row means.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from allmrec.core.artifacts import Manifest, read_rows, shard_name, write_shard
from allmrec.core.columns import take
from allmrec.core.shard_tasks import Report, ShardTask, Task
from allmrec.core.storage import Storage
from allmrec.data.catalogue import ITEMS_PER_SHARD, ItemCounts
from allmrec.data.prepare.items import CLEANED, clean_items, merge_items, with_counts
from allmrec.data.sources.source import Source
from schemas import items, rejected

NARROW = pa.schema([("piece", pa.int32()), ("item_id", pa.string()), ("reason", pa.string())])
_PARTS = CLEANED.append(pa.field("item_index", pa.int32()))  # 0 in rejected rows


@dataclass(frozen=True)
class CleanItems(Task):
    """Numbers of pieces of the catalogue → their cleaned rows, in the drafts, and NARROW ones in the same order."""

    source: Source
    drafts: Storage

    def tables(self, number: int) -> Iterator[pa.Table]:
        piece, config = self.source.pieces[number], self.source.config
        place = self.source.place(piece)
        cleaned = (clean_items(table, config, place) for table in self.source.read(piece))
        rows = pa.concat_tables([CLEANED.empty_table(), *cleaned])
        _write(self.drafts, f"cleaned-{number}", CLEANED, rows.to_batches())
        pieces = pa.array(np.full(len(rows), number, np.int32))
        yield pa.table([pieces, rows.column("item_id"), rows.column("reason")], schema=NARROW)


@dataclass(frozen=True)
class PartitionItems(ShardTask):
    """Numbers of pieces → their rows in the drafts, one record batch per shard of item_index."""

    drafts: Storage
    index: dict[int, np.ndarray]  # by piece: int32, item_index of its rows; 0 of rejected ones
    num_shards: int

    def process(self, piece: int) -> Report:
        index_R = self.index[piece]
        shard_R = np.where(index_R > 0, (index_R - 1) // ITEMS_PER_SHARD, piece % self.num_shards)
        rows = _read(self.drafts, f"cleaned-{piece}").append_column("item_index", pa.array(index_R, pa.int32()))
        rows, bounds = rows.combine_chunks(), np.cumsum(np.bincount(shard_R, minlength=self.num_shards))
        parts = np.split(np.argsort(shard_R, kind="stable"), bounds[:-1])
        _write(self.drafts, f"parts-{piece}", _PARTS, (_batch(rows, part) for part in parts))
        return Report()


@dataclass(frozen=True)
class MergeItems(ShardTask):
    """Shard numbers → the shards' items without interactions, in the drafts, and their files of rejected rows."""

    drafts: Storage
    pieces: int  # in the drafts
    item_ids: pa.Array  # string (n,), by item_index - 1
    excluded: Sequence[str]
    before: tuple[Storage, Manifest] | None  # the `items` of the previous preparation
    before_row: np.ndarray  # int32 (n,): its row there, for items that have left the catalogue; else -1
    rejected: Storage

    def process(self, shard: int) -> Report:
        first = shard * ITEMS_PER_SHARD
        here = slice(first, first + ITEMS_PER_SHARD)
        rows, before = pa.concat_tables(self._parts(shard)), None
        if self.before is not None:
            before = read_rows(*self.before, np.sort(self.before_row[here][self.before_row[here] >= 0]))
        table, bad = merge_items(rows, self.item_ids[here], first + 1, self.excluded, before)
        _write(self.drafts, f"items-{shard}", items.SCHEMA, table.to_batches())
        name = "items.parquet" if shard == 0 else f"items-{shard:05d}.parquet"
        return Report(files={name: write_shard(self.rejected, rejected.SCHEMA, name, bad)})

    def _parts(self, shard: int) -> Iterator[pa.Table]:
        for piece in range(self.pieces):
            yield _read(self.drafts, f"parts-{piece}", shard)


@dataclass(frozen=True)
class WriteItems(ShardTask):
    """Shard numbers → shards of `items`."""

    drafts: Storage
    items: Storage
    counts: ItemCounts

    def process(self, shard: int) -> Report:
        table = with_counts(_read(self.drafts, f"items-{shard}"), self.counts.popularity, self.counts.interactions)
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


def _write(drafts: Storage, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        for batch in batches:
            writer.write_batch(batch)
    drafts.write(name, buffer.getvalue())


def _read(drafts: Storage, name: str, batch: int | None = None) -> pa.Table:
    """A file of the drafts, or one of its record batches."""
    filesystem, root = drafts.arrow()
    with filesystem.open_input_file(f"{root}/{name}") as file:
        reader = pa.ipc.open_file(file)
        return reader.read_all() if batch is None else pa.Table.from_batches([reader.get_batch(batch)])
