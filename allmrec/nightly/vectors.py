"""LLM-SRec's vectors in a run: read off the LLM once, and kept for as long as what they are made of stays the same.

A user's vector depends on the history that a prompt shows, and on the models; not on candidates. So it is kept where
the row is not: a catalogue that gains an item costs no user a prompt. Beside the digests of `reuse` are

    _inputs/run_date=D/<run id>/users/part-00003.parquet    users' vectors, each with the digest of what it is made of
    _inputs/run_date=D/<run id>/new_items.parquet           those of the items that are new since training

The second is written by the worker that comes first, and taken by all. Leaves to `score` when the LLM may be asked.

Dimensions: U users of a shard, I = n + 1 items (0 is padding), K kept, V readout dim
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from allmrec.bundle.description import part_of_system
from allmrec.cf.retrieval import refuse_nonfinite
from allmrec.cf.teacher import Teacher
from allmrec.core.artifacts import shard_name, to_parquet
from allmrec.core.columns import to_lists
from allmrec.core.rows import shared
from allmrec.data.sequences import Sequences
from allmrec.model import ALLMRec
from allmrec.nightly.filters import ItemFilter
from allmrec.nightly.reuse import PreviousRun, find_table, history_digests, inputs_key, keyed
from allmrec.publishing.run import Run, stamped
from allmrec.publishing.vectors import IDS, schema_of

_USERS, _NEW_ITEMS = "users", "new_items.parquet"
_KEPT = ("digest", "vector")  # columns of what is kept
NAME = "llm-srec"


@dataclass
class UserVectors:
    """A shard's users; rows of those who are not known yet are zeros."""

    users: Sequences
    digests_U: np.ndarray  # uint64
    vectors_UV: np.ndarray  # float32
    known_U: np.ndarray  # bool
    read: int = 0  # of which the LLM was asked for in this run

    @property
    def counts(self) -> dict[str, int]:
        return {"vectors_read": self.read, "vectors_reused": int(self.known_U.sum()) - self.read}

    def unknown(self, rows: np.ndarray) -> np.ndarray:
        """Those of some rows that the LLM must be asked for. Of a user without a history it knows nothing."""
        return rows[~self.known_U[rows] & (self.users.lengths[rows] > 0)]


class StoredVectors(Teacher):
    """Items by their vectors, for users whose vectors are at hand as well: it asks no LLM."""

    def __init__(self, vectors_IV: torch.Tensor):
        super().__init__()
        self.register_buffer("vectors", vectors_IV, persistent=False)

    @property
    def item_embeddings(self) -> torch.Tensor:
        return self.get_buffer("vectors")

    def represent(self, histories: Sequences) -> torch.Tensor:
        raise NotImplementedError("users' vectors come from UserVectors")


