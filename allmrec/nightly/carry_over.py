"""Rows of an earlier run that need not be made again: all that they depend on is as it was.

Beside every shard lies a digest of each user's inputs: history, candidates, and what ranks them. Candidates are
retrieved every night, so a new bundle, a filter or another history shows in the digest wherever it changes a row, and
nowhere else. Digests lie outside of `_runs/`, which may be expired:

    _inputs/run_date=D/<run id>/part-00003.parquet    user_id, digest

A row that is not found, or is not whole any more (an item was removed from it), is made anew.

Dimensions: U users, N candidates, S interactions
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from allmrec.artifacts import sha256, shard_name, to_parquet
from allmrec.data.sequences import Sequences
from allmrec.hashing import fingerprint, key64, mix64
from allmrec.journal import entries_after, last_number
from allmrec.nightly.publish import Run
from allmrec.storage import Storage
from schemas.recommendations import SCHEMA

_HISTORY, _CANDIDATES = 0x4849, 0x4341
_LOOK_BACK = 30  # log entries; a backfill puts older dates behind newer ones


def input_digests(users: Sequences, candidates_UN: np.ndarray, ranking: Mapping[str, Any]) -> np.ndarray:
    """A digest of all that each user's row depends on, uint64 (U,).

    Args:
        candidates_UN: item indices in the order of whoever proposed them.
        ranking: JSON-able; what ranks them: bundle, LLM, ranker, seed, code version.
    """
    place_S = np.arange(len(users.items)) - np.repeat(users.offsets[:-1], users.lengths)
    # Sums wrap around, and so do differences of the running sum: each user's own is exact.
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_entries(users.items, place_S, _HISTORY))])
    history_U = np.diff(running[users.offsets])
    entries_UN = _entries(candidates_UN, np.arange(candidates_UN.shape[1]), _CANDIDATES)
    key = np.uint64(int(fingerprint(ranking)[:16], 16))
    with np.errstate(over="ignore"):
        digest_U = mix64(history_U + mix64(users.lengths.astype(np.uint64)))
        return mix64(mix64(digest_U ^ entries_UN.sum(axis=1, dtype=np.uint64)) ^ key)


def _entries(items: np.ndarray, places: np.ndarray, purpose: int) -> np.ndarray:
    return mix64(mix64(items.astype(np.uint64) ^ key64(purpose)) ^ places.astype(np.uint64))


def write_digests(run: Run, shard: int, users: Sequences, digests_U: np.ndarray) -> None:
    """Put a shard's digests beside it. Every attempt at the shard writes the same."""
    table = pa.table({"user_id": users.user_ids, "digest": pa.array(digests_U)})
    run.storage.write(_key(run.run_date, run.run_id, shard), to_parquet(table, dictionary=False))


@dataclass(frozen=True)
class LastRun:
    """The run that was current before a date: what tonight's is compared with, and may take rows from."""

    storage: Storage
    entry: Mapping[str, Any]  # of the publish log

    @classmethod
    def before(cls, storage: Storage, run_date: date, num_shards: int) -> "LastRun | None":
        """The one of the latest earlier date among the newest entries, if it is dealt to as many shards."""
        entries = entries_after(storage, max(last_number(storage) - _LOOK_BACK, 0))
        earlier = [entry for entry in entries if date.fromisoformat(entry["run_date"]) < run_date]
        last = max(earlier, key=lambda entry: (entry["run_date"], entry["n"]), default=None)
        return cls(storage, last) if last and len(last["files"]) == num_shards else None

    def read(self, shard: int) -> pa.Table | None:
        """A shard's recommendations; None when they are gone or not what was published."""
        file = self.entry["files"][shard]
        data = self._find(file["key"])
        return pq.read_table(io.BytesIO(data)) if data is not None and sha256(data) == file["sha256"] else None

    def unchanged(self, shard: int, users: Sequences, digests_U: np.ndarray, lengths_U: np.ndarray) -> pa.Table:
        """The shard's rows of users whose inputs have not changed.

        Args:
            lengths_U: how many items tonight's lists have; a row of another length is not whole.
        """
        rows, data = self.read(shard), self._find(_key(self.entry["run_date"], self.entry["run_id"], shard))
        if rows is None or data is None:
            return SCHEMA.empty_table()
        then = pq.read_table(io.BytesIO(data))
        at = pc.index_in(rows.column("user_id"), users.user_ids).fill_null(-1).to_numpy(zero_copy_only=False)
        was = pc.index_in(rows.column("user_id"), then.column("user_id")).fill_null(-1).to_numpy(zero_copy_only=False)
        lengths = pc.list_value_length(rows.column("items")).to_numpy(zero_copy_only=False)
        same = (at >= 0) & (was >= 0)
        same[same] = (then.column("digest").to_numpy()[was[same]] == digests_U[at[same]]) & (
            lengths[same] == lengths_U[at[same]]
        )
        return rows.filter(pa.array(same))

    def _find(self, key: str) -> bytes | None:
        try:
            return self.storage.read(key)
        except FileNotFoundError:
            return None


def _key(run_date: date | str, run_id: str, shard: int) -> str:
    return f"_inputs/run_date={run_date}/{run_id}/{shard_name(shard)}"
