"""Stored evaluation cases, read: each with its user's history of that time.

Training validates on them, the blend fits its weight on them, the evaluation compares systems on them. Leaves how they
are drawn to `allmrec.data.evaluation_cases`.

Dimensions: B cases, C candidates (the target first)
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import read_table
from allmrec.core.hashing import Draw, draws, hash_strings, key64, uniforms
from allmrec.core.storage import Storage
from allmrec.data.sequences import Sequences


@dataclass(frozen=True)
class Cases:
    """Cases of one split and protocol, the target first among the candidates."""

    user_ids: pa.Array  # string (B,)
    histories: Sequences  # of B users; another user's in the swap
    candidates_BC: np.ndarray  # int32, zeros are no candidates
    warm_B: np.ndarray  # bool: of the target
    cold_B: np.ndarray

    @classmethod
    def read(cls, cases: Storage, sequences: Storage, shards: list[int], split: str, protocol: str) -> "Cases":
        """Those of some shards of the stored tables."""
        return cls.select(read_table(cases, shards), Sequences.read(sequences, shards), split, protocol)

    @classmethod
    def select(cls, table: pa.Table, sequences: Sequences, split: str, protocol: str) -> "Cases":
        """Those of one split and protocol from rows of `evaluation_cases`, joined with their users' sequences."""
        wanted = pc.and_(pc.equal(table.column("split"), split), pc.equal(table.column("protocol"), protocol))
        table = table.filter(wanted).combine_chunks()
        user_ids = pa.concat_arrays([pa.array([], pa.string()), *table.column("user_id").chunks])
        users = pc.index_in(user_ids, value_set=sequences.user_ids)
        assert users.null_count == 0, "every case is of a user of its shard"
        lists = pa.concat_arrays([pa.array([], pa.list_(pa.int32())), *table.column("candidates").chunks])
        lengths = np.diff(lists.offsets.to_numpy())
        candidates = lists.flatten().to_numpy().reshape(len(lists), -1 if len(lists) else 1).copy()
        assert (lengths == candidates.shape[1]).all()
        return cls(
            user_ids,
            sequences.take(users.to_numpy()).shortened(table.column("history_length").to_numpy()),
            candidates,
            table.column("warm").to_numpy(),
            table.column("cold").to_numpy(),
        )

    def __len__(self) -> int:
        return len(self.user_ids)

    @cached_property
    def hashes(self) -> np.ndarray:
        """uint64 (B,), of the users whose candidates these are."""
        return hash_strings(self.user_ids)

    @property
    def subsets(self) -> dict[str, np.ndarray]:
        return {"all": np.ones(len(self), dtype=bool), "warm": self.warm_B, "cold": self.cold_B}

    def take(self, rows: np.ndarray) -> "Cases":
        return Cases(
            self.user_ids.take(pa.array(rows)),
            self.histories.take(rows),
            self.candidates_BC[rows],
            self.warm_B[rows],
            self.cold_B[rows],
        )

    def renumbered(self, index_I: np.ndarray) -> "Cases":
        """The same cases under other item indices, without those whose target has none (0)."""
        cases = self.take(np.flatnonzero(index_I[self.candidates_BC[:, 0]])) if len(self) else self
        candidates_BC = index_I[cases.candidates_BC].astype(np.int32)
        return replace(cases, histories=cases.histories.renumbered(index_I), candidates_BC=candidates_BC)

    def blocks(self, size: int) -> Iterator["Cases"]:
        for first in range(0, len(self), size):
            yield self.take(np.arange(first, min(first + size, len(self))))

    def sample(self, share: float, seed: int) -> "Cases":
        """Those of about this share of the users, drawn by hash."""
        return self.take(
            np.flatnonzero(uniforms(self.hashes, key64(seed, Draw.EVALUATION_GENERATION), 1)[:, 0] < share)
        )

    def shuffled(self, seed: int) -> "Cases":
        """Every user with the same history in a drawn order."""
        return replace(self, histories=self.histories.shuffled(key64(seed, Draw.EVALUATION_ORDER)))

    def swapped(self, seed: int) -> "Cases":
        """Every user with the history of the next one in a shuffled circle. A single user has no partner: no cases."""
        if len(self) < 2:
            return self.take(np.arange(0))
        circle = np.argsort(draws(self.hashes, key64(seed, Draw.EVALUATION_PARTNERS), 1)[:, 0], kind="stable")
        partner = np.empty(len(self), dtype=np.int64)
        partner[circle] = np.roll(circle, -1)
        return replace(self, histories=self.histories.take(partner))
