"""Who gets recommendations, shard by shard, with the histories that the run may know.

Everyone who has a history before the end of the run's date, or exactly the users that a table asks for; never those
who are suppressed. Users without a history come with an empty one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import read_table
from allmrec.core.hashing import Draw, key64, mix64
from allmrec.core.storage import Storage
from allmrec.data.sequences import Sequences, num_shards, offsets_of


@dataclass(frozen=True)
class UserShard:
    """Those who get a row, in the table's order, and how many were left out, by reason."""

    users: Sequences
    filtered_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class EligibleUsers:
    """Reads shards of users; can be pickled. Tables besides `sequences` are partitioned into the same shards."""

    sequences: Storage
    run_date: date
    requested: Storage | None = None  # a partitioned table of user_id: these and no others
    suppressed: Storage | None = None  # a partitioned table of user_id: never these
    limit: int | None = None  # at most this number of users, drawn by their hashes
    timezone: str = "UTC"  # where the date ends

    def read(self, shard: int, index_P: np.ndarray | None = None) -> UserShard:
        """Args: index_P: the bundle's index of each item of `sequences`, see `renumbering`; by default the same."""
        users = known_before(read_table(self.sequences, [shard]), self.run_date, self.timezone)
        if index_P is not None:
            users = users.renumbered(index_P)
        filtered_out = {}
        if self.requested is not None:
            users = _exactly(users, _ids(self.requested, shard))
        if self.suppressed is not None:
            refused = pc.is_in(users.user_ids, _ids(self.suppressed, shard)).to_numpy(zero_copy_only=False)
            filtered_out["suppressed_users"] = int(refused.sum())
            users = users.take(np.flatnonzero(~refused))
        if self.limit is not None:
            shards = num_shards(self.sequences)
            share = self.limit // shards + (shard < self.limit % shards)
            users = users.take(
                np.sort(np.argsort(mix64(users.hashes() ^ key64(Draw.NIGHTLY_USERS)), kind="stable")[:share])
            )
        return UserShard(users, filtered_out)


def known_before(table: pa.Table, run_date: date, timezone: str = "UTC") -> Sequences:
    """Histories up to the end of a date in a time zone, of the users who have one by then.

    Args:
        table: rows of `sequences`.
    """
    users = Sequences.from_table(table)
    end = datetime.combine(run_date + timedelta(days=1), time(), ZoneInfo(timezone))
    times = pc.list_flatten(table.column("timestamp")).cast(pa.int64()).to_numpy()
    before = np.concatenate([[0], np.cumsum(times < int(end.timestamp()) * 1_000_000)])
    lengths = np.diff(before[users.offsets])  # histories are in time order, so earlier events are a prefix
    return users.shortened(lengths).take(np.flatnonzero(lengths))


def _exactly(users: Sequences, requested: pa.Array) -> Sequences:
    """The requested ones: those who are known, then those who are not, with empty histories."""
    known = users.take(np.flatnonzero(pc.is_in(users.user_ids, requested).to_numpy(zero_copy_only=False)))
    strangers = requested.filter(pc.invert(pc.is_in(requested, known.user_ids)))
    ids = pa.concat_arrays([known.user_ids, strangers])
    return Sequences(ids, offsets_of(np.concatenate([known.lengths, np.zeros(len(strangers), int)])), known.items)


def _ids(table: Storage, shard: int) -> pa.Array:
    return pc.unique(read_table(table, [shard]).column("user_id").cast(pa.string()))
