"""Decoding and likelihoods against references: one prompt at a time, every token by a whole pass without a cache."""

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from allmrec.llm.batches import SoftTokens, fill_slots
from allmrec.llm.generation import Generator, first_lines, left_padded, named_by_text, normalised
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Titles
from benchmarks.title_likelihood import TitleLikelihood
from tests.llm.tiny import histories, titles_array

CATALOGUE = ["Moon", "Moon fall", "Moon fall II", "Garden", "The Last Garden", "Garden", "x", "Edition II x"]
HISTORY = histories([[1, 2, 3], [], [8], [4, 5, 6, 7, 8, 1, 2], [3, 3]])
CANDIDATES = np.array(
    [[2, 3, 1, 5], [4, 6, 2, 0], [8, 0, 0, 0], [1, 2, 3, 0], [4, 6, 0, 0]], dtype=np.int32
)  # among them titles that all begin alike, a title that two items share, a single candidate
MAX_NEW = 9


@pytest.fixture(scope="module", params=["opt", "qwen2", "granite", "gemma3"])
def causal_lm(request, tiny_llm, tiny_tokenizer):
    if request.param == "opt":
        return tiny_llm
    size = {
        "vocab_size": len(tiny_tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    if request.param == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**size)).eval()
    if request.param == "granite":
        return GraniteForCausalLM(GraniteConfig(**size, logits_scaling=4.0)).eval()
    return Gemma3ForCausalLM(Gemma3TextConfig(**size, head_dim=8, sliding_window=40)).eval()  # shorter than the prompts


@pytest.fixture(scope="module")
def builder(tiny_tokenizer):
    titles = Titles.tokenise(titles_array(CATALOGUE), tiny_tokenizer, 24)
    return PromptBuilder(PromptConfig(), tiny_tokenizer, titles, soft=True, max_tokens=400)


@pytest.fixture(scope="module")
def soft():
    generator = torch.Generator().manual_seed(0)
    return SoftTokens(
        torch.randn(len(HISTORY), 32, generator=generator), torch.randn(len(CATALOGUE) + 1, 32, generator=generator)
    )


@torch.inference_mode()
def next_logits(causal_lm, builder, soft, row: int, written: list[int]) -> torch.Tensor:
    """The logits behind one prompt and what was written, by one pass over all of it."""
    one = np.array([row])
    prompts = builder.build(HISTORY.take(one), CANDIDATES[one])
    embedding = causal_lm.get_input_embeddings()
    embeds = fill_slots(embedding(torch.from_numpy(prompts.tokens.astype(np.int64))[None]), prompts, soft.of(one))
    behind = embedding(torch.tensor([written], dtype=torch.int64))
    return causal_lm(inputs_embeds=torch.cat([embeds, behind], dim=1), use_cache=False).logits[0, -1].double()


def paths(builder, row: int) -> dict[int, list[int]]:
    titles = builder.titles
    return {
        column: [*titles.tokens[titles.offsets[item] : titles.offsets[item + 1]].tolist(), builder.end]
        for column, item in enumerate(CANDIDATES[row])
        if item
    }


def test_free_text_equals_decoding_without_batch_and_cache(causal_lm, builder, soft):
    prompts = builder.build(HISTORY, CANDIDATES)
    generator = Generator(causal_lm, builder.end, tokens_per_batch=3 * int(prompts.lengths.max()))
    texts = generator.free(prompts, soft, MAX_NEW)
    for row, text in enumerate(texts):
        expected: list[int] = []
        while len(expected) < MAX_NEW:
            token = int(next_logits(causal_lm, builder, soft, row, expected).argmax())
            if token == builder.end:
                break
            expected.append(token)
        assert text == expected
    assert generator.tokens >= len(prompts.tokens) + sum(len(text) - 1 for text in texts)
    assert generator.padding > 0 and generator.passes >= 2


def test_free_text_equals_the_one_that_transformers_generates(tiny_llm, builder, soft):
    prompts = builder.build(HISTORY, CANDIDATES)
    embeds, mask = left_padded(tiny_llm, prompts, soft, builder.end)
    theirs = tiny_llm.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        max_new_tokens=MAX_NEW,
        do_sample=False,
        eos_token_id=builder.end,
        pad_token_id=builder.end,
    )
    ours = Generator(tiny_llm, builder.end, 10_000).free(prompts, soft, MAX_NEW)
    assert ours == [[*text, builder.end][: [*text, builder.end].index(builder.end)] for text in theirs.tolist()]


