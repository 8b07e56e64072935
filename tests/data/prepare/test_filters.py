"""Filters against plain loops over users and items."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from allmrec.data.config import DataConfig
from allmrec.data.prepare.filters import item_counts, keep_mask
from allmrec.data.sequences import Sequences
from tests.cf.conftest import ragged

NUM_ITEMS = 6
HISTORIES = st.lists(st.lists(st.integers(1, NUM_ITEMS), min_size=1, max_size=8), max_size=8)
EVERYTHING = np.arange(NUM_ITEMS + 1) > 0


def kept(users: Sequences, data: DataConfig, frequent=EVERYTHING) -> list[list[int]]:
    mask = keep_mask(users, data, frequent)
    return [
        users.items[first:end][mask[first:end]].tolist()
        for first, end in zip(users.offsets[:-1], users.offsets[1:], strict=True)
    ]


def core_of(histories, least_item, least_user):
    """The k-core, one violation at a time."""
    histories = [list(history) for history in histories]
    while True:
        counts = Counter(item for history in histories for item in history)
        rare = {item for item, count in counts.items() if count < least_item}
        short = [number for number, history in enumerate(histories) if 0 < len(history) < least_user]
        if not rare and not short:
            return histories
        if rare:
            histories = [[item for item in history if item != min(rare)] for history in histories]
        else:
            histories[short[0]] = []


def k_core(users: Sequences, data: DataConfig) -> np.ndarray:
    """As the job does, with one shard."""
    frequent = EVERYTHING
    while True:
        counts = item_counts(users, data, frequent, data.min_user_interactions)
        left = frequent & (counts >= data.min_item_interactions)
        if (left == frequent).all():
            return left
        frequent = left


@given(histories=HISTORIES, least_item=st.integers(2, 4), least_user=st.integers(1, 4))
def test_the_core_is_what_is_left_when_nothing_violates_it(histories, least_item, least_user):
    users = ragged(histories)
    data = DataConfig(min_item_interactions=least_item, min_user_interactions=least_user, k_core=True)
    assert kept(users, data, k_core(users, data)) == core_of(histories, least_item, least_user)


@given(histories=HISTORIES)
def test_repeats(histories):
    users = ragged(histories)
    assert kept(users, DataConfig()) == histories
    assert kept(users, DataConfig(deduplicate="first")) == [list(dict.fromkeys(history)) for history in histories]
    last = [list(dict.fromkeys(history[::-1]))[::-1] for history in histories]
    assert kept(users, DataConfig(deduplicate="last")) == last


@given(histories=HISTORIES, most=st.integers(1, 9))
def test_the_newest_of_what_is_kept_stay(histories, most):
    frequent = EVERYTHING & (np.arange(NUM_ITEMS + 1) != 2)
    expected = [[item for item in history if item != 2][-most:] for history in histories]
    assert kept(ragged(histories), DataConfig(max_history=most), frequent) == expected


def test_users_are_counted_after_repeats_went_and_in_the_core_after_rare_items_too():
    users = ragged([[1, 1, 2], [1, 2, 3], [3, 4], [5, 5]])
    data = DataConfig(deduplicate="first", min_user_interactions=2)
    frequent = np.array([0, 1, 1, 1, 0, 0, 0], dtype=bool)
    assert kept(users, data, frequent) == [[1, 2], [1, 2, 3], [3], []]
    core = data.model_copy(update={"k_core": True})
    assert kept(users, core, frequent) == [[1, 2], [1, 2, 3], [], []]
    assert item_counts(users, data, frequent, 1).tolist() == [0, 2, 2, 2, 0, 0, 0]
    assert item_counts(users, data, frequent, 3).tolist() == [0, 1, 1, 1, 0, 0, 0]
