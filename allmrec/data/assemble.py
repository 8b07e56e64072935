"""Cleaned rows of whole shards → users' histories, in two passes over shards that share nothing.

`Draft` takes the shuffled rows of a shard: finds duplicates, puts events in time order, writes the shard's rejected
rows and a draft of its histories. `Finish` makes the histories of it, once it is known that not too much was
rejected and how often each item occurs. Both report one row a shard. What they write depends on a shard's rows
alone, not on their order or on how many shards came in one block.

Events of one user at one time (logs that know only days are full of them) are ordered by a hash of user and item:
neither the order of files nor that of item numbers may tell what came last.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from allmrec.artifacts import shard_name, write_shard
from allmrec.data.clean import set_aside, to_arrow, to_polars
from allmrec.data.config import DataConfig
from allmrec.data.sequences import Sequences
from allmrec.hashing import hash_strings, mix64
from allmrec.storage import Storage
from schemas import rejected, sequences

REPORT = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("report", pa.string(), nullable=False),  # JSON: entries for the manifests, counts
        pa.field("item_counts", pa.list_(pa.int64()), nullable=False),  # by item_index, entry 0 is padding
    ]
)


def rejected_name(shard: int) -> str:
    """The file of the `rejected` table that holds a shard's rows of the log."""
    return f"interactions-{shard:05d}.parquet"


@dataclass(frozen=True)
class Draft:
    """CLEANED rows of whole shards → their drafts and rejected rows; reports reasons, and all items' counts."""

    drafts: Storage
    quarantine: Storage
    item_ids: pa.Array  # string (n,), by item_index - 1

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        if not block.num_rows:
            yield REPORT.empty_table()
        for (shard,), rows in to_polars(block).partition_by("shard", as_dict=True).items():
            name = shard_name(shard)
            events, duplicates = in_order(rows.filter(pl.col("aside").is_null()), self.item_ids)
            bad, left_out = set_aside(rows)
            bad = pl.concat([bad, duplicates], how="diagonal").sort("reason", "row", "file", "number")
            report = {
                "rejected": write_shard(self.quarantine, rejected.SCHEMA, rejected_name(shard), _log_rejects(bad)),
                "reasons": dict(bad.group_by("reason").len().iter_rows()),
                "left_out": left_out,
                "kept": events.height,
            }
            write_shard(self.drafts, sequences.SCHEMA, name, histories(events))
            yield report_row(shard, report, np.bincount(events["item_index"], minlength=len(self.item_ids) + 1))


@dataclass(frozen=True)
class Finish:
    """Shard numbers → shards of `sequences`, from their drafts; reports sizes, and the train part's item counts."""

    drafts: Storage
    sequences: Storage
    data: DataConfig
    item_counts: np.ndarray  # int64 (n + 1,): of all histories together

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for shard in batch["id"]:
            name = shard_name(shard)
            try:
                table = pq.read_table(io.BytesIO(self.drafts.read(name)))
            except FileNotFoundError:  # no row of the log fell into this shard
                table = sequences.SCHEMA.empty_table()
            table = frequent(table, self.item_counts, self.data.min_item_interactions, self.data.min_user_interactions)
            users = Sequences.from_table(table)
            report = {
                "sequences": write_shard(self.sequences, sequences.SCHEMA, name, table),
                "users": len(users),
                "interactions": len(users.items),
                "evaluable": int((users.lengths >= 3).sum()),
            }
            yield report_row(shard, report, np.bincount(users.train().items, minlength=len(self.item_counts)))


def report_row(shard: int, report: dict[str, Any], item_counts: np.ndarray) -> pa.Table:
    return pa.table([[shard], [json.dumps(report)], [item_counts.astype(np.int64)]], schema=REPORT)


def _log_rejects(rows: pl.DataFrame) -> pa.Table:
    """Rows of the `rejected` table, from reason and row."""
    return to_arrow(rows.with_columns(source=pl.lit("interactions")), rejected.SCHEMA)


def in_order(events: pl.DataFrame, item_ids: pa.Array) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Put events in order and take duplicates out.

    Args:
        events: user_id, item_index, timestamp (microseconds), in any order.

    Returns:
        the events, ordered by user, time and the hash of user and item; and the duplicates' reason and row.
    """
    users = events.select("user_id").unique().sort("user_id").with_row_index("user")
    users = users.with_columns(user_hash=hash_strings(users["user_id"].to_arrow()))
    events = events.join(users, on="user_id")
    item_hashes = hash_strings(item_ids, seed=1)[events["item_index"].to_numpy() - 1]
    events = events.with_columns(tie=mix64(events["user_hash"].to_numpy() ^ item_hashes))
    events = events.sort("user", "timestamp", "tie", "item_index")
    again = pl.all_horizontal(pl.col(key) == pl.col(key).shift(1) for key in ("user", "timestamp", "item_index"))
    events = events.with_columns(again=again.fill_null(False))
    repeated = events.filter("again")
    duplicates = repeated.select(
        "user_id",
        item_id=pl.Series(item_ids.take(pa.array(repeated["item_index"].to_numpy() - 1)), dtype=pl.String),
        timestamp=pl.col("timestamp").cast(pl.Datetime("us", "UTC")),
    ).select(reason=pl.lit(rejected.DUPLICATE_EVENT), row=pl.struct(pl.all()).struct.json_encode())
    return events.filter(~pl.col("again")), duplicates


def histories(events: pl.DataFrame) -> pa.Table:
    """Ordered events → rows of the `sequences` table."""
    first = events.select(pl.col("user").is_first_distinct().arg_true()).to_series().to_numpy()
    offsets = np.append(first, events.height)
    return _table(events["user_id"].gather(first).to_arrow(), offsets, events["item_index"], events["timestamp"])


def frequent(table: pa.Table, item_counts: np.ndarray, min_item: int, min_user: int) -> pa.Table:
    """Rows of `sequences` without items that occur fewer than `min_item` times, then without users left with fewer
    than `min_user` items."""
    if min_item == 1 and min_user == 1:
        return table
    users = Sequences.from_table(table)
    times = table.column("timestamp").combine_chunks().flatten() if len(users) else pa.array([], pa.int64())
    keep = (item_counts >= min_item)[users.items]
    lengths = np.diff(np.append(0, np.cumsum(keep))[users.offsets])
    stay = lengths >= min_user
    keep &= np.repeat(stay, users.lengths)
    offsets = np.append(0, np.cumsum(lengths[stay]))
    return _table(users.user_ids.filter(pa.array(stay)), offsets, users.items[keep], times.filter(pa.array(keep)))


def _table(user_ids: pa.Array, offsets: np.ndarray, items: Any, timestamps: Any) -> pa.Table:
    bounds, schema = pa.array(offsets, pa.int32()), sequences.SCHEMA
    lists = [
        pa.ListArray.from_arrays(bounds, pa.array(values).cast(schema.field(name).type.value_type))
        for name, values in (("item_index", items), ("timestamp", timestamps))
    ]
    return pa.table([user_ids.cast(pa.string()), *lists], schema=schema)
