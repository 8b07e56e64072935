"""Sentences of items and histories: keys and values, the newest item first, what is too long loses the oldest."""

from functools import partial

import numpy as np
import pytest
import torch

from allmrec.core import machine_cache, rows
from allmrec.core.rows import Rows, whole
from allmrec.recformer.build import build_recformer
from allmrec.recformer.config import RecformerConfig
from allmrec.recformer.sentences import CLS, KEY, KINDS, VALUE, Sentences, alone, check_texts, item_words
from allmrec.recformer.tokenizer import learn_tokenizer, to_tokenizer
from tests.cf.conftest import ragged
from tests.recformer.conftest import catalogue, items_table

WORDS_NL = torch.tensor([[0, 0, 0], [4, 7, 0], [10, 0, 0], [13, 16, 19]], dtype=torch.int32)
THREE = Sentences(Rows.of(WORDS_NL), cls=9, max_items=3, max_tokens=6)


def written(tokenizer, words) -> list[str]:
    """Words as kinds and texts, runs of one kind together."""
    found: list[str] = []
    for word in words[words > 0]:
        token, kind = divmod(int(word), KINDS)
        found += [] if found and found[-1][0] == "-kv"[kind] else ["-kv"[kind]]
        found[-1] += tokenizer.id_to_token(token).replace("Ġ", " ")
    return found


def test_a_sentence_has_the_attributes_that_the_item_has():
    tokenizer, _ = learn_tokenizer(["title amber tale category films drama description about the amber tale"])
    items = items_table(3, title=["Amber Tale", None, "Amber"], description=["about the", None, None])
    words_ML = item_words(items, tokenizer, max_attribute_tokens=99)
    assert [written(tokenizer, words) for words in words_ML] == [
        ["k title", "v amber tale", "k description", "v about the"],
        ["k title", "v untitled item", "k category", "v films drama"],
        ["k title", "v amber", "k category", "v films drama"],
    ]
    assert (words_ML[:, -1] > 0).any(), "as wide as the longest"
    cut = item_words(items, tokenizer, max_attribute_tokens=1)
    assert [len(np.flatnonzero(words % KINDS == VALUE)) for words in cut] == [2, 2, 2]


def test_special_tokens_in_a_text_are_plain_text():
    tokenizer, front = learn_tokenizer(["title amber"])
    words_ML = item_words(items_table(1, title=["[CLS] amber [CLS]"]), tokenizer, 50)
    assert front not in words_ML[0][words_ML[0] > 0] // KINDS
    assert to_tokenizer(tokenizer.to_str()).encode("[CLS]", add_special_tokens=False).ids != [front]


def test_the_same_texts_give_the_same_vocabulary():
    texts = [f"{a}{b} {b}{c}" for a in "abcde" for b in "xyz" for c in "klmé"]
    assert learn_tokenizer(texts)[0].to_str() == learn_tokenizer(texts)[0].to_str()


def test_a_history_is_read_with_the_newest_first_and_loses_the_oldest():
    histories = ragged([[1, 2], [2], [], [1, 2, 3, 1], [2, 1, 3]])
    texts = THREE.texts(histories)
    front = KINDS * 9 + CLS
    assert texts.words_BT.tolist() == [
        [front, 10, 4, 7, 0, 0],
        [front, 10, 0, 0, 0, 0],
        [front, 0, 0, 0, 0, 0],
        [front, 4, 7, 13, 16, 19],  # item 2 is too far back, item 1 before it too
        [front, 13, 16, 19, 4, 7],
    ]
    assert texts.recency_BT.tolist() == [
        [0, 1, 2, 2, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 2, 2, 2],
        [0, 1, 1, 1, 2, 2],
    ]
    assert texts.lengths.tolist() == THREE.lengths(histories).tolist() == [4, 2, 1, 6, 6]
    assert (WORDS_NL[1] % KINDS).tolist() == [KEY, KEY, 0]


def test_histories_are_read_alike_in_any_company():
    rng = np.random.default_rng(0)
    users = ragged([rng.integers(1, 4, rng.integers(0, 9)).tolist() for _ in range(50)])
    together = THREE.texts(users)
    for row in range(50):
        one = THREE.texts(users.take(np.array([row])))
        width = one.words_BT.shape[1]
        assert one.words_BT[0].tolist() == together.words_BT[row, :width].tolist()
        assert one.recency_BT[0].tolist() == together.recency_BT[row, :width].tolist()
        assert not together.words_BT[row, width:].any()


def test_other_items_keep_their_sentences_and_new_ones_bring_theirs():
    rows_N, new_NL = torch.tensor([0, 0, 3]), torch.zeros(3, 5, dtype=torch.int32)
    new_NL[1] = torch.tensor([1, 2, 4, 5, 7])
    taken = THREE.take(rows_N, new_NL)
    assert whole(taken.words_NL).tolist() == [[0] * 5, [1, 2, 4, 5, 7], [13, 16, 19, 0, 0]]
    shorter = THREE.take(rows_N, new_NL[:, :2]).words_NL
    assert whole(shorter).tolist() == [[0] * 3, [1, 2, 0], [13, 16, 19]]
    assert THREE.take(rows_N).lengths(alone(np.array([1, 2]))).tolist() == [1, 4]


def test_a_catalogue_without_words_is_refused():
    nothing = {"title": [None] * 3, "description": [None] * 3, "categories": [None] * 3}
    check_texts([items_table(3, **nothing), items_table(3, **nothing | {"categories": [["Films"], None, None]})])
    with pytest.raises(ValueError, match=r"no item has one; name their columns in data.items.columns"):
        check_texts([items_table(3, **nothing)] * 2)


def test_padding_has_no_sentence():
    _, sentences, _ = build_recformer(RecformerConfig(), catalogue, seed=0)
    words_NL = whole(sentences.words_NL)
    assert not words_NL[0].any() and words_NL[1:, 0].all() and sentences.max_tokens == 512


def test_a_catalogue_in_parts_is_read_like_one(monkeypatch, tmp_path):
    def built() -> tuple[str, torch.Tensor]:
        _, sentences, tokenizer = build_recformer(RecformerConfig(), partial(catalogue, 5), seed=0)
        return tokenizer.to_str(), whole(sentences.words_NL)

    _, sentences, tokenizer = build_recformer(RecformerConfig(), catalogue, seed=0)
    vocabulary, words_NL = built()
    assert vocabulary == tokenizer.to_str() and torch.equal(words_NL, whole(sentences.words_NL))
    monkeypatch.setattr(machine_cache, "CACHE", tmp_path)
    monkeypatch.setattr(rows, "MAPPED_BYTES", 1)
    assert torch.equal(built()[1], words_NL), "of a file of the machine's cache"
