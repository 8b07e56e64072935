"""Exact retrieval and ranks equal brute force, whatever is seen, unavailable or tied, and hold but a tile of scores."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allmrec.cf.retrieval import catalogue_ranks, retrieve
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


def drawn_pairs(rng: np.random.Generator, num_users: int, num_items: int) -> tuple[np.ndarray, tuple]:
    """Four seen items of each user, (U, 4), and the same as pairs in any order."""
    seen = rng.integers(1, num_items + 1, (num_users, 4))
    shuffled = rng.permutation(4 * num_users)
    rows = np.repeat(np.arange(num_users), 4)
    return seen, (torch.from_numpy(rows[shuffled]), torch.from_numpy(seen.ravel()[shuffled]))


@settings(max_examples=60, deadline=None)
@given(
    num_items=st.integers(1, 12) | st.integers(100, 300),
    num_users=st.integers(0, 9),
    count=st.integers(1, 15) | st.integers(60, 350),
    block=st.integers(1, 10),
    seed=st.integers(0, 10_000),
)
def test_retrieve_equals_brute_force(num_items, num_users, count, block, seed):
    rng = np.random.default_rng(seed)
    teacher = Lookup(num_items, seed)
    x = teacher.table[rng.integers(1, num_items + 1, num_users)]
    seen, pairs = drawn_pairs(rng, num_users, num_items)
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


@settings(max_examples=60, deadline=None)
@given(
    num_items=st.integers(1, 12) | st.integers(100, 300),
    num_users=st.integers(0, 9),
    block=st.integers(1, 10),
    seed=st.integers(0, 10_000),
)
def test_ranks_equal_brute_force(num_items, num_users, block, seed):
    rng = np.random.default_rng(seed)
    teacher = Lookup(num_items, seed)
    x = teacher.table[rng.integers(1, num_items + 1, num_users)]
    seen, pairs = drawn_pairs(rng, num_users, num_items)
    targets = rng.integers(1, num_items + 1, num_users)

    better, tied = catalogue_ranks(teacher, x, torch.from_numpy(targets), pairs, block)

    for user, target in enumerate(targets):
        score_of = teacher.table @ x[user]
        others = [item for item in range(1, num_items + 1) if item != target and item not in seen[user]]
        assert better[user] == sum(bool(score_of[item] > score_of[target]) for item in others)
        assert tied[user] == sum(bool(score_of[item] == score_of[target]) for item in others)


@pytest.mark.parametrize("order", ["any", "rising", "equal"])
def test_it_is_a_stable_full_sort_in_tiles(order):
    """Over several of the widest tiles; scores that rise with the index are the hardest, equal ones the easiest."""
    num_items, generator = 10_000, torch.Generator().manual_seed(0)
    teacher = Lookup(num_items, 0)
    teacher.table = torch.randn(num_items + 1, 4, generator=generator)
    if order == "rising":
        teacher.table = (teacher.table / 1000 + torch.arange(num_items + 1)[:, None]).sort(0).values
    x = torch.zeros(3, 4) if order == "equal" else torch.rand(3, 4, generator=generator)
    available = torch.ones(num_items + 1, dtype=torch.bool)
    available[0] = False
    nothing = torch.zeros(0, dtype=torch.int64)
    items, scores = retrieve(teacher, x, (nothing, nothing), available, 20)
    expected = (x @ teacher.table.T)[:, 1:].sort(dim=1, descending=True, stable=True)
    assert items.tolist() == (expected.indices[:, :20] + 1).tolist()
    torch.testing.assert_close(scores, expected.values[:, :20])


@pytest.mark.parametrize("num_users", [1, 7, 300])
def test_items_with_equal_embeddings_are_tied_wherever_they_stand(num_users):
    """In tiles of other widths and blocks of other heights, whose products BLAS may round in other ways."""
    generator = torch.Generator().manual_seed(0)
    teacher, half = Lookup(1, 0), torch.randn(5003, 50, generator=generator)
    teacher.table = torch.cat([torch.zeros(1, 50), half, half])
    x, nothing = torch.randn(num_users, 50, generator=generator), torch.zeros(0, dtype=torch.int64)
    targets = torch.randint(1, 10_007, (num_users,), generator=generator)
    assert catalogue_ranks(teacher, x, targets, (nothing, nothing))[1].tolist() == [1] * num_users
    available = torch.ones(10_007, dtype=torch.bool)
    available[0] = False
    items, scores = retrieve(teacher, x, (nothing, nothing), available, 10)
    assert torch.equal(items[:, ::2] + 5003, items[:, 1::2]) and torch.equal(scores[:, ::2], scores[:, 1::2])


def test_memory_is_bounded_in_users_and_in_items():
    shapes = []

    class Counting(Lookup):
        def shared_scores(self, x_BD, items_K=None):
            shapes.append((len(x_BD), len(items_K)))
            return super().shared_scores(x_BD, items_K)

    teacher = Counting(20_000, 0)
    x, nothing = teacher.table[1:701], torch.zeros(0, dtype=torch.int64)
    available = torch.ones(20_001, dtype=torch.bool)
    available[0] = False
    retrieve(teacher, x, (nothing, nothing), available, 5)
    catalogue_ranks(teacher, x, torch.ones(700, dtype=torch.int64), (nothing, nothing))
    assert max(users * items for users, items in shapes) <= 2**20
    assert sum(users * items for users, items in shapes) < 2 * 700 * 20_000 * 1.02, "nothing is scored twice"
