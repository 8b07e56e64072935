"""Which embedding represents an item downstream of Stage-1: e_i, or q_i if the teacher has hardly seen it.

Stage-2, its validation, bundles and all that load them take the one rule that is here, so that F_I projects in
training what it projects afterwards.

Dimensions: N = n + 1 items (0 is padding), D = teacher's dim, J = joint dim
"""

from dataclasses import dataclass

import numpy as np
import torch

from allmrec.core.rows import Rows, Table


@dataclass(frozen=True)
class EmbeddingChoice:
    """Why items are shown by q_i; bool (N,) each."""

    few_N: torch.Tensor  # too few training interactions: E_i has learnt next to nothing
    unknown_N: torch.Tensor  # no E_i: an external teacher's unknown items, and padding

    @classmethod
    def of(cls, popularity_N: np.ndarray, items_ND: torch.Tensor, min_interactions_for_cf: int) -> "EmbeddingChoice":
        """
        Args:
            popularity_N: training interactions by item index.
            items_ND: E_i; zeros where the teacher has none.
            min_interactions_for_cf: interactions (`bundle.min_interactions_for_cf`).
        """
        return cls(torch.from_numpy(popularity_N < min_interactions_for_cf), ~items_ND.detach().cpu().any(1))

    @property
    def uses_text_N(self) -> torch.Tensor:
        """bool (N,): the items that q_i shows."""
        return self.few_N | self.unknown_N

    def joint(self, e_NJ: Table, q_NJ: Table) -> Rows:
        """The joint embeddings in their forms, (N, J)."""
        return Rows.of(q_NJ).where(self.uses_text_N, e_NJ)

    def embedding_counts(self) -> dict[str, int]:
        """How many items are shown by e_i, and how many by q_i and why; without padding."""
        few_I, unknown_I = self.few_N[1:], self.unknown_N[1:]
        return {
            "items by e_i": int((~few_I & ~unknown_I).sum()),
            "items by q_i, too few interactions": int((few_I & ~unknown_I).sum()),
            "items by q_i, no E_i": int(unknown_I.sum()),
        }
