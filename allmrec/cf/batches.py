"""Batches of training users, part by part: who is in which depends on keys and users' ids alone."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from allmrec.core.artifacts import read_manifest
from allmrec.core.hashing import draws
from allmrec.core.storage import Storage
from allmrec.data.sequences import Sequences

_WINDOW = 32  # batches among which users are sorted by length, to pad less
_USER_BYTES = 64  # of a user in memory, beside the items: id, hash and offset

Part = Callable[[], Sequences]  # reads the training sequences of some users


def training_parts(storage: Storage, memory_mb: int) -> list[Part]:
    """The stored `sequences` in the fewest parts of which each fits into `memory_mb`, at least a shard each."""
    manifest = read_manifest(storage)
    needed = 4 * manifest.stats["interactions"] + _USER_BYTES * manifest.rows
    count = min(math.ceil(needed / (memory_mb * 2**20)), len(manifest.files))
    shards = np.array_split(np.arange(len(manifest.files)), max(count, 1))
    return [partial(Sequences.read_train, storage, part.tolist()) for part in shards]


class UserBatches:
    """The users with something to predict, one part of them in memory at a time. A batch is of one part."""

    sequences: Sequences  # of the part in memory, cut to `longest`
    hashes: np.ndarray

    def __init__(self, parts: Sequence[Part], longest: int):
        self.parts, self.longest = parts, longest
        self.part = -1  # which one is in memory

    def of_epoch(self, size: int, key: np.uint64, part_key: np.uint64) -> Iterator[np.ndarray]:
        """Global batches as positions of users in `self.sequences`, of similar length within each."""
        for part in _shuffled(np.arange(len(self.parts)), part_key):
            self.hold(part)
            order = draws(self.hashes, key, 1)[:, 0].argsort(kind="stable")
            window = np.arange(len(order)) // (size * _WINDOW)
            order = order[np.lexsort((self.sequences.lengths[order], window))]
            for batch in _shuffled(np.arange(math.ceil(len(order) / size)), key):
                yield order[batch * size : (batch + 1) * size]

    def hold(self, part: int) -> None:
        """Read a part's users."""
        if part == self.part:
            return
        sequences = self.parts[part]()
        learnable = np.flatnonzero(sequences.lengths >= 2)  # one item is a history without a next item
        self.sequences = sequences.take(learnable).last(self.longest)
        self.hashes = self.sequences.hashes()
        self.part = part


def _shuffled(numbers: np.ndarray, key: np.uint64) -> np.ndarray:
    return numbers[draws(numbers.astype(np.uint64), key, 1)[:, 0].argsort(kind="stable")]
