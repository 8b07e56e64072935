"""Candidates: what may be recommended at all, and who tops up whom."""

import numpy as np
import pyarrow as pa
import pytest

from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences
from allmrec.nightly.candidates import Candidates, given
from schemas.candidates import SCHEMA


@pytest.fixture
def catalogue() -> Catalogue:
    ids = pa.array(["", "a", "b", "c", "d", "e", "f"])
    available = np.array([False, True, True, True, False, True, True])
    return Catalogue(ids, ids, ids, ids, np.zeros(7, dtype=np.int64), available)


@pytest.fixture
def users() -> Sequences:
    return Sequences(pa.array(["u", "v", "w"]), np.array([0, 1, 2, 3]), np.array([1, 2, 3], dtype=np.int32))


def candidates_table(rows: dict[str, list[str]]) -> pa.Table:
    columns = {"user_id": list(rows), "item_ids": list(rows.values())}
    return pa.Table.from_pydict(columns, schema=SCHEMA)


def test_given_candidates_are_checked_and_topped_up(catalogue: Catalogue, users: Sequences) -> None:
    proposals = Candidates(np.array([[2, 3, 5], [1, 3, 5], [1, 2, 0]], dtype=np.int32))
    table = candidates_table(
        {
            "v": ["f", "f", "b", "nowhere", "d", "c"],  # twice, seen, unknown, unavailable
            "stranger": ["a"],
            "u": ["f", "e", "c", "b"],
        }
    )
    found = given(table, proposals, catalogue, users)
    assert found.items.tolist() == [
        [6, 5, 3],  # u: the first three given
        [6, 3, 1],  # v: what is left, then the teacher's
        [1, 2, 0],  # w: not in the table, so the teacher's, which ran out
    ]
    assert found.dropped == {"unknown": 1, "seen": 1, "unavailable": 1}
    assert found.filled == 2


def test_an_empty_table_gives_the_teachers(catalogue: Catalogue, users: Sequences) -> None:
    proposals = Candidates(np.array([[2, 3], [1, 3], [1, 2]], dtype=np.int32))
    found = given(candidates_table({}), proposals, catalogue, users)
    assert found.items.tolist() == proposals.items.tolist() and found.filled == 3
