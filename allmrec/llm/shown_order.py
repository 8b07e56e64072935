"""The order in which a prompt shows each user's candidates: drawn by user, so that a place tells nothing of them.

Training showed the target anywhere; a prompt in the order of the teacher, or with the target first, would give it away.

Dimensions: B prompts, C candidates
"""

from dataclasses import dataclass

import numpy as np

from allmrec.core.hashing import permutations


@dataclass(frozen=True)
class ShownOrder:
    """int64 (B, C): which candidate is shown at each place."""

    order_BC: np.ndarray

    @classmethod
    def draw(cls, hashes_B: np.ndarray, key: np.uint64, num_candidates: int) -> "ShownOrder":
        """A permutation for each user, who has the same one in every batch.

        Args:
            hashes_B: uint64, of the users.
            key: the purpose's, from `key64`.
        """
        return cls(permutations(hashes_B, key, num_candidates))

    def shown(self, candidates_BC: np.ndarray) -> np.ndarray:
        """The candidates as the prompt shows them."""
        return np.take_along_axis(candidates_BC, self.order_BC, axis=1)

    def unshuffled(self, scores_BC: np.ndarray) -> np.ndarray:
        """Scores of what was shown, in the order of the candidates."""
        out_BC = np.empty_like(scores_BC)
        np.put_along_axis(out_BC, self.order_BC, scores_BC, axis=1)
        return out_BC
