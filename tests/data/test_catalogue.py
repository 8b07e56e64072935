import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmrec.core.artifacts import writing
from allmrec.core.storage import open_storage
from allmrec.data.catalogue import UNTITLED, Catalogue, count_untitled, display_titles, warm_and_cold
from schemas import items


def catalogue(popularity, **columns):
    rows = [
        {
            "item_id": f"i{number}",
            "item_index": number,
            "popularity": count,
            "interactions": count,
            "text_hash": str(number),
        }
        | {name: values[number - 1] for name, values in columns.items()}
        for number, count in enumerate(popularity, 1)
    ]
    return Catalogue.from_table(pa.Table.from_pylist(rows, items.SCHEMA))


def test_arrays_are_by_index_with_padding_before():
    found = catalogue([3, 1], title=["One", None], description=[None, "two"], available=[None, False])
    assert found.num_items == 2
    assert found.item_ids.to_pylist() == ["", "i1", "i2"]
    assert found.titles.to_pylist() == ["", "One", UNTITLED]
    assert found.texts.to_pylist() == ["", "Title: One, Description: ", f"Title: {UNTITLED}, Description: two"]
    assert found.popularity.tolist() == [0, 3, 1]
    assert found.available.tolist() == [False, True, False]


def test_words_may_be_more_than_an_array_of_strings_holds():
    found = catalogue([3, 1], title=["One", None])
    assert found.titles.type == found.texts.type == pa.large_string()


def test_items_of_the_filtered_data_may_be_drawn_whether_they_train_or_not():
    assert catalogue([3, 0, 0, 1], interactions=[4, 2, 0, 1]).drawable.tolist() == [1, 2, 4]


def test_titles_are_one_line():
    titles = pa.chunked_array([["a\n\tb\x00\u2028c ", "\u200b \x07", None, "x" * 10_000]])
    assert display_titles(titles).to_pylist() == ["a b c", UNTITLED, UNTITLED, "x" * 10_000]


def test_items_without_a_title_are_counted_over_the_files(tmp_path):
    storage = open_storage(str(tmp_path))
    with writing(storage, "items", "test") as out:
        for shard, titles in enumerate(([None, "a"], [" ", "b"])):
            row = {"item_id": "i", "item_index": 1, "popularity": 0, "interactions": 0, "text_hash": "h"}
            out.table(shard, items.SCHEMA, pa.Table.from_pylist([row | {"title": t} for t in titles], items.SCHEMA))
    assert count_untitled(storage) == 2


def test_warm_and_cold_are_shares_of_the_items_with_interactions():
    warm, cold = warm_and_cold(np.array([0, 5, 9, 1, 7, 3, 8, 2, 6, 4, 10]))
    assert [index for index in range(11) if warm[index]] == [2, 4, 6, 10]  # round(0.35 * 10) = 4 of them
    assert [index for index in range(11) if cold[index]] == [3, 5, 7, 9]
    warm, cold = warm_and_cold(np.array([0, 5, 0, 4, 0, 0, 0, 0, 0, 0, 0]))
    assert [index for index in range(11) if warm[index]] == [1]
    assert [index for index in range(11) if cold[index]] == [2, 3, 4, 5, 6, 7, 8, 9, 10]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_items_with_as_many_interactions_are_on_one_side(counts):
    popularity = np.array([0, *counts])
    warm, cold = (set(np.flatnonzero(side).tolist()) for side in warm_and_cold(popularity))
    by_count = [set((np.flatnonzero(popularity[1:] == count) + 1).tolist()) for count in range(10)]
    known, wanted = len(counts) - len(by_count[0]), 0.35 * (len(counts) - len(by_count[0]))
    assert not warm & cold and by_count[0] <= cold
    for side, order in ((warm, by_count[:0:-1]), (cold - by_count[0], by_count[1:])):
        sizes = [len(set().union(*order[:number])) for number in range(10)]
        assert side in [set().union(*order[:number]) for number in range(10)], "whole ties, from the end on"
        assert abs(len(side) - wanted) == pytest.approx(min(abs(size - wanted) for size in sizes))
    assert known or not warm
