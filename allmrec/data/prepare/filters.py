"""Which interactions of the histories become `sequences`: repeats, rare items, short histories, a longest history.

In that order. Rare items and users with few interactions are counted once, both in the whole log (the preprocessing of
Kang & McAuley 2018, section IV-A, which the paper's section 5.1 follows), or again and again until none is left: the
k-core. Vectorised over shards of users; what must be known of all users together is how often each item occurs.

Dimensions: I = n + 1 items (0 is padding), S interactions
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from allmrec.core.mapped_columns import MappedColumns
from allmrec.core.storage import Storage
from allmrec.data.config import DataConfig
from allmrec.data.sequences import Sequences


@dataclass(frozen=True)
class FrequentItems:
    """Which of n items are not too rare: all of them, or what a draft says, which tasks carry the name of."""

    num_items: int
    columns: MappedColumns | None = None  # `frequent`, bool (I,)

    def mask(self) -> np.ndarray:
        """bool (I,)."""
        if self.columns is None:
            return np.arange(self.num_items + 1) > 0
        return self.columns.read().column("frequent").to_numpy(zero_copy_only=False)

    def with_at_least(self, least: int, counts: MappedColumns, drafts: Storage, name: str) -> "FrequentItems | None":
        """Those of them that occur so often; None where that is all of them.

        Args:
            counts: `kept`, int64 (I,).
        """
        mask_I = self.mask()
        left_I = mask_I & (counts.read().column("kept").to_numpy() >= least)
        if (left_I == mask_I).all():
            return None
        return FrequentItems(self.num_items, MappedColumns.write(drafts, name, pa.table({"frequent": left_I})))


def keep_mask(users: Sequences, data: DataConfig, frequent_I: np.ndarray) -> np.ndarray:
    """Which interactions become part of `sequences`: bool (S,)."""
    kept_S = deduplicate_mask(users, data)
    if not data.k_core:
        kept_S = min_count_mask(users, kept_S, data.min_user_interactions) & frequent_I[users.items]
    else:
        kept_S = min_count_mask(users, kept_S & frequent_I[users.items], data.min_user_interactions)
    if data.max_history is None:
        return kept_S
    rows, counts = users.rows(), _counts(users, kept_S)
    rank_S = np.cumsum(kept_S) - np.append(0, np.cumsum(counts))[rows]  # 1 is a user's oldest that is kept
    return kept_S & (rank_S > counts[rows] - data.max_history)


def item_counts(users: Sequences, data: DataConfig, frequent_I: np.ndarray, min_user: int) -> np.ndarray:
    """How often the items of `frequent_I` occur in the histories that hold `min_user` of them: int64 (I,)."""
    kept_S = min_count_mask(users, frequent_I[users.items] & deduplicate_mask(users, data), min_user)
    return np.bincount(users.items[kept_S], minlength=len(frequent_I))


def deduplicate_mask(users: Sequences, data: DataConfig) -> np.ndarray:
    """bool (S,): the first or the last of a user's interactions with one item, or all of them."""
    if data.deduplicate == "keep":
        return np.ones(len(users.items), dtype=bool)
    pairs = (users.rows() << 32) | users.items
    if data.deduplicate == "first":
        positions = np.unique(pairs, return_index=True)[1]
    else:
        positions = len(pairs) - 1 - np.unique(pairs[::-1], return_index=True)[1]
    kept_S = np.zeros(len(pairs), dtype=bool)
    kept_S[positions] = True
    return kept_S


def min_count_mask(users: Sequences, kept_S: np.ndarray, least: int) -> np.ndarray:
    """`kept_S` without that of users who keep fewer than `least`."""
    return kept_S & np.repeat(_counts(users, kept_S) >= least, users.lengths)


def _counts(users: Sequences, kept_S: np.ndarray) -> np.ndarray:
    """How many interactions each user keeps: int64 (U,)."""
    return np.diff(np.append(0, np.cumsum(kept_S))[users.offsets])
