"""Candidates: what may be recommended at all, and which source tops up which."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.cf.external import ExternalTeacher
from allmrec.core.hashing import hash_strings
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences
from allmrec.nightly.candidates import Candidates, Retriever, external_candidates
from allmrec.nightly.config import NightlyConfig
from allmrec.nightly.filters import ItemFilter
from schemas.candidates import SCHEMA


@pytest.fixture
def catalogue() -> Catalogue:
    ids = pa.array(["", "a", "b", "c", "d", "e", "f"])
    available = np.array([False, True, True, True, False, True, True])
    return Catalogue(ids, ids, ids, ids, np.zeros(7, dtype=np.int64), available, np.arange(1, 7))


@pytest.fixture
def users() -> Sequences:
    return Sequences(pa.array(["u", "v", "w"]), np.array([0, 1, 2, 3]), np.array([1, 2, 3], dtype=np.int32))


def candidates_table(rows: dict[str, list[str]]) -> pa.Table:
    columns = {"user_id": list(rows), "item_ids": list(rows.values())}
    return pa.Table.from_pydict(columns, schema=SCHEMA)


def only_available(catalogue: Catalogue) -> ItemFilter:
    return ItemFilter((~catalogue.available).astype(np.int8))


def test_external_candidates_are_checked_and_topped_up(catalogue: Catalogue, users: Sequences) -> None:
    proposals = Candidates(np.array([[2, 3, 5], [1, 3, 5], [1, 2, 0]], dtype=np.int32))
    table = candidates_table(
        {
            "v": ["f", "f", "b", "nowhere", "d", "c"],  # twice, seen, unknown, unavailable
            "stranger": ["a"],
            "u": ["f", "e", "c", "b"],
        }
    )
    found = external_candidates(table, proposals, catalogue, only_available(catalogue), users)
    assert found.items.tolist() == [
        [6, 5, 3],  # u: the first three given
        [6, 3, 1],  # v: what is left, then the teacher's
        [1, 2, 0],  # w: not in the table, so the teacher's, which ran out
    ]
    dropped = {"unknown": 1, "seen": 1, "unavailable": 1, "repeated": 1, "surplus": 1}
    assert found.dropped == {"category": 0, "blocked": 0, "suppressed": 0} | dropped
    assert found.filled == 2


def test_an_empty_table_gives_the_teachers(catalogue: Catalogue, users: Sequences) -> None:
    proposals = Candidates(np.array([[2, 3], [1, 3], [1, 2]], dtype=np.int32))
    found = external_candidates(candidates_table({}), proposals, catalogue, only_available(catalogue), users)
    assert found.items.tolist() == proposals.items.tolist() and found.filled == 3


class Shop:
    """300 items, a tenth of them unavailable, and 90 users who have seen some."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        ids = pa.array([f"item {n}" for n in range(301)])
        available = np.concatenate([[False], rng.random(300) < 0.9])
        self.catalogue = Catalogue(ids, ids, ids, ids, np.zeros(301, dtype=np.int64), available, np.arange(1, 301))
        user_ids = pa.array([f"u{n}" for n in range(90)])
        self.users = Sequences(user_ids, np.arange(91) * 5, rng.integers(1, 301, 450, dtype=np.int32))
        self.items_ND = rng.normal(size=(301, 8)).astype(np.float32)
        self.items_ND[0] = 0
        self.users_UD = rng.normal(size=(90, 8)).astype(np.float32)

    def retriever(self, **config: int) -> Retriever:
        hashes = hash_strings(self.users.user_ids).view(np.int64)
        order = hashes.argsort()
        arrays = (self.items_ND, self.users_UD[order], hashes[order])
        config = {"num_candidates": 10} | config
        return Retriever(
            ExternalTeacher(*map(torch.tensor, arrays)),
            self.catalogue,
            self.catalogue.available,
            NightlyConfig(**config),
            seed=0,
        )


def test_no_user_is_proposed_what_is_seen_or_unavailable_and_the_best_come_first() -> None:
    shop = Shop()
    found = shop.retriever()(shop.users)
    assert found.index == {}
    for user in range(90):
        left = np.setdiff1d(np.flatnonzero(shop.catalogue.available), shop.users.items[5 * user : 5 * user + 5])
        best = left[np.argsort(-(shop.items_ND[left] @ shop.users_UD[user]))]
        assert found.items[user].tolist() == best[:10].tolist()


def test_a_large_catalogue_gets_an_index_that_is_compared_with_the_exact_candidates() -> None:
    shop = Shop()
    above = int(shop.catalogue.available.sum()) - 1
    found = shop.retriever(approximate_above=above)(shop.users)
    assert found.index["index_compared"] == 64 * 10, "a sample of the shard's users"
    assert found.index["index_found"] == 640 and np.array_equal(found.items, shop.retriever()(shop.users).items)
    assert shop.retriever(approximate_above=above + 1)(shop.users).index == {}, "not large enough"


def test_an_index_that_misses_items_is_told_so() -> None:
    shop = Shop()
    retriever = shop.retriever(approximate_above=1)
    assert retriever.index is not None
    retriever.index.items = retriever.index.items.flip(0)  # it finds others than it should
    found = retriever(shop.users)
    assert found.index["index_found"] < 0.9 * found.index["index_compared"]


def test_external_candidates_keep_what_is_known_of_the_index() -> None:
    shop = Shop()
    proposals = shop.retriever(approximate_above=1)(shop.users)
    table = candidates_table({"u3": ["item 1", "item 2"]})
    filter = only_available(shop.catalogue)
    assert external_candidates(table, proposals, shop.catalogue, filter, shop.users).index == proposals.index


def test_nan_is_refused_by_name() -> None:
    shop = Shop()
    shop.items_ND[7] = np.nan
    with pytest.raises(ValueError, match=r"embeds items .'item 7'. … as NaN or inf"):
        shop.retriever()
    shop = Shop()
    shop.users_UD[4] = np.inf
    with pytest.raises(ValueError, match=r"represents users .'u4'. … as NaN or inf"):
        shop.retriever()(shop.users)
