"""Trie ranking against brute force: every candidate scored alone, token by token, with the same restriction."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from allmrec.data.sequences import Sequences
from allmrec.llm.batches import SoftTokens, fill_slots
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Titles
from allmrec.llm.ranking import Ranker
from tests.llm.conftest import titles_array

WORDS = ["Moon", "Moon fall", "Garden", "II", "The Last", "Edition", "x"]
TITLE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)


def histories(lists):
    offsets = np.cumsum([0, *map(len, lists)])
    flat = np.array([item for items in lists for item in items], dtype=np.int32)
    return Sequences(pa.array([f"user-{n}" for n in range(len(lists))]), offsets, flat)


@torch.inference_mode()
def brute_force(llm, builder, history, candidates, soft):
    """P of one user's candidates: each title read alone behind the prompt, in a forward pass of its own."""
    prompts = builder.build(history, candidates[None, :])
    tokens = torch.from_numpy(prompts.tokens.astype(np.int64))[None]
    embeds = llm.get_input_embeddings()(tokens)
    if soft is not None:
        embeds = fill_slots(embeds, prompts, soft)
    titles = builder.titles
    paths = [
        (*titles.tokens[titles.offsets[item] : titles.offsets[item + 1]].tolist(), builder.end) for item in candidates
    ]
    probabilities = []
    for path in paths:
        read = llm.get_input_embeddings()(torch.tensor([path[:-1]], dtype=torch.int64))
        logits = llm(inputs_embeds=torch.cat([embeds, read], dim=1)).logits[0, -len(path) :].double()
        p = 1.0
        for depth, token in enumerate(path):
            choices = sorted({other[depth] for other in paths if other[:depth] == path[:depth]})
            p *= float(logits[depth, choices].softmax(0)[choices.index(token)])
        probabilities.append(p / paths.count(path))
    return np.array(probabilities)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(catalogue=st.lists(TITLE, min_size=3, max_size=12), data=st.data(), with_soft=st.booleans())
def test_equals_brute_force(llm, tokenizer, catalogue, data, with_soft):
    titles = Titles.tokenise(titles_array(catalogue), tokenizer, 24)
    builder = PromptBuilder(PromptConfig(), tokenizer, titles, soft=with_soft, max_tokens=400)
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
    found = np.exp(Ranker(llm, builder, tokens_per_batch=600).log_probabilities(history, candidates, soft or None))
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    for user in range(users):
        one = np.array([user])
        here = soft and SoftTokens(soft.user_BH[user : user + 1], soft.item_NH)
        expected = brute_force(llm, builder, history.take(one), candidates[user], here or None)
        np.testing.assert_allclose(found[user], expected, atol=1e-4)


def test_missing_candidates_and_order(llm, tokenizer):
    titles = Titles.tokenise(titles_array(["Moon", "Moon fall", "Garden"]), tokenizer, 24)
    builder = PromptBuilder(PromptConfig(), tokenizer, titles, soft=False, max_tokens=400)
    ranker = Ranker(llm, builder, tokens_per_batch=10_000)
    history = histories([[1], [2, 3]])
    full = ranker.log_probabilities(history, np.array([[1, 2, 3], [3, 2, 0]], dtype=np.int32))
    assert full[1, 2] == -np.inf
    np.testing.assert_allclose(np.exp(full).sum(axis=1), 1, atol=1e-5)
    alone = ranker.log_probabilities(history.take(np.array([1])), np.array([[3, 2]], dtype=np.int32))
    np.testing.assert_allclose(alone[0], full[1, :2], atol=1e-5)


def test_nan_names_the_users(llm, tokenizer):
    titles = Titles.tokenise(titles_array(["Moon", "Garden"]), tokenizer, 24)
    builder = PromptBuilder(PromptConfig(), tokenizer, titles, soft=True, max_tokens=400)
    soft = SoftTokens(torch.full((1, 32), torch.nan), torch.zeros(3, 32))
    with pytest.raises(ValueError, match="user-0"):
        Ranker(llm, builder, 1000).log_probabilities(histories([[1]]), np.array([[1, 2]], dtype=np.int32), soft)
