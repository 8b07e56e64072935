"""The one rule for which form shows an item."""

import numpy as np
import torch

from allmrec.alignment.joint import EmbeddingChoice
from allmrec.core.rows import whole


def test_few_interactions_or_no_e_i_make_the_text_embedding():
    popularity_N, items_ND = np.array([0, 3, 2, 5, 1]), torch.ones(5, 2)
    items_ND[[0, 3, 4]] = 0  # padding, and two that the teacher does not know
    choice = EmbeddingChoice.of(popularity_N, items_ND, min_interactions_for_cf=3)
    assert choice.uses_text_N.tolist() == [True, False, True, True, True]
    e_NJ, q_NJ = torch.arange(5.0)[:, None], -torch.arange(5.0)[:, None]
    assert whole(choice.joint(e_NJ, q_NJ)).flatten().tolist() == [0, 1, -2, -3, -4]
    assert list(choice.embedding_counts().values()) == [1, 1, 2]
    assert not EmbeddingChoice.of(popularity_N, torch.ones(5, 2), min_interactions_for_cf=0).uses_text_N.any()
