"""Cleaned rows of shards → users' histories, in a pass over shards that share nothing.

`Draft` joins a shard's rows of the exchange with the histories that are there from earlier logs: it finds duplicates,
puts events in time order and keeps the rejected rows. What is written depends on a shard's rows alone: neither on their
order nor on how many logs they came in. `finish` makes `sequences` of histories.

Events of one user at one time (logs that know only days are full of them) are ordered by a hash of user and item:
neither the order of files nor that of item numbers may tell what came last.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.artifacts import Manifest, read_part, write_shard
from allmrec.data.clean import set_aside, to_arrow, to_polars
from allmrec.data.exchange import dealt_rows
from allmrec.data.forget import Forgotten
from allmrec.data.sequences import Sequences
from allmrec.hashing import hash_strings, mix64
from allmrec.storage import Storage
from schemas import rejected, sequences

REPORT = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("report", pa.string(), nullable=False),  # JSON: entries for the manifests, counts
        pa.field(
            "item_counts", pa.list_(pa.int64()), nullable=False
        ),  # by item_index, entry 0 is padding; one list behind another
    ]
)


@dataclass(frozen=True)
class Draft:
    """Shard numbers → the shards' files of the artifact `histories`; reports their names, entries and counts.

    Files have new names, so that those of the run before stay whole until the new manifest is there. A shard that
    nothing is new for keeps its files.
    """

    exchange: Storage
    pieces: int  # of the log, in the exchange
    histories: Storage
    before: Manifest | None  # of the histories that are there
    forgotten: Forgotten
    forgets: bool  # whether what is there may hold forgotten ones
    item_ids: pa.Array  # string (n,), by item_index - 1
    made_by: str

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for shard in batch["id"]:
            yield report_row(shard, self.draft(int(shard)), np.zeros(0))

    def draft(self, shard: int) -> dict[str, Any]:
        rows = to_polars(dealt_rows(self.exchange, range(self.pieces), shard))
        good, (bad_rows, counted) = rows.filter(pl.col("aside").is_null()), set_aside(rows)
        bad, left_out, named = _log_rejects(bad_rows), Counter(counted), (set[str](), set[str]())
        if self.before is not None:
            known = self.before.facts["shards"][shard]
            if not rows.height and not self.forgets:
                files = {known[key]: self.before.files[known[key]] for key in ("events", "rejected")}
                return known | {"files": files, "named": [[], []]}
            old, old_bad = (read_part(self.histories, self.before, known[kind]) for kind in ("events", "rejected"))
            (kept, gone), (bad_kept, bad_gone) = map(self.forgotten.split, (_events(old), to_polars(old_bad)))
            for rows in (gone, bad_gone):
                for ids, found in zip(named, self.forgotten.named(rows), strict=True):
                    ids.update(found)
            good = pl.concat([kept, good], how="diagonal")
            bad = pa.concat_tables([_log_rejects(bad_kept), bad])
            left_out.update(known["left_out"])
        table, duplicates = in_order(good, self.item_ids)
        bad = pa.concat_tables([bad, _log_rejects(duplicates)])
        bad = bad.sort_by([(name, "ascending") for name in bad.schema.names])
        suffix = f"{shard:05d}-{self.made_by[:12]}.parquet"
        events, rejects = f"events-{suffix}", f"rejected-{suffix}"
        return {
            "events": events,
            "rejected": rejects,
            "files": {
                events: write_shard(self.histories, sequences.HISTORY, events, table, dictionary=False),
                rejects: write_shard(self.histories, rejected.SCHEMA, rejects, bad.combine_chunks()),
            },
            "kept": len(table.column("item_index").combine_chunks().flatten()) if table.num_rows else 0,
            "left_out": left_out,
            "named": [sorted(ids) for ids in named],  # forgotten users and items; not for the manifest
            "reasons": {entry["values"]: entry["counts"] for entry in bad.column("reason").value_counts().to_pylist()},
        }


@dataclass(frozen=True)
class NamesItems:
    """Shard numbers → whether a row that was rejected for its unknown item names one of `item_ids`."""

    histories: Storage
    manifest: Manifest
    item_ids: pa.Array

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        ids = pl.Series(self.item_ids, dtype=pl.String)
        for shard in batch["id"]:
            name = self.manifest.facts["shards"][shard]["rejected"]
            rows = to_polars(read_part(self.histories, self.manifest, name))
            rows = rows.filter(pl.col("reason") == rejected.UNKNOWN_ITEM)
            named = rows["row"].str.json_path_match("$.item_id")
            yield pa.table({"names": [named.is_in(ids.implode()).any()]})


def report_row(shard: int, report: dict[str, Any], item_counts: np.ndarray) -> pa.Table:
    return pa.table([[shard], [json.dumps(report)], [item_counts.astype(np.int64)]], schema=REPORT)


def in_order(events: pl.DataFrame, item_ids: pa.Array) -> tuple[pa.Table, pl.DataFrame]:
    """Events of a shard → rows of the `sequences` table, and the duplicates' reason and row.

    Args:
        events: user_id, item_index, timestamp (microseconds), in any order.

    Users are ordered by id, a user's events by time and then by the hash of user and item.
    """
    users = events["user_id"].to_arrow().dictionary_encode()
    ascending = pc.array_sort_indices(users.dictionary)
    user_ids = users.dictionary.take(ascending)
    rank = np.empty(len(user_ids), dtype=np.int32)
    rank[ascending.to_numpy()] = np.arange(len(user_ids), dtype=np.int32)
    user, item = rank[users.indices.to_numpy()], events["item_index"].to_numpy()
    tie = mix64(hash_strings(user_ids)[user] ^ hash_strings(item_ids, seed=1)[item - 1])
    frame = pl.DataFrame({"user": user, "timestamp": events["timestamp"], "tie": tie, "item_index": item})
    frame = frame.sort("user", "timestamp", "tie", "item_index")
    same = pl.all_horizontal(pl.col(key) == pl.col(key).shift(1) for key in ("user", "timestamp", "item_index"))
    again = frame.select(same.fill_null(False)).to_series()
    frame, repeated = frame.filter(~again), frame.filter(again)
    offsets = np.append(0, np.cumsum(np.bincount(frame["user"].to_numpy(), minlength=len(user_ids))))
    duplicates = pl.DataFrame(
        {
            "user_id": pl.Series(user_ids.take(pa.array(repeated["user"].to_numpy())), dtype=pl.String),
            "item_id": pl.Series(item_ids.take(pa.array(repeated["item_index"].to_numpy() - 1)), dtype=pl.String),
            "timestamp": repeated["timestamp"].cast(pl.Datetime("us", "UTC")),
        }
    ).select(reason=pl.lit(rejected.DUPLICATE_EVENT), row=pl.struct(pl.all()).struct.json_encode())
    return history_rows(user_ids, offsets, frame["item_index"].to_arrow(), frame["timestamp"].to_arrow()), duplicates


def history_rows(user_ids: pa.Array, offsets: np.ndarray, items: Any, timestamps: Any) -> pa.Table:
    """Rows of HISTORY from flat arrays."""
    bounds, schema = pa.array(offsets, pa.int32()), sequences.HISTORY
    lists = [
        pa.ListArray.from_arrays(bounds, pa.array(values).cast(schema.field(name).type.value_type))
        for name, values in (("item_index", items), ("timestamp", timestamps))
    ]
    return pa.table([user_ids.cast(pa.string()), *lists], schema=schema)


def _events(table: pa.Table) -> pl.DataFrame:
    """Rows of `sequences` → events, as `in_order` takes them."""
    users = Sequences.from_table(table)
    times = table.column("timestamp").combine_chunks().flatten() if len(users) else pa.array([], pa.int64())
    return pl.DataFrame(
        {
            "user_id": pl.Series(users.user_ids.take(pa.array(users.rows())), dtype=pl.String),
            "item_index": users.items,
            "timestamp": pl.Series(times.cast(pa.int64())),
        }
    )


def _log_rejects(rows: pl.DataFrame) -> pa.Table:
    """Rows of the `rejected` table."""
    return to_arrow(rows.with_columns(source=pl.lit("interactions")), rejected.SCHEMA)
