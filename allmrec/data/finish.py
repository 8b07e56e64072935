"""Users' histories → `sequences`, in passes over shards that share nothing; each reports one row a shard.

`CountItems` and `DrawUsers` find out what must be known of all shards together: which items are frequent, and whom the
split samples. `Finish` then filters each shard's histories, divides them and writes them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from allmrec.artifacts import Manifest, read_manifest, read_part, shard_name, write_shard
from allmrec.data.assemble import history_rows, report_row
from allmrec.data.config import DataConfig
from allmrec.data.filters import item_counts, stays
from allmrec.data.sequences import Sequences
from allmrec.data.splits import NONE, Split, times_of
from allmrec.storage import Storage
from schemas import sequences


@dataclass(frozen=True)
class CountItems:
    """Shard numbers → how often each item of `frequent_I` occurs, in histories with `min_user` of them."""

    histories: Storage
    data: DataConfig
    frequent_I: np.ndarray  # bool (n + 1,)
    min_user: int

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for shard in batch["id"]:
            users = Sequences.from_table(_histories(self.histories, shard))
            yield report_row(shard, {}, item_counts(users, self.data, self.frequent_I, self.min_user))


@dataclass(frozen=True)
class DrawUsers:
    """Shard numbers → the draws that decide which users are in the split's sample."""

    histories: Storage
    data: DataConfig
    frequent_I: np.ndarray  # bool (n + 1,): the items that are not too rare
    split: Split

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for shard in batch["id"]:
            users = Sequences.from_table(filtered(_histories(self.histories, shard), self.data, self.frequent_I))
            yield report_row(shard, {"draws": self.split.smallest(users)}, np.zeros(0))


@dataclass(frozen=True)
class Finish:
    """Shard numbers → shards of `sequences`; reports sizes, and item counts: the training part's and all.

    A file that would not change is left alone.
    """

    histories: Storage
    sequences: Storage
    before: Manifest | None  # of the sequences that are there
    data: DataConfig
    frequent_I: np.ndarray  # bool (n + 1,): the items that are not too rare
    split: Split

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for shard in batch["id"]:
            table, name = filtered(_histories(self.histories, shard), self.data, self.frequent_I), shard_name(shard)
            users = Sequences.from_table(table)
            parts = self.split.divide(users, times_of(table))
            table = table.append_column(sequences.SCHEMA.field("train_length"), pa.array(parts.train, pa.int32()))
            before = None if self.before is None else self.before.files.get(name)
            report = {
                "sequences": write_shard(self.sequences, sequences.SCHEMA, name, table, before, dictionary=False),
                "users": len(users),
                "interactions": len(users.items),
                "valid": int((parts.valid != NONE).sum()),
                "test": int((parts.test != NONE).sum()),
            }
            counted = users.shortened(parts.train).items, users.items
            counts = [np.bincount(items, minlength=len(self.frequent_I)) for items in counted]
            yield report_row(shard, report, np.concatenate(counts))


def filtered(table: pa.Table, data: DataConfig, frequent_I: np.ndarray) -> pa.Table:
    """Rows of HISTORY with the interactions that stay, without users who have none left."""
    users = Sequences.from_table(table)
    kept_S = stays(users, data, frequent_I)
    if kept_S.all():
        return table
    lengths = np.diff(np.append(0, np.cumsum(kept_S))[users.offsets])
    stay = lengths > 0
    offsets = np.append(0, np.cumsum(lengths[stay]))
    return history_rows(users.user_ids.filter(pa.array(stay)), offsets, users.items[kept_S], times_of(table)[kept_S])


def _histories(histories: Storage, shard: int) -> pa.Table:
    manifest = read_manifest(histories)
    return read_part(histories, manifest, manifest.facts["shards"][shard]["events"])
