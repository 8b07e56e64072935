"""Favourites against a plain count, and which categories count at all."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmrec.explain.categories import Categories
from tests.llm.tiny import histories

GENRES = [["Movies", " War "], ["Movies", "War", "War"], None, ["Comedy", None, " "], ["Movies", "Comedy", "Art"], []]


def items(categories: list) -> pa.Table:
    index = np.arange(1, len(categories) + 1, dtype=np.int32)
    return pa.table({"item_index": index, "categories": pa.array(categories, pa.list_(pa.string()))})


def named(categories: Categories, favourites_UG: np.ndarray) -> list[list[str]]:
    names = categories.names.to_pylist()[1:]
    return [[names[number] for number in np.flatnonzero(row)] for row in favourites_UG]


def test_favourites_of_a_small_catalogue():
    categories = Categories.from_table(items(GENRES), limit=10)
    assert categories.names.to_pylist() == ["", "Movies", "Comedy", "War", "Art"]
    liked = categories.favourites(histories([[4, 5], [1, 2, 4], [3, 6], [], [4, 4, 1]]))
    assert named(categories, liked) == [["Comedy"], ["Movies", "War"], [], [], ["Comedy"]]


def test_what_most_items_have_says_nothing():
    more = [*GENRES, ["Movies"], ["Movies"]]
    assert Categories.from_table(items(more), limit=2).names.to_pylist() == ["", "Comedy", "War"]


@pytest.mark.parametrize("nothing", [[None, []], [["Movies"], ["Movies"]]])
def test_no_categories_are_refused(nothing):
    with pytest.raises(ValueError, match=r"data\.items\.columns"):
        Categories.from_table(items(nothing), limit=5)


@given(
    catalogue=st.lists(st.lists(st.sampled_from("abcde"), max_size=3), min_size=8, max_size=12),
    bought=st.lists(st.lists(st.integers(1, 8), max_size=6), min_size=1, max_size=4),
)
def test_favourites_equal_counting(catalogue, bought):
    frequency = Counter(name for names in catalogue for name in set(names))
    known = {name for name, count in frequency.items() if count <= len(catalogue) / 2}
    if not known:
        return
    categories = Categories.from_table(items(catalogue), limit=10)
    assert set(categories.names.to_pylist()[1:]) == known
    for user, liked in zip(bought, named(categories, categories.favourites(histories(bought))), strict=True):
        counts = Counter(name for item in user for name in set(catalogue[item - 1]) & known)
        assert set(liked) == {name for name, count in counts.items() if count == max(counts.values())}
