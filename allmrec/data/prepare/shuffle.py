"""From pieces of the log to shards of users: every piece leaves one file, of which every shard reads its part.

A file is an Arrow IPC file with one record batch of one row a shard: its events, its rejected rows and the counts of
what was filtered out. It is written once and read by range: no process holds a shard's rows while others still read,
nor more than a piece or a shard at once. What a row means is the business of `clean`; what is made of a shard's rows
that of `histories`.
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from allmrec.core.shard_tasks import Report, ShardTask
from allmrec.core.storage import Storage
from allmrec.data.prepare.clean import EVENTS, REJECTIONS, Cleaned, CleanInteractions, to_arrow, to_polars
from allmrec.data.prepare.exclusions import EXCLUDED, Exclusions

_TABLES = {"events": EVENTS, "rejections": REJECTIONS}
# `shard` is the number of the record batch.
SHUFFLED = pa.schema(
    [
        *(pa.field(name, pa.list_(pa.struct(list(schema)[1:])), nullable=False) for name, schema in _TABLES.items()),
        pa.field("filtered_out", pa.map_(pa.string(), pa.int64()), nullable=False),  # of the whole piece, in shard 0
    ]
)


@dataclass(frozen=True)
class PartitionRows(ShardTask):
    """Numbers of pieces → their files in the shuffle; details: the excluded `users` and `items` that they name."""

    clean: CleanInteractions
    shuffle: Storage
    excluded: Exclusions
    num_shards: int

    def process(self, piece: int) -> Report:
        cleaned = self.clean.read(piece)
        events, gone = self.excluded.split(to_polars(cleaned.events))
        rejections, gone_rejections = self.excluded.split(to_polars(cleaned.rejections))
        excluded = Counter({EXCLUDED: gone.height + gone_rejections.height})
        kept = Cleaned(to_arrow(events, EVENTS), to_arrow(rejections, REJECTIONS), cleaned.filtered_out + excluded)
        write_piece(self.shuffle, piece, kept, self.num_shards)
        users, items = self.excluded.named(gone, gone_rejections)
        return Report(details={"users": users, "items": items})


def write_piece(shuffle: Storage, piece: int, cleaned: Cleaned, num_shards: int) -> None:
    """Leave the rows of a piece for the shards."""
    lists = [_by_shard(getattr(cleaned, name), schema, num_shards) for name, schema in _TABLES.items()]
    counts = cleaned.filtered_out
    offsets = pa.array([0, *[len(counts)] * num_shards], pa.int32())
    names, values = pa.array(list(counts), pa.string()), pa.array(list(counts.values()), pa.int64())
    batch = pa.record_batch([*lists, pa.MapArray.from_arrays(offsets, names, values)], schema=SHUFFLED)
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, SHUFFLED, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        for shard in range(num_shards):
            writer.write_batch(batch.slice(shard, 1))
    shuffle.write(_file(piece), buffer.getvalue())


def read_partition(shuffle: Storage, pieces: Sequence[int], shard: int) -> Cleaned:
    """A shard's part of all pieces; its tables have no column `shard`."""
    filesystem, root = shuffle.arrow()
    tables: dict[str, list[pa.Table]] = {name: [schema.empty_table().drop("shard")] for name, schema in _TABLES.items()}
    filtered_out: Counter[str] = Counter()
    for piece in pieces:
        with filesystem.open_input_file(f"{root}/{_file(piece)}") as file:
            batch = pa.ipc.open_file(file).get_batch(shard)
        for name, parts in tables.items():
            parts.append(pa.Table.from_struct_array(batch.column(name).flatten()))
        filtered_out.update(dict(batch.column("filtered_out")[0].as_py()))
    events, rejections = (pa.concat_tables(tables[name]) for name in _TABLES)
    return Cleaned(events, rejections, filtered_out)


def _by_shard(table: pa.Table, schema: pa.Schema, num_shards: int) -> pa.ListArray:
    """Rows as structs, one list a shard."""
    rows = to_polars(table).sort("shard")
    offsets = np.searchsorted(rows["shard"].to_numpy(), np.arange(num_shards + 1))
    columns = [column.combine_chunks() for column in to_arrow(rows, schema).columns[1:]]
    structs = pa.StructArray.from_arrays(columns, fields=list(schema)[1:])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs)


def _file(piece: int) -> str:
    return f"piece-{piece:06d}.arrow"
