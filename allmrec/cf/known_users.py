"""Users' vectors as they were made last: one who is asked about again with the same history costs nothing.

For teachers that read words: an evaluation asks for the same users by several protocols.

Dimensions: U users, K known ones, V of the vectors
"""

from collections.abc import Callable

import numpy as np
import torch

from allmrec.core.hashing import mix64
from allmrec.data.sequences import Sequences


class KnownUsers:
    """The users of the last call, with what was read of them."""

    def __init__(self) -> None:
        self._known_K, self._known_KV = np.zeros(0, dtype=np.uint64), torch.zeros(0)

    def represent(
        self, shown: Sequences, users_UV: torch.Tensor, read: Callable[[Sequences], torch.Tensor]
    ) -> torch.Tensor:
        """Fill in the vectors of users with a history, and return them.

        Args:
            shown: histories as far as they are read.
            users_UV: zeros.
            read: vectors of some of them.
        """
        keys_U = _keys(shown)
        at_U = np.searchsorted(self._known_K, keys_U).clip(max=max(len(self._known_K) - 1, 0))
        known_U = self._known_K[at_U] == keys_U if len(self._known_K) else np.zeros(len(keys_U), dtype=bool)
        if known_U.any():
            users_UV[np.flatnonzero(known_U)] = self._known_KV[at_U[known_U]]
        requested = np.flatnonzero(~known_U & (shown.lengths > 0))
        if len(requested):
            users_UV[requested] = read(shown.take(requested))
            self._known_K, first = np.unique(keys_U, return_index=True)
            self._known_KV = users_UV[first]
        return users_UV


def _keys(shown: Sequences) -> np.ndarray:
    """uint64 (U,): of a user with a history as it is shown."""
    keys_U = shown.hashes()
    padded = shown.padded(max(int(shown.lengths.max(initial=0)), 1))
    for column in padded.T.astype(np.uint64):
        keys_U = np.where(column > 0, mix64(keys_U ^ column), keys_U)
    return keys_U
