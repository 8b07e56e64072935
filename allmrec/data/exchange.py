"""From pieces of the log to shards of users: every piece leaves one file, of which every shard reads its part.

A file is an Arrow IPC file with one record batch a shard. It is written once and read by range: nobody need hold a
shard's rows while others still read, nor more than a piece or a shard at once. What a row means is `clean`'s business;
what becomes of a shard's rows is `assemble`'s.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from allmrec.data.clean import CLEANED, CleanInteractions, left_out, to_arrow, to_polars
from allmrec.data.forget import FORGOTTEN, Forgotten
from allmrec.storage import Storage

# The forgotten users and items that a piece names.
NAMED = pa.schema([("users", pa.list_(pa.string())), ("items", pa.list_(pa.string()))])


@dataclass(frozen=True)
class Deal:
    """Numbers of pieces → their files in the exchange; reports NAMED."""

    clean: CleanInteractions
    exchange: Storage
    forgotten: Forgotten
    num_shards: int

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for piece in batch["id"]:
            rows = to_polars(pa.concat_tables([CLEANED.empty_table(), *self.clean({"id": [piece]})]))
            kept, gone = self.forgotten.split(rows)
            if gone.height:
                kept = pl.concat([kept, left_out(FORGOTTEN, gone.height)], how="diagonal")
            write_piece(self.exchange, piece, kept, self.num_shards)
            yield pa.table([[ids] for ids in self.forgotten.named(gone)], schema=NAMED)


def write_piece(exchange: Storage, piece: int, rows: pl.DataFrame, num_shards: int) -> None:
    """Leave a piece's CLEANED rows for the shards."""
    rows = rows.sort("shard")
    edges = np.searchsorted(rows["shard"].to_numpy(), np.arange(num_shards + 1)).tolist()
    table, buffer = to_arrow(rows, CLEANED), io.BytesIO()
    with pa.ipc.new_file(buffer, CLEANED, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        for first, end in pairwise(edges):
            part = table.slice(first, end - first).to_batches()
            writer.write_batch(part[0] if part else pa.RecordBatch.from_pylist([], CLEANED))
    exchange.write(_file(piece), buffer.getvalue())


def dealt_rows(exchange: Storage, pieces: Sequence[int], shard: int) -> pa.Table:
    """A shard's CLEANED rows of all pieces."""
    filesystem, root = exchange.arrow()
    batches = []
    for piece in pieces:
        with filesystem.open_input_file(f"{root}/{_file(piece)}") as file:
            batches.append(pa.ipc.open_file(file).get_batch(shard))
    return pa.Table.from_batches(batches, CLEANED)


def _file(piece: int) -> str:
    return f"piece-{piece:06d}.arrow"
