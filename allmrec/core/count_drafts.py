"""How often items occur in all shards together, summed in a tree: no process holds the counts of more than one shard
beside a sum. Files of the drafts have the items that occur alone, as Arrow IPC.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from allmrec.core.drafts import read_draft, write_draft
from allmrec.core.mapped_columns import MappedColumns
from allmrec.core.shard_tasks import Report, ShardTask
from allmrec.core.storage import Storage

FAN_IN = 16  # files that one task adds up


@dataclass(frozen=True)
class CountDrafts:
    """Counts by item_index and by what is counted, of shards at level 0 and of `FAN_IN` files of it at the next."""

    storage: Storage
    num_items: int

    def write(self, level: int, number: int, counts: Mapping[str, np.ndarray]) -> None:
        occur = np.flatnonzero(np.any([*counts.values()], axis=0))
        table = pa.table({"item_index": occur, **{name: counts_I[occur] for name, counts_I in counts.items()}})
        write_draft(self.storage, _name(level, number), table.schema, table.to_batches())

    def sum(self, level: int, numbers: Iterable[int]) -> dict[str, np.ndarray]:
        """int64 (n + 1,) each; reads one file at a time."""
        total = dict[str, np.ndarray]()
        for number in numbers:
            table = read_draft(self.storage, _name(level, number))
            index = table.column("item_index").to_numpy()
            for name in table.column_names[1:]:
                total.setdefault(name, np.zeros(self.num_items + 1, dtype=np.int64))[index] += table.column(
                    name
                ).to_numpy()
        return total


@dataclass(frozen=True)
class CountInto(ShardTask):
    """Another task, whose item_counts go into the drafts instead of its report."""

    task: ShardTask
    drafts: CountDrafts

    def process(self, shard: int) -> Report:
        report = self.task.process(shard)
        self.drafts.write(0, shard, report.item_counts)
        report.item_counts = {}
        return report


@dataclass(frozen=True)
class SummedCounts:
    """Files of a level that hold what all shards counted; no more than `FAN_IN`."""

    drafts: CountDrafts
    level: int
    files: int

    def read(self) -> dict[str, np.ndarray]:
        """int64 (n + 1,) each."""
        return self.drafts.sum(self.level, range(self.files))

    def to_columns(self, target: Storage, name: str) -> tuple[MappedColumns, dict[str, int]]:
        """Write the sums as columns; and how many items occur, by what is counted."""
        total = self.read()
        occur = {counted: int(np.count_nonzero(counts_I)) for counted, counts_I in total.items()}
        return MappedColumns.write(target, name, pa.table(total)), occur


@dataclass(frozen=True)
class AddUp(ShardTask):
    """Numbers of groups of `FAN_IN` files of a level → their sums, at the next."""

    drafts: CountDrafts
    level: int
    files: int  # at the level

    def process(self, number: int) -> Report:
        group = range(number * FAN_IN, min((number + 1) * FAN_IN, self.files))
        self.drafts.write(self.level + 1, number, self.drafts.sum(self.level, group))
        return Report()


def _name(level: int, number: int) -> str:
    return f"{level}/{number:06d}.arrow"
