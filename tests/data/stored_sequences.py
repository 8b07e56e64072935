"""Generated users' histories, in memory and as a stored table in any number of shards."""

import numpy as np
import pyarrow as pa

from allmrec.core.artifacts import writing
from allmrec.core.hashing import shard_of
from allmrec.core.storage import Storage
from allmrec.data.sequences import Sequences, offsets_of
from allmrec.data.training_users import TrainingUsers
from schemas import sequences as schema


def generated(num_users: int, num_items: int = 50, longest: int = 12) -> Sequences:
    """Histories of no item up to `longest`."""
    random = np.random.default_rng(0)
    offsets = offsets_of(random.integers(0, longest + 1, num_users))
    ids = pa.array(np.char.add("user-", np.arange(num_users).astype(str)))
    return Sequences(ids, offsets, random.integers(1, num_items + 1, offsets[-1]).astype(np.int32))


def write_sequences(storage: Storage, users: Sequences, num_shards: int) -> None:
    """The table `sequences`, all of which trains."""
    shards = shard_of(users.user_ids, num_shards)
    with writing(storage, "sequences", "generated") as out:
        for shard in range(num_shards):
            mine = users.take(np.flatnonzero(shards == shard))
            lists = pa.ListArray.from_arrays(mine.offsets.astype(np.int32), pa.array(mine.items))
            times = pa.ListArray.from_arrays(
                mine.offsets.astype(np.int32), pa.array(np.zeros(len(mine.items), np.int64), pa.timestamp("us", "UTC"))
            )
            columns = [mine.user_ids, lists, times, pa.array(mine.lengths, pa.int32())]
            out.table(shard, schema.SCHEMA, pa.table(columns, names=schema.SCHEMA.names).cast(schema.SCHEMA))
        out.stats["interactions"] = len(users.items)


def in_parts(users: Sequences, count: int) -> TrainingUsers:
    """Those with two interactions, every `count`-th of them in a part."""
    chosen = np.flatnonzero(users.lengths >= 2)
    parts = [users.take(chosen[part::count]) for part in range(count)]
    counts = np.array([(len(part), len(part.items)) for part in parts]).T
    return TrainingUsers([lambda part=part: part for part in parts], *counts)