def test_finished_prompts_leave_the_batch(tiny_llm, builder, soft):
    """A token that some texts write, and early, is made the end token."""
    prompts = builder.build(HISTORY, CANDIDATES)
    whole = Generator(tiny_llm, builder.end, 10_000).free(prompts, soft, MAX_NEW)
    end = whole[0][3]
    generator = Generator(tiny_llm, end, 10_000)
    texts = generator.free(prompts, soft, MAX_NEW)
    assert texts == [text[: text.index(end)] if end in text else text for text in whole]
    assert len({len(text) for text in texts}) > 1
    assert generator.tokens == len(prompts.tokens) + sum(min(len(text), MAX_NEW - 1) for text in texts)


def test_constrained_text_equals_a_walk_through_the_titles(causal_lm, builder, soft):
    prompts = builder.build(HISTORY, CANDIDATES)
    generator = Generator(causal_lm, builder.end, tokens_per_batch=3 * int(prompts.lengths.max()))
    named = generator.constrained(prompts, soft, builder.titles, CANDIDATES)
    for row in range(len(prompts)):
        left, written = paths(builder, row), []
        while len({tuple(path) for path in left.values()}) > 1:
            choices = sorted({path[len(written)] for path in left.values()})
            logits = next_logits(causal_lm, builder, soft, row, written)
            written.append(max(choices, key=lambda token: float(logits[token])))
            left = {column: path for column, path in left.items() if path[: len(written)] == written}
        assert set(np.flatnonzero(named[row])) == set(left)


def test_likelihoods_equal_a_pass_for_each_token(causal_lm, builder, soft):
    scores = TitleLikelihood(causal_lm, builder, tokens_per_batch=600).log_likelihoods(HISTORY, CANDIDATES, soft)
    for row in range(len(HISTORY)):
        for column, path in paths(builder, row).items():
            steps = [next_logits(causal_lm, builder, soft, row, path[:at]).log_softmax(0) for at in range(len(path))]
            expected = sum(float(step[token]) for step, token in zip(steps, path, strict=True))
            assert scores[row, column] == pytest.approx(expected, rel=1e-4)
    assert (np.isneginf(scores) == (CANDIDATES == 0)).all()


def test_titles_together_may_take_more_places_than_the_llm_has_positions(tiny_llm, tiny_tokenizer):
    long = [f"{'Moon fall ' * 5}{number}" for number in range(30)]
    titles = Titles.tokenise(titles_array(long), tiny_tokenizer, 24)
    room = 512 - 25
    builder = PromptBuilder(PromptConfig(), tiny_tokenizer, titles, soft=False, max_tokens=room)
    shown = np.arange(1, 21, dtype=np.int32)[None]
    assert builder.build(HISTORY.take(np.array([1])), shown).lengths[0] + titles.lengths[1:21].sum() > 512
    scores = TitleLikelihood(tiny_llm, builder, 10_000).log_likelihoods(histories([[], [1]]), shown.repeat(2, 0), None)
    assert np.isfinite(scores).all()


def test_a_text_names_the_candidates_of_that_title(tiny_tokenizer, builder):
    texts = [" moon  FALL ii", ' "Garden".\nand more', " Garden gate", "", " x"]
    tokens = tiny_tokenizer(texts, add_special_tokens=False)["input_ids"]
    named = named_by_text(tokens, tiny_tokenizer, builder.titles, CANDIDATES)
    assert [np.flatnonzero(row).tolist() for row in named] == [[1], [0, 1], [], [], []]


def test_normalised():
    texts = first_lines(["  The  Ⅸ\u00a0Gardens.", "\n“the ix gardens”\nSecond line", ""])
    assert normalised(texts).to_pylist() == ["the ix gardens", "the ix gardens", ""]


def test_nan_is_refused(tiny_llm, builder, soft):
    prompts = builder.build(HISTORY, CANDIDATES)
    broken = SoftTokens(soft.user_BH * torch.nan, soft.item_NH)
    with pytest.raises(ValueError, match="NaN"):
        Generator(tiny_llm, builder.end, 1000).free(prompts, broken, MAX_NEW)
