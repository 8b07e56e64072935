"""Users' histories → `sequences`, in passes over shards that share nothing; each reports one row a shard.

`CountItems`, `CountUsers` and `DrawUsers` find out what must be known of all shards: which items are frequent, whether
a user is left, which users the split samples. `BuildSequences` then filters each shard's histories, divides them and
writes them.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from allmrec.core.artifacts import Manifest, read_manifest, read_part, shard_name, write_shard
from allmrec.core.shard_tasks import Report, ShardTask
from allmrec.core.storage import Storage
from allmrec.data.config import DataConfig
from allmrec.data.prepare.filters import FrequentItems, item_counts, keep_mask
from allmrec.data.prepare.histories import history_rows
from allmrec.data.sequences import Sequences
from allmrec.data.splits import NONE, Split, times_of
from schemas import sequences


@dataclass(frozen=True)
class CountItems(ShardTask):
    """Shard numbers → item_counts `kept`: of frequent items, in histories with `min_user` of these."""

    histories: Storage
    data: DataConfig
    frequent: FrequentItems
    min_user: int

    def process(self, shard: int) -> Report:
        users = Sequences.from_table(_histories(self.histories, shard))
        return Report(item_counts={"kept": item_counts(users, self.data, self.frequent.mask(), self.min_user)})


@dataclass(frozen=True)
class CountUsers(ShardTask):
    """Shard numbers → how many users the filters leave."""

    histories: Storage
    data: DataConfig
    frequent: FrequentItems

    def process(self, shard: int) -> Report:
        left = filtered(_histories(self.histories, shard), self.data, self.frequent.mask())
        return Report(counts=Counter(users=left.num_rows))


@dataclass(frozen=True)
class DrawUsers(ShardTask):
    """Shard numbers → details `draws`: the draws that decide which users are in the split's sample."""

    histories: Storage
    data: DataConfig
    frequent: FrequentItems
    split: Split

    def process(self, shard: int) -> Report:
        users = Sequences.from_table(filtered(_histories(self.histories, shard), self.data, self.frequent.mask()))
        return Report(details={"draws": self.split.smallest(users)})


@dataclass(frozen=True)
class BuildSequences(ShardTask):
    """Shard numbers → shards of `sequences`; reports sizes, and item_counts as `ItemCounts` has them.

    A file that would not change is left alone.
    """

    histories: Storage
    sequences: Storage
    before: Manifest | None  # of the existing sequences
    data: DataConfig
    frequent: FrequentItems
    split: Split

    def process(self, shard: int) -> Report:
        table, name = filtered(_histories(self.histories, shard), self.data, self.frequent.mask()), shard_name(shard)
        users = Sequences.from_table(table)
        parts = self.split.divide(users, times_of(table))
        training, schema = self.split.training(users, parts), sequences.SCHEMA
        table = table.append_column(schema.field("train_length"), pa.array(parts.train, pa.int32()))
        if self.split.config.shuffle_training:
            schema = sequences.SHUFFLED
            lists = pa.ListArray.from_arrays(training.offsets.astype(np.int32), training.items)
            table = table.append_column(schema.field("train_item_index"), lists)
        before = None if self.before is None else self.before.files.get(name)
        counted = {"popularity": training.items, "interactions": users.items}
        return Report(
            counts=Counter(
                users=len(users),
                interactions=len(users.items),
                valid=int((parts.valid != NONE).sum()),
                test=int((parts.test != NONE).sum()),
            ),
            files={name: write_shard(self.sequences, schema, name, table, before, dictionary=False)},
            item_counts={
                part: np.bincount(items, minlength=self.frequent.num_items + 1) for part, items in counted.items()
            },
        )


def filtered(table: pa.Table, data: DataConfig, frequent_I: np.ndarray) -> pa.Table:
    """Rows of HISTORY with the interactions that stay, without users who have none left."""
    users = Sequences.from_table(table)
    kept_S = keep_mask(users, data, frequent_I)
    if kept_S.all():
        return table
    lengths = np.diff(np.append(0, np.cumsum(kept_S))[users.offsets])
    stay = lengths > 0
    offsets = np.append(0, np.cumsum(lengths[stay]))
    return history_rows(users.user_ids.filter(pa.array(stay)), offsets, users.items[kept_S], times_of(table)[kept_S])


def _histories(histories: Storage, shard: int) -> pa.Table:
    manifest = read_manifest(histories)
    return read_part(histories, manifest, manifest.stats["shards"][shard]["events"])
