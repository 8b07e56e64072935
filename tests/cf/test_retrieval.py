"""Exact retrieval equals brute force, whatever is seen, unavailable or tied."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allmrec.cf.retrieval import retrieve
from allmrec.cf.teacher import Teacher
from allmrec.data.sequences import Sequences


class Lookup(Teacher):
    """Small integers, so that ties abound."""

    def __init__(self, num_items: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randint(-1, 2, (num_items + 1, 2), generator=generator).float()
        self.table[0] = 0

    @property
    def item_embeddings(self) -> torch.Tensor:
        return self.table

    def represent(self, histories: Sequences) -> torch.Tensor:
        raise NotImplementedError


@settings(max_examples=60, deadline=None)
@given(
    num_items=st.integers(1, 12),
    num_users=st.integers(0, 9),
    count=st.integers(1, 15),
    block=st.integers(1, 10),
    seed=st.integers(0, 10_000),
)
def test_retrieve_equals_brute_force(num_items, num_users, count, block, seed):
    rng = np.random.default_rng(seed)
    teacher = Lookup(num_items, seed)
    x = teacher.table[rng.integers(1, num_items + 1, num_users)]
    seen = rng.integers(1, num_items + 1, (num_users, 4))
    rows = np.repeat(np.arange(num_users), 4)
    shuffled = rng.permutation(len(rows))
    pairs = torch.from_numpy(rows[shuffled]), torch.from_numpy(seen.ravel()[shuffled])
    available = torch.from_numpy(np.concatenate([[False], rng.random(num_items) < 0.8]))

    items, scores = retrieve(teacher, x, pairs, available, count, block)

    assert items.shape == scores.shape == (num_users, count) and items.dtype == torch.int32
    for user in range(num_users):
        score_of = teacher.table @ x[user]
        left = [item for item in range(1, num_items + 1) if available[item] and item not in seen[user]]
        best = sorted(left, key=lambda item: (-score_of[item].item(), item))[:count]
        padding = count - len(best)
        assert items[user].tolist() == best + [0] * padding
        assert scores[user].tolist() == [score_of[item].item() for item in best] + [-np.inf] * padding
