"""Both systems' answers: from the prompts that they should be, of the user alone, and judged right."""

import numpy as np
import pyarrow as pa
import pytest

from allmrec.core.artifacts import read_table
from allmrec.data.sequences import Sequences
from allmrec.explain.answers import ExplainConfig, FavouriteGenre, names_one
from allmrec.explain.categories import Categories
from tests.evaluation.tiny import GENRES


@pytest.fixture(scope="module")
def users(tiny_bundle):
    return Sequences.read(tiny_bundle[1].at("sequences"), [0]).take(np.arange(4))


@pytest.fixture(scope="module")
def task(tiny_bundle, tiny_model):
    categories = Categories.from_table(read_table(tiny_bundle[1].at("items")), limit=10)
    return FavouriteGenre(tiny_model, categories, ExplainConfig(max_new_tokens=5))


def test_a_row_a_user_and_system(task, users):
    rows = task.ask(users).to_pylist()
    assert [row["user_id"] for row in rows] == [user for user in users.user_ids.to_pylist() for _ in range(2)]
    assert [row["system"] for row in rows] == ["llm-only", "a-llmrec"] * len(users)
    for row in rows:
        assert set(row["favourites"]) <= set(GENRES) and row["choice"] in GENRES
        assert row["chose_favourite"] == (row["choice"] in row["favourites"])
        assert 0 < row["probability"] < 1 and row["chance"] == len(row["favourites"]) / len(GENRES)
    plain, soft = rows[::2], rows[1::2]
    assert [row["probability"] for row in plain] != pytest.approx([row["probability"] for row in soft])


def test_an_answer_depends_on_its_user_alone(task, users):
    together, alone = task.ask(users).to_pylist(), task.ask(users.take(np.array([2]))).to_pylist()
    for row, same in zip(alone, together[4:6], strict=True):
        assert row == same | {"probability": pytest.approx(same["probability"], abs=1e-5)}


def test_the_question_shows_history_and_slots_and_no_answers(task, users, tiny_tokenizer):
    prompts = task.questions["a-llmrec"].build(users)
    one = prompts.tokens[: prompts.offsets[1]]
    mine = users.items[: users.offsets[1]]
    assert prompts.slot_items[prompts.slot_rows() == 0].tolist() == [0, *mine]
    words = tiny_tokenizer.decode(one, skip_special_tokens=True)
    assert words.startswith(" is a user representation. This user has bought")
    assert words.endswith(" in the past. Specify the genres this user would enjoy buying.")
    plain = task.questions["llm-only"].build(users)
    assert not len(plain.slot_positions) and not any(genre in words for genre in GENRES)


def test_a_text_names_whole_words_only():
    texts = ["I think: SCIENCE-fiction!", "a warm day", "War", "Comedy\nWar", "", "War"]
    names = pa.array([["Science Fiction"], ["War"], ["Western", "War"], ["War"], ["War"], []])
    assert names_one(texts, names) == [True, False, True, True, False, False]
