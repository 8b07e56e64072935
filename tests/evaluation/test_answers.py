"""Hit@1 by what an LLM writes: every rule by hand, for every LLM system, and on a sample of the users."""

from dataclasses import replace

import numpy as np
import pytest

from allmrec.data.evaluation_cases import TRAINED_BESIDE
from allmrec.evaluation.answers import Answers
from allmrec.evaluation.results import WRITTEN
from allmrec.evaluation.systems import NEED_LLM, Systems
from allmrec.llm.generation import Generator


@pytest.mark.parametrize(
    ("answer", "expected"),  # of named, hit@1, hit@1 substring; the target is item 5, `Moonfall 4`
    [
        (" Moonfall 4", (1, 1, 1)),
        ("Moonfall 4", (1, 1, 1)),
        (" Moonfall 4. Enjoy!", (0, 0, 1)),  # names no candidate exactly, and yet the title is in it
        (" moonfall 4", (1, 0, 0)),  # names the candidate, in other words than its title's
        (" Moonfall 11", (1, 0, 0)),  # another candidate
        (" Moonfall 30", (0, 0, 0)),  # an item that is no candidate
        (" Moonfall 44", (0, 0, 1)),  # what is wrong with the wider reading
        ("", (0, 0, 0)),
    ],
)
def test_an_answer_by_hand(tiny_model, cases, monkeypatch, answer, expected):
    one = replace(cases.take(np.array([0])), candidates_BC=np.array([[5, 12, 7, 0]], dtype=np.int32))
    tokens = tiny_model.tokenizer(answer, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(Generator, "free", lambda *_: [tokens])
    values, tied = Answers(Systems(tiny_model, seed=0)).evaluate("llm-only", one)
    assert dict(zip(WRITTEN, values[0], strict=True)) == dict(zip(WRITTEN, expected, strict=True))
    assert tied.tolist() == [0]


def test_a_title_that_two_candidates_share_is_worth_half(tiny_model, cases, monkeypatch):
    """Items 38 and 39 are both `The Last Garden`."""
    one = replace(cases.take(np.array([0])), candidates_BC=np.array([[38, 39, 7]], dtype=np.int32))
    tokens = tiny_model.tokenizer(" The Last Garden", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(Generator, "free", lambda *_: [tokens])
    values, tied = Answers(Systems(tiny_model, seed=0)).evaluate("llm-only", one)
    assert values.tolist() == [[1, 0.5, 1]] and tied.tolist() == [1]


@pytest.mark.parametrize("name", sorted(NEED_LLM.difference(TRAINED_BESIDE)))
def test_every_llm_system_writes_behind_its_own_prompts(tiny_model, cases, name, monkeypatch):
    """What is scored is what the generator writes behind the prompts that the ranker reads."""
    systems, seen = Systems(tiny_model, seed=0), {}
    free = Generator.free

    def spy(generator, prompts, soft, longest):
        seen.update(prompts=prompts, soft=soft, texts=free(generator, prompts, soft, longest))
        return seen["texts"]

    monkeypatch.setattr(Generator, "free", spy)
    answers = Answers(systems)
    values, _ = answers.evaluate(name, cases)
    assert values.shape == (len(cases), 3) and set(values[:, 0]) <= {0.0, 1.0}
    assert (seen["soft"] is None) == (name == "llm-only") == (not len(seen["prompts"].slot_items))
    assert answers.spent["tokens"] >= len(seen["prompts"].tokens) and answers.spent["padding"] >= 0
    titles = tiny_model.bundle.catalogue.titles.take(cases.candidates_BC[:, 0]).to_pylist()
    written = [text.strip() for text in tiny_model.tokenizer.batch_decode(seen["texts"], skip_special_tokens=True)]
    assert values[:, 2].tolist() == [title in text for title, text in zip(titles, written, strict=True)]


def test_the_sample_is_drawn_by_user(cases):
    rows = np.arange(len(cases))
    assert len(cases.sample(1.0, 0)) == len(cases) and not len(cases.sample(0.0, 0))
    some = cases.sample(0.5, 0).user_ids.to_pylist()
    assert 0 < len(some) < len(cases) and set(some) <= set(cases.sample(0.7, 0).user_ids.to_pylist())
    one_by_one = [user for row in rows for user in cases.take(np.array([row])).sample(0.5, 0).user_ids.to_pylist()]
    assert one_by_one == some
