"""CTRL's similarity and loss against loops and formulas."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from allmrec.cf.contrastive import ContrastiveHeads, PretrainingConfig, contrastive_loss, max_sim

SIZES = st.integers(1, 5)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(queries=SIZES, keys=SIZES, subspaces=SIZES, dim=SIZES)
def test_max_sim_is_the_sum_of_the_greatest_products(queries, keys, subspaces, dim):
    query_BMP, key_KMP = drawn(queries, subspaces, dim), drawn(keys, subspaces, dim, seed=1)
    expected = torch.tensor(
        [[sum(max(float(q @ k) for k in key) for q in query) for key in key_KMP] for query in query_BMP]
    )
    torch.testing.assert_close(max_sim(query_BMP, key_KMP), expected)


def test_one_subspace_is_symmetric_and_several_are_not():
    for subspaces, same in ((1, True), (3, False)):
        users, texts = drawn(4, subspaces, 6), drawn(4, subspaces, 6, seed=1)
        assert torch.allclose(max_sim(users, texts), max_sim(texts, users).T, atol=1e-6) == same


def test_the_loss_is_cross_entropy_both_ways():
    users, texts = drawn(5, 1, 4), drawn(5, 1, 4, seed=1)
    scores_BB = users[:, 0] @ texts[:, 0].T / 0.7
    expected = (F.cross_entropy(scores_BB, torch.arange(5)) + F.cross_entropy(scores_BB.T, torch.arange(5))) / 2
    torch.testing.assert_close(contrastive_loss(users, texts, 0.7), expected)


def test_heads_map_both_sides_into_the_same_subspaces():
    heads = ContrastiveHeads(PretrainingConfig(subspaces=3, dim=4), user_dim=8, text_dim=5)
    assert heads.users(drawn(2, 8)).shape == heads.texts(drawn(2, 5)).shape == (2, 3, 4)
    x_BD = drawn(2, 8)
    torch.testing.assert_close(heads.users(x_BD)[:, 1], heads.user[1](heads.user[0](x_BD))[:, 4:8])
