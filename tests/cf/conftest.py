"""Small histories for the teacher's tests."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from allmrec.data.sequences import Sequences


def ragged(histories: Sequence[Sequence[int]]) -> Sequences:
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64)
    items = np.array([item for history in histories for item in history], dtype=np.int32)
    return Sequences(pa.array([f"user-{row}" for row in range(len(histories))]), offsets, items)


def cycles(num_users: int, num_items: int, length: int) -> Sequences:
    """A rule to learn: after item i comes i + 1, after the last comes 1."""
    starts = np.random.default_rng(0).integers(0, num_items, num_users)
    return ragged(((starts[:, None] + np.arange(length)) % num_items + 1).tolist())


def training_part(sequences: Sequences) -> Sequences:
    """Without the two newest items (leave-one-out)."""
    return sequences.shortened(sequences.lengths - 2)
