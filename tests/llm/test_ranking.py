"""Trie ranking against brute force: every candidate scored alone, token by token, with the same restriction."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from allmrec.llm.batches import SoftTokens
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Titles
from allmrec.llm.ranking import Ranker
from tests.llm.tiny import brute_force, histories, titles_array

WORDS = ["Moon", "Moon fall", "Garden", "II", "The Last", "Edition", "x"]
TITLE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(catalogue=st.lists(TITLE, min_size=3, max_size=12), data=st.data(), with_soft=st.booleans())
def test_equals_brute_force(tiny_llm, tiny_tokenizer, catalogue, data, with_soft):
    titles = Titles.tokenise(titles_array(catalogue), tiny_tokenizer, 24)
    builder = PromptBuilder(PromptConfig(), tiny_tokenizer, titles, soft=with_soft, max_tokens=400)
    items = st.integers(1, len(catalogue))
    users = data.draw(st.integers(1, 3))
    width = data.draw(st.integers(1, 8))
    candidates = np.array(
        data.draw(st.lists(st.lists(items, min_size=width, max_size=width), min_size=users, max_size=users)),
        dtype=np.int32,
    )
    history = histories(data.draw(st.lists(st.lists(items, max_size=3), min_size=users, max_size=users)))
    generator = torch.Generator().manual_seed(0)
    soft = with_soft and SoftTokens(
        torch.randn(users, 32, generator=generator), torch.randn(len(catalogue) + 1, 32, generator=generator)
    )
    found = np.exp(Ranker(tiny_llm, builder, tokens_per_batch=600).log_probabilities(history, candidates, soft or None))
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    for user in range(users):
        one = np.array([user])
        here = soft and SoftTokens(soft.user_BH[user : user + 1], soft.item_NH)
        expected = brute_force(tiny_llm, builder, history.take(one), candidates[user], here or None)
        np.testing.assert_allclose(found[user], expected, atol=1e-4)


def test_missing_candidates_and_order(tiny_llm, tiny_tokenizer):
    titles = Titles.tokenise(titles_array(["Moon", "Moon fall", "Garden"]), tiny_tokenizer, 24)
    builder = PromptBuilder(PromptConfig(), tiny_tokenizer, titles, soft=False, max_tokens=400)
    ranker = Ranker(tiny_llm, builder, tokens_per_batch=10_000)
    history = histories([[1], [2, 3]])
    full = ranker.log_probabilities(history, np.array([[1, 2, 3], [3, 2, 0]], dtype=np.int32))
    assert full[1, 2] == -np.inf
    np.testing.assert_allclose(np.exp(full).sum(axis=1), 1, atol=1e-5)
    alone = ranker.log_probabilities(history.take(np.array([1])), np.array([[3, 2]], dtype=np.int32))
    np.testing.assert_allclose(alone[0], full[1, :2], atol=1e-5)


def test_nan_names_the_users(tiny_llm, tiny_tokenizer):
    titles = Titles.tokenise(titles_array(["Moon", "Garden"]), tiny_tokenizer, 24)
    builder = PromptBuilder(PromptConfig(), tiny_tokenizer, titles, soft=True, max_tokens=400)
    soft = SoftTokens(torch.full((1, 32), torch.nan), torch.zeros(3, 32))
    with pytest.raises(ValueError, match="user-0"):
        Ranker(tiny_llm, builder, 1000).log_probabilities(histories([[1]]), np.array([[1, 2]], dtype=np.int32), soft)
