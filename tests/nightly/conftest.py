"""A small shop, and recommendations for it that break no rule."""

from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences
from allmrec.hashing import shard_of
from schemas.recommendations import SCHEMA

DAY = date(2026, 3, 1)


class Shop:
    """24 users in two shards, who have seen some of the items 1…11; item 12 is not available."""

    num_users, num_items, num_shards, top_k = 24, 12, 2, 5

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        histories = [rng.permutation(np.arange(1, 12))[: rng.integers(0, 10)] for _ in range(self.num_users)]
        table = pa.table({"user_id": [f"u{n}" for n in range(self.num_users)], "item_index": histories})
        shards = shard_of(table.column("user_id"), self.num_shards)
        self.tables = [table.filter(pa.array(shards == shard)) for shard in range(self.num_shards)]

    @property
    def catalogue(self) -> Catalogue:
        ids = [f"item {n}" for n in range(self.num_items + 1)]
        available = np.array([False] + [True] * (self.num_items - 1) + [False])
        strings = pa.array(ids)
        everything = np.arange(1, len(ids), dtype=np.int32)
        return Catalogue(strings, strings, strings, strings, np.zeros(len(ids), np.int64), available, everything)

    def seen(self, shard: int) -> Sequences:
        return Sequences.from_table(self.tables[shard])

    def rows(self, shard: int, run_id: str, run_date: date = DAY) -> list[dict[str, Any]]:
        """What the run should write for a shard, the same each time."""
        rows = []
        for user in self.tables[shard].to_pylist():
            unseen = sorted(set(range(1, self.num_items)) - set(user["item_index"]))
            ranked = [
                {"item_id": f"item {item}", "rank": rank, "score": 1 / rank}
                for rank, item in enumerate(unseen[: self.top_k], 1)
            ]
            row = {"run_date": run_date, "user_id": user["user_id"], "items": ranked, "source": "llm"}
            rows.append({**row, "bundle": "v1", "run_id": run_id})
        return rows

    def table(self, shard: int, run_id: str, run_date: date = DAY) -> pa.Table:
        return pa.Table.from_pylist(self.rows(shard, run_id, run_date), SCHEMA)


@pytest.fixture
def shop() -> Shop:
    return Shop()
