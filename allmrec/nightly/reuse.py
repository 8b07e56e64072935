"""Rows of an earlier run that need not be made again: all that they depend on is as it was.

Beside every shard is a digest of each user's inputs: history, candidates, and what ranks them. Candidates are
retrieved by every run, so a new bundle, a filter or another history shows in the digest wherever it changes a row, and
nowhere else. Digests are outside of `_runs/`, which may be expired, and do not tell whose they are:

    _inputs/run_date=D/<run id>/part-00003.parquet

`vectors` keeps what the LLM said of users beside them.
A row that is not found, or is incomplete (an item was removed from it), is made again.

Dimensions: U users, N candidates, S interactions
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.bundle.loading import Bundle
from allmrec.core.artifacts import from_parquet, shard_name, to_parquet
from allmrec.core.commit_log import find_json
from allmrec.core.hashing import Draw, fingerprint, hash_strings, key64, mix64
from allmrec.core.storage import Storage
from allmrec.data.sequences import Sequences
from allmrec.publishing.log import manifest_key, was_rolled_back
from allmrec.publishing.reader import read_rows
from allmrec.publishing.run import Run
from schemas.recommendations import SCHEMA

_LOOK_BACK = 30  # days


def item_digests(bundle: Bundle) -> np.ndarray:
    """What a prompt and a row show of each item, uint64 (I,): its id, its title, and whether by e_i or q_i.

    Of q_i it is the text that counts: it may be newer than the models.
    """
    catalogue = bundle.catalogue
    ids_I, titles_I = (hash_strings(pc.fill_null(texts, "")) for texts in (catalogue.item_ids, catalogue.titles))
    texts_I = np.where(bundle.uses_text_embedding().numpy(), hash_strings(catalogue.text_hashes) | np.uint64(1), 0)
    return mix64(mix64(ids_I) ^ titles_I) ^ texts_I.astype(np.uint64)


def input_digests(
    users: Sequences, candidates_UN: np.ndarray, items_I: np.ndarray, ranking: Mapping[str, Any]
) -> np.ndarray:
    """A digest of all that each user's row depends on, uint64 (U,).

    Args:
        candidates_UN: item indices in the proposer's order.
        items_I: from `item_digests`.
        ranking: JSON-able; what ranks them: models, wording, ranker, seed, code version.
    """
    entries_UN = _entries(items_I[candidates_UN], np.arange(candidates_UN.shape[1]), Draw.REUSE_CANDIDATES)
    candidates_U = entries_UN.sum(axis=1, dtype=np.uint64)
    return keyed(mix64(history_digests(users, items_I) ^ candidates_U), ranking)


def history_digests(users: Sequences, items_I: np.ndarray) -> np.ndarray:
    """A digest of each user with the history, uint64 (U,); see `input_digests`."""
    place_S = np.arange(len(users.items)) - np.repeat(users.offsets[:-1], users.lengths)
    # Sums wrap around, and so do differences of the running sum: each user's own is exact.
    running = np.concatenate(
        [np.zeros(1, np.uint64), np.cumsum(_entries(items_I[users.items], place_S, Draw.REUSE_HISTORY))]
    )
    history_U = np.diff(running[users.offsets])
    with np.errstate(over="ignore"):
        return mix64(users.hashes() ^ mix64(history_U + mix64(users.lengths.astype(np.uint64))))


def keyed(digests: np.ndarray, made_with: Mapping[str, Any]) -> np.ndarray:
    """Digests, uint64 (any shape), together with what is the same for all of them."""
    return mix64(digests ^ np.uint64(int(fingerprint(made_with)[:16], 16)))


def _entries(items: np.ndarray, positions: np.ndarray, purpose: int) -> np.ndarray:
    return mix64(mix64(items ^ key64(purpose)) ^ positions.astype(np.uint64))


def write_digests(run: Run, shard: int, digests_U: np.ndarray) -> None:
    """Put a shard's digests beside it. Every attempt at the shard writes the same."""
    data = to_parquet(pa.table({"digest": np.sort(digests_U)}), dictionary=False)
    run.storage.write(inputs_key(run.run_date, run.run_id, shard_name(shard)), data)


@dataclass(frozen=True)
class PreviousRun:
    """The run of the date before: what in this run's is compared with, and may take rows from."""

    storage: Storage
    manifest: Mapping[str, Any]  # of its published files

    @classmethod
    def before(cls, storage: Storage, run_date: date, num_shards: int) -> "PreviousRun | None":
        """The newest one of the month before the date that was not rolled back, if it has as many shards."""
        for days in range(1, _LOOK_BACK + 1):
            manifest = find_json(storage, manifest_key(run_date - timedelta(days)))
            if manifest and not was_rolled_back(storage, manifest):
                return cls(storage, manifest) if len(manifest["files"]) == num_shards else None
        return None

    def read(self, shard: int) -> pa.Table | None:
        """A shard's recommendations; None when they are gone, damaged, or lack a column that rows must have now."""
        try:
            return read_rows(self.storage, self.manifest["files"][shard])
        except ValueError:
            return None

    def read_inputs(self, name: str, columns: tuple[str, ...] = ("digest",)) -> pa.Table | None:
        """A table that the run kept for this one; None when it is gone, or when it was kept without these columns."""
        table = find_table(self.storage, inputs_key(self.manifest["run_date"], self.manifest["run_id"], name))
        return table if table is not None and {*columns} <= {*table.column_names} else None

    def unchanged(self, shard: int, users: Sequences, digests_U: np.ndarray, lengths_U: np.ndarray) -> pa.Table:
        """The shard's rows of users whose inputs have not changed.

        Args:
            lengths_U: how many items in this run's lists have; a row of another length is not whole.
        """
        rows = self.read(shard)
        known = self.read_inputs(shard_name(shard))
        if rows is None or known is None:
            return SCHEMA.empty_table()
        same_U = np.isin(digests_U, known.column("digest").to_numpy())
        rows = rows.filter(pc.is_in(rows.column("user_id"), users.user_ids.filter(pa.array(same_U))))
        at = pc.index_in(rows.column("user_id"), users.user_ids).to_numpy()
        return rows.filter(pa.array(pc.list_value_length(rows.column("items")).to_numpy() == lengths_U[at]))


def find_table(storage: Storage, key: str) -> pa.Table | None:
    try:
        return from_parquet(storage.read(key))
    except FileNotFoundError:
        return None


def inputs_key(run_date: date | str, run_id: str, name: str) -> str:
    return f"_inputs/run_date={run_date}/{run_id}/{name}"
