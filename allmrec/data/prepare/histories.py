"""Cleaned rows of shards → users' histories, in a pass over shards that share nothing.

`UpdateHistories` joins a shard's rows of the shuffle with the histories of earlier logs: it finds duplicates,
puts events in time order and keeps the rejected rows. What is written depends on a shard's rows alone: neither on their
order nor on how many logs they came in. `sequences` makes `sequences` of histories.

Events of one user at one time (logs that know only days are full of them) are ordered by a hash of user and item:
neither the order of files nor that of item numbers may decide what is last.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import Manifest, read_part, write_shard
from allmrec.core.hashing import hash_strings, mix64
from allmrec.core.shard_tasks import Report, ShardTask
from allmrec.core.storage import Storage
from allmrec.data.prepare.clean import to_arrow, to_polars
from allmrec.data.prepare.exclusions import Exclusions
from allmrec.data.prepare.item_ids import ItemIds
from allmrec.data.prepare.shuffle import Shuffle
from allmrec.data.sequences import Sequences
from schemas import rejected, sequences


@dataclass(frozen=True)
class UpdateHistories(ShardTask):
    """Shard numbers → the shards' files of the artifact `histories`, and counts; `shard_stats` is for its manifest.

    Files have new names, so that those of the previous run stay whole until the new manifest is written. A shard that
    gets no new rows keeps its files. Details: the files' names as `events` and `rejected`, and the excluded `users` and
    `items` that earlier rows name.
    """

    shuffle: Shuffle
    histories: Storage
    before: Manifest | None  # of the existing histories
    excluded: Exclusions
    new_exclusions: bool  # whether the existing ones may hold excluded ones
    items: ItemIds
    fingerprint: str

    def process(self, shard: int) -> Report:
        new = self.shuffle.read_shard(shard)
        events, bad, filtered_out = to_polars(new.events), _log_rejects(to_polars(new.rejections)), new.filtered_out
        users, items = list[str](), list[str]()
        if self.before is not None:
            known = self.before.stats["shards"][shard]
            if not (len(events) or len(bad) or filtered_out or self.new_exclusions):
                return self._unchanged(known)
            old, old_bad = (read_part(self.histories, self.before, known[kind]) for kind in ("events", "rejected"))
            (kept, gone), (bad_kept, bad_gone) = map(self.excluded.split, (_events(old), to_polars(old_bad)))
            users, items = self.excluded.named(gone, bad_gone)
            events = pl.concat([kept, events], how="diagonal")
            bad = pa.concat_tables([_log_rejects(bad_kept), bad])
            filtered_out = filtered_out + Counter(known["filtered_out"])
        table, duplicates = in_order(events, self.items.read())
        bad = pa.concat_tables([bad, _log_rejects(duplicates)])
        bad = bad.sort_by([(name, "ascending") for name in bad.schema.names])
        names = {kind: f"{kind}-{shard:05d}-{self.fingerprint[:12]}.parquet" for kind in ("events", "rejected")}
        return Report(
            counts=Counter(kept=len(table.column("item_index").combine_chunks().flatten()) if table.num_rows else 0),
            dropped=filtered_out,
            rejected=count_values(bad.column("reason")),
            files={
                names["events"]: write_shard(
                    self.histories, sequences.HISTORY, names["events"], table, dictionary=False
                ),
                names["rejected"]: write_shard(
                    self.histories, rejected.SCHEMA, names["rejected"], bad.combine_chunks()
                ),
            },
            details={**names, "users": users, "items": items},
        )

    def _unchanged(self, known: Mapping[str, Any]) -> Report:
        assert self.before is not None
        names = {kind: known[kind] for kind in ("events", "rejected")}
        return Report(
            counts=Counter(kept=known["kept"]),
            dropped=Counter(known["filtered_out"]),
            rejected=Counter(known["reasons"]),
            files={name: self.before.files[name] for name in names.values()},
            details={**names, "users": [], "items": []},
        )


def shard_stats(report: Report) -> dict[str, Any]:
    """What the manifest of `histories` keeps of a shard: names of its files, and counts. Names no excluded id."""
    return {
        **{kind: report.details[kind] for kind in ("events", "rejected")},
        "kept": report.counts["kept"],
        "filtered_out": dict(report.dropped),
        "reasons": dict(report.rejected),
    }


@dataclass(frozen=True)
class MentionsItems(ShardTask):
    """Shard numbers → the count of `rows` that were rejected for an unknown item that is known by now."""

    histories: Storage
    manifest: Manifest
    items: ItemIds
    first: int  # of them, from here on: those that were not known

    def process(self, shard: int) -> Report:
        ids = pl.Series(self.items.read()[self.first :], dtype=pl.String)
        name = self.manifest.stats["shards"][shard]["rejected"]
        rows = to_polars(read_part(self.histories, self.manifest, name))
        rows = rows.filter(pl.col("reason") == rejected.UNKNOWN_ITEM)
        named = rows["row"].str.json_path_match("$.item_id")
        return Report(counts=Counter(rows=int(named.is_in(ids.implode()).sum())))


def in_order(events: pl.DataFrame, item_ids: pa.Array) -> tuple[pa.Table, pl.DataFrame]:
    """Events of a shard → rows of the `sequences` table, and the duplicates' reason and row.

    Args:
        events: user_id, item_index, timestamp (microseconds), in any order.

    Users are ordered by id, a user's events by time and then by `tie_break`.
    """
    users = events["user_id"].to_arrow().dictionary_encode()
    ascending = pc.array_sort_indices(users.dictionary)
    user_ids = users.dictionary.take(ascending)
    rank = np.empty(len(user_ids), dtype=np.int32)
    rank[ascending.to_numpy()] = np.arange(len(user_ids), dtype=np.int32)
    user, time, item = rank[users.indices.to_numpy()], events["timestamp"].to_numpy(), events["item_index"].to_numpy()
    order, tied = _order(user, time)
    some = order[tied]
    tie = tie_break(user_ids, item_ids, user[some], item[some] - 1)
    order[tied] = some[np.lexsort((item[some], tie, time[some], user[some]))]
    user, time, item = user[order], time[order], item[order]
    again = np.zeros(len(order), dtype=bool)
    again[1:] = (user[1:] == user[:-1]) & (time[1:] == time[:-1]) & (item[1:] == item[:-1])
    duplicates = pl.DataFrame(
        {
            "user_id": pl.Series(user_ids.take(pa.array(user[again])), dtype=pl.String),
            "item_id": pl.Series(item_ids.take(pa.array(item[again] - 1)), dtype=pl.String),
            "timestamp": pl.Series(time[again]).cast(pl.Datetime("us", "UTC")),
        }
    ).select(reason=pl.lit(rejected.DUPLICATE_EVENT), row=pl.struct(pl.all()).struct.json_encode())
    offsets = np.append(0, np.cumsum(np.bincount(user[~again], minlength=len(user_ids))))
    return history_rows(user_ids, offsets, item[~again], time[~again]), duplicates


def _order(user_S: np.ndarray, time_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Events by user and time: their order, int64 (S,), and which are in it beside others that it does not tell apart.

    Each event is one number, of its user, time and row, with as many of the time's bits as there is room for: to sort
    numbers is much faster than to sort rows.
    """
    if not len(user_S):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
    earliest, row_bits = time_S.min(), len(user_S).bit_length()
    time_bits = int(time_S.max() - earliest).bit_length()
    kept_bits = min(time_bits, 64 - row_bits - int(user_S.max()).bit_length())
    told = (user_S.astype(np.uint64) << np.uint64(kept_bits)) | (
        (time_S - earliest).astype(np.uint64) >> np.uint64(time_bits - kept_bits)
    )
    numbers = (told << np.uint64(row_bits)) | np.arange(len(user_S), dtype=np.uint64)
    numbers.sort()
    order = (numbers & np.uint64((1 << row_bits) - 1)).astype(np.int64)
    alike = np.diff(numbers >> np.uint64(row_bits)) == 0
    return order, np.append(alike, False) | np.append(False, alike)


def tie_break(user_ids: pa.Array, item_ids: pa.Array, user_S: np.ndarray, item_S: np.ndarray) -> np.ndarray:
    """uint64 (S,): the order of a user's events of equal times, by ids alone.

    Args:
        user_S, item_S: each event's positions in `user_ids` and `item_ids`.
    """
    items, at_S = np.unique(item_S, return_inverse=True)  # most of a large catalogue is not here
    return mix64(hash_strings(user_ids)[user_S] ^ hash_strings(item_ids.take(pa.array(items)), seed=1)[at_S])


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


def count_values(column: pa.ChunkedArray) -> Counter[str]:
    """How often each value occurs, in the order of their first occurrence."""
    return Counter({entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()})
