"""A pass that the device has no memory for is made in halves, and from then on all are."""

import numpy as np
import pytest
import torch

from allmrec.llm import ranking
from allmrec.llm.batches import TokenBudget
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Titles
from allmrec.llm.ranking import Ranker
from tests.llm.tiny import histories, titles_array

LENGTHS = np.array([10, 10, 9, 10, 10, 3, 10, 10])


class Device:
    """Has memory for some rows of a pass."""

    def __init__(self, most: int):
        self.most, self.done, self.passes = most, list[int](), 0

    def take(self, rows: np.ndarray) -> None:
        self.passes += 1
        if len(rows) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        self.done += rows.tolist()


@pytest.mark.parametrize(("most", "halvings"), [(8, 0), (3, 1), (1, 2)])
def test_every_row_is_done_once_and_the_budget_stays_halved(most: int, halvings: int) -> None:
    budget, device = TokenBudget(60), Device(most)
    budget.each_batch(LENGTHS, device.take)
    assert sorted(device.done) == [*range(8)] and budget.halvings == halvings
    passes = device.passes
    budget.each_batch(LENGTHS, device.take)
    assert sorted(device.done[8:]) == [*range(8)] and budget.halvings == halvings, "the next shard needs no trial"
    assert device.passes - passes <= passes


def test_a_row_that_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        TokenBudget(60).each_batch(LENGTHS, Device(0).take)


def test_a_ranker_that_runs_out_of_memory_gives_what_it_would_have_given(tiny_llm, tiny_tokenizer, monkeypatch) -> None:
    titles = Titles.tokenise(titles_array(["Moon", "Moon fall", "Garden", "II"]), tiny_tokenizer, 24)
    builder = PromptBuilder(PromptConfig(), tiny_tokenizer, titles, soft=False, max_tokens=400)
    prompts = histories([[1], [2, 3], [4], [1, 4], [3]]), np.array([[1, 2, 3, 4]] * 5, dtype=np.int32)
    whole = Ranker(tiny_llm, builder, 10_000)
    expected, rank = whole.log_probabilities(*prompts), ranking.rank

    def small(llm, prompts, *rest):
        Device(2).take(np.arange(len(prompts)))
        return rank(llm, prompts, *rest)

    monkeypatch.setattr(ranking, "rank", small)
    halved = Ranker(tiny_llm, builder, 10_000)
    np.testing.assert_allclose(halved.log_probabilities(*prompts), expected, atol=1e-5)
    assert halved.budget.halvings > 0 and halved.tokens == whole.tokens, "what failed is not counted"