class NightlyVectors:
    """Of one worker of a run."""

    def __init__(
        self,
        model: ALLMRec,
        run: Run,
        previous: PreviousRun | None,
        shown_I: np.ndarray,
        description: Mapping[str, Any],
    ):
        """
        Args:
            previous: the run whose vectors may be taken.
            shown_I: of `reuse.item_digests`.
            description: of the bundle.
        """
        self.model, self.run, self.previous, self.shown_I = model, run, previous, shown_I
        parts = {name: description["parts"][name] for name in ("teacher", "alignment")}
        kept = {name: run.identity[name] for name in ("llm", "dtype", "algorithm")}
        prompt = description["config"]["prompt"]
        self.made_with = {**kept, **parts, **part_of_system(description, NAME), "prompt": prompt}

    @cached_property
    def items(self) -> StoredVectors:
        """All items. The LLM reads those that are new since training, unless a worker of this run or the run before
        has asked it.

        Raises:
            ValueError: a vector is NaN or inf; names items.
        """
        stored_IV = self.model.readout[1]
        new = self.model.bundle.new_N.nonzero()[:, 0].numpy()
        if len(new):
            stored_IV = stored_IV.replaced(torch.from_numpy(new), torch.tensor(self._new_items(new)))
        vectors_IV = shared(stored_IV)
        refuse_nonfinite(vectors_IV, self.model.bundle.catalogue.item_ids, "reads items", NAME)
        return StoredVectors(vectors_IV.to(self.model.device))

    def of_users(self, shard: int, users: Sequences) -> UserVectors:
        """The users with the vectors that are known from the run before."""
        shown = users.last(self.model.bundle.prompt.max_history)
        digests_U = keyed(history_digests(shown, self.shown_I), self.made_with)
        table = self.previous and self.previous.read_inputs(_of_shard(shard), _KEPT)
        return UserVectors(users, digests_U, *_looked_up(table, digests_U, self.model.readout[1].shape[1]))

    def ask(self, found: UserVectors, rows: np.ndarray) -> None:
        """Have the LLM read those of some rows that are not known.

        Raises:
            ValueError: it gave NaN or inf; names users.
        """
        rows = found.unknown(rows)
        if not len(rows):
            return
        users = found.users.take(rows)
        vectors_UV = self.model.llm_srec.represent(users)
        refuse_nonfinite(vectors_UV, users.user_ids, "reads users", NAME)
        found.vectors_UV[rows], found.known_U[rows] = vectors_UV.cpu().numpy(), True
        found.read += len(rows)

    def keep(self, shard: int, found: UserVectors) -> None:
        """For the next run. Every attempt at a shard writes the same."""
        known = np.flatnonzero(found.known_U)
        ids = found.users.user_ids.take(pa.array(known))
        self.run.storage.write(
            self._key(_of_shard(shard)), _to_table(found.digests_U[known], found.vectors_UV[known], user_id=ids)
        )

    def tables(self, found: UserVectors, item_ids: pa.Array, items: np.ndarray) -> dict[str, pa.Table]:
        """What a shard publishes: its users with a history, and some items; see `schemas`."""
        known = np.flatnonzero(found.known_U)
        vectors_MV = self.items.item_embeddings[torch.from_numpy(items)].cpu().numpy()
        found_rows = {
            "users": (found.users.user_ids.take(pa.array(known)), found.vectors_UV[known]),
            "items": (item_ids.take(pa.array(items)), vectors_MV),
        }
        tables = {
            kind: pa.table({IDS[kind]: ids, "vector": to_lists(vectors)}) for kind, (ids, vectors) in found_rows.items()
        }
        return {kind: stamped(table, self.run, schema_of(kind, table)) for kind, table in tables.items()}

    def scores(self, vectors_UV: np.ndarray, candidates_UN: np.ndarray) -> np.ndarray:
        """Products of users' and their candidates' vectors, float32 (U, N)."""
        x_UV, items_UN = (torch.from_numpy(part).to(self.model.device) for part in (vectors_UV, candidates_UN))
        return self.items.scores(x_UV, items_UN.long()).cpu().numpy()

    def _new_items(self, new: np.ndarray) -> np.ndarray:
        """float32 (M, V)"""
        key, dim = self._key(_NEW_ITEMS), self.model.readout[1].shape[1]
        if (winner := find_table(self.run.storage, key)) is None:
            digests_M = keyed(self.shown_I[new], self.made_with)
            kept = self.previous and self.previous.read_inputs(_NEW_ITEMS, _KEPT)
            vectors_MV, known_M = _looked_up(kept, digests_M, dim)
            if len(unknown := np.flatnonzero(~known_M)):
                vectors_MV[unknown] = self.model.llm_srec.vectors_of(new[unknown]).cpu().numpy()
            self.run.storage.create(key, _to_table(digests_M, vectors_MV))
            winner = find_table(self.run.storage, key)
            assert winner is not None
        return _matrix(winner)

    def _key(self, name: str) -> str:
        return inputs_key(self.run.run_date, self.run.run_id, name)


def items_of_shard(filter: ItemFilter, shard: int, num_shards: int) -> np.ndarray:
    """The items that are published with a shard: all that may be recommended, divided over the shards."""
    return np.flatnonzero(filter.allowed_I)[shard::num_shards]


def _of_shard(shard: int) -> str:
    return f"{_USERS}/{shard_name(shard)}"


def _looked_up(kept: pa.Table | None, digests: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The kept vectors by digest, float32 (U, V) with zeros for the others; and which are there, bool (U,)."""
    vectors_UV, known_U = np.zeros((len(digests), dim), dtype=np.float32), np.zeros(len(digests), dtype=bool)
    if kept is not None and len(kept):
        digests_K = kept.column("digest").to_numpy()
        order = digests_K.argsort()
        at = order[np.searchsorted(digests_K, digests, sorter=order).clip(max=len(order) - 1)]
        known_U = digests_K[at] == digests
        if known_U.any():  # else they may be of another model, with another dim
            vectors_UV[known_U] = _matrix(kept)[at[known_U]]
    return vectors_UV, known_U


def _to_table(digests: np.ndarray, vectors_KV: np.ndarray, **ids: pa.Array) -> bytes:
    columns = {**ids, "digest": digests, "vector": to_lists(vectors_KV)}
    return to_parquet(pa.table(columns), dictionary=False)


def _matrix(table: pa.Table) -> np.ndarray:
    column = table.column("vector")
    values = column.combine_chunks().flatten().to_numpy()
    return values.reshape(len(table), column.type.list_size)
