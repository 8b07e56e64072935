"""Users' histories as flat arrays: what every model, sampler and job takes a batch of users from.

How much of a history trains, and in which order, is in the `sequences` table (`splits` decides it), and `read_train`
keeps to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from allmrec.core.artifacts import read_manifest, read_table
from allmrec.core.hashing import hash_strings, mix64
from allmrec.core.storage import Storage

_STRING_BYTES = 2**31 - 1  # that an array of strings with offsets of 32 bits has at most


@dataclass(frozen=True)
class Sequences:
    """U users' histories, ragged: user u holds `items[offsets[u] : offsets[u + 1]]`, oldest first."""

    user_ids: pa.Array  # string (U,), large_string beyond 2 GiB
    offsets: np.ndarray  # int64 (U + 1,)
    items: np.ndarray  # int32 (sum of lengths,)

    @classmethod
    def from_table(cls, table: pa.Table, column: str = "item_index") -> "Sequences":
        """From rows of the `sequences` table."""
        lists = table.column(column).combine_chunks()
        user_ids = table.column("user_id").combine_chunks()
        if isinstance(lists, pa.ChunkedArray):  # an empty table has no chunk to combine
            lists, user_ids = pa.array([], lists.type), pa.array([], pa.string())
        offsets = lists.offsets.to_numpy().astype(np.int64)
        return cls(user_ids, offsets - offsets[0], lists.flatten().to_numpy())

    @classmethod
    def read(cls, storage: Storage, shards: Sequence[int] | None = None) -> "Sequences":
        """From the stored `sequences` table, or some shards of it."""
        return cls.from_table(read_table(storage, shards))

    @classmethod
    def read_train(cls, storage: Storage, shards: Sequence[int] | None = None) -> "Sequences":
        """The training part of the stored `sequences`, or of some shards of it, without held-out users."""
        return cls.train_part(read_table(storage, shards))

    @classmethod
    def train_part(cls, table: pa.Table) -> "Sequences":
        """As `read_train`, of rows of the table."""
        if "train_item_index" in table.column_names:
            users = cls.from_table(table, "train_item_index")
        else:
            users = cls.from_table(table).shortened(table.column("train_length").to_numpy().astype(np.int64))
        return users.take(np.flatnonzero(users.lengths))

    @classmethod
    def none(cls) -> "Sequences":
        """Of no users."""
        return cls(pa.array([], pa.string()), np.zeros(1, np.int64), np.zeros(0, np.int32))

    @classmethod
    def concat(cls, parts: Sequence["Sequences"]) -> "Sequences":
        """The users of one or more, one after another."""
        user_ids = [part.user_ids for part in parts]
        if sum(ids.nbytes for ids in user_ids) > _STRING_BYTES:
            user_ids = [ids.cast(pa.large_string()) for ids in user_ids]
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(pa.concat_arrays(user_ids), offsets_of(lengths), np.concatenate([part.items for part in parts]))

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def lengths(self) -> np.ndarray:
        """int64 (U,)"""
        return np.diff(self.offsets)

    def hashes(self) -> np.ndarray:
        """uint64 (U,), what random draws are keyed by."""
        return hash_strings(self.user_ids)

    def shortened(self, lengths: np.ndarray) -> "Sequences":
        """The first `lengths[u]` items of every user."""
        assert len(lengths) == len(self) and (lengths <= self.lengths).all()
        return Sequences(self.user_ids, offsets_of(lengths), self.items[ranges(self.offsets[:-1], lengths)])

    def take(self, users: np.ndarray) -> "Sequences":
        """The given users (positions), in that order."""
        lengths = self.lengths[users]
        items = self.items[ranges(self.offsets[:-1][users], lengths)]
        return Sequences(self.user_ids.take(pa.array(users)), offsets_of(lengths), items)

    def last(self, count: int) -> "Sequences":
        """The newest `count` items of every user."""
        lengths = np.minimum(self.lengths, count)
        return Sequences(self.user_ids, offsets_of(lengths), self.items[ranges(self.offsets[1:] - lengths, lengths)])

    def newest_first(self) -> "Sequences":
        """Every user's items in the opposite order."""
        ends = np.repeat(self.offsets[:-1] + self.offsets[1:] - 1, self.lengths)
        return Sequences(self.user_ids, self.offsets, self.items[ends - np.arange(len(self.items))])

    def shuffled(self, key: np.uint64, keep_last: bool = False) -> "Sequences":
        """Every user's items in an order that is drawn by user.

        Args:
            keep_last: the newest item keeps its place.
        """
        rows = self.rows()
        place = np.arange(len(self.items)) - self.offsets[rows]
        drawn = mix64(mix64(self.hashes() ^ key)[rows] ^ place.astype(np.uint64))
        last = place + keep_last == self.lengths[rows]
        return Sequences(self.user_ids, self.offsets, self.items[np.lexsort((drawn, last, rows))])

    def renumbered(self, index_I: np.ndarray) -> "Sequences":
        """The same users under other item indices, without the items that have none (0)."""
        items = index_I[self.items].astype(np.int32)
        kept = items > 0
        lengths = np.diff(np.append(0, np.cumsum(kept))[self.offsets])
        return Sequences(self.user_ids, offsets_of(lengths), items[kept])

    def padded(self, width: int) -> np.ndarray:
        """int32 (U, width): the newest items, right-aligned, zeros before them."""
        recent = self.last(width)
        out = np.zeros((len(self), width), dtype=np.int32)
        lengths = recent.lengths
        columns = np.arange(len(recent.items)) - np.repeat(recent.offsets[:-1] - (width - lengths), lengths)
        out[recent.rows(), columns] = recent.items
        return out

    def rows(self) -> np.ndarray:
        """int64 (sum of lengths,): which user each entry of `items` belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)


def num_shards(storage: Storage) -> int:
    """How many shards a table has."""
    return len(read_manifest(storage).files)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Positions `starts[i] ... starts[i] + lengths[i] - 1`, one range after another."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
