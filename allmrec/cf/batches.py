"""Batches of training users, part by part: who is in which depends on keys and users' ids alone."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from allmrec.core.hashing import draws
from allmrec.data.sequences import Sequences
from allmrec.data.training_users import Part, learnable, shuffled

_WINDOW = 32  # batches among which users are sorted by length, to pad less


class UserBatches:
    """The users with something to predict, one part of them in memory at a time. A batch is of one part."""

    sequences: Sequences  # of the part in memory, cut to `longest`
    hashes: np.ndarray

    def __init__(self, parts: Sequence[Part], longest: int):
        self.parts, self.longest = parts, longest
        self.part = -1  # which one is in memory

    def of_epoch(self, size: int, key: np.uint64, part_key: np.uint64) -> Iterator[np.ndarray]:
        """Global batches as positions of users in `self.sequences`, of similar length within each."""
        for part in shuffled(np.arange(len(self.parts)), part_key):
            self.hold(part)
            order = draws(self.hashes, key, 1)[:, 0].argsort(kind="stable")
            window = np.arange(len(order)) // (size * _WINDOW)
            order = order[np.lexsort((self.sequences.lengths[order], window))]
            for batch in shuffled(np.arange(math.ceil(len(order) / size)), key):
                yield order[batch * size : (batch + 1) * size]

    def hold(self, part: int) -> None:
        """Read a part's users."""
        if part == self.part:
            return
        self.sequences = learnable(self.parts[part]()).last(self.longest)
        self.hashes = self.sequences.hashes()
        self.part = part
