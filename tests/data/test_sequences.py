import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from allmrec.data.sequences import Sequences
from schemas import sequences


def of(*histories):
    rows = [
        {"user_id": f"u{number}", "item_index": items, "timestamp": [0] * len(items)}
        for number, items in enumerate(histories)
    ]
    return Sequences.from_table(pa.Table.from_pylist(rows, sequences.SCHEMA))


def lists(users):
    return [part.tolist() for part in np.split(users.items, users.offsets[1:-1])] if len(users) else []


def test_leave_one_out():
    assert lists(of([1, 2, 3, 4], [1, 2, 3], [1, 2], [1]).train()) == [[1, 2], [1], [1, 2], [1]]


def test_padding_is_on_the_left_and_the_newest_stay():
    assert of([1, 2, 3, 4], [5], []).padded(3).tolist() == [[2, 3, 4], [0, 0, 5], [0, 0, 0]]


@given(
    histories=st.lists(st.lists(st.integers(1, 9), max_size=6), max_size=6),
    picks=st.lists(st.integers(0, 5), max_size=8),
    count=st.integers(0, 7),
)
def test_views_agree_with_python_lists(histories, picks, count):
    users, picks = of(*histories), [pick for pick in picks if pick < len(histories)]
    assert lists(users) == histories
    taken = users.take(np.array(picks, dtype=np.int64))
    assert lists(taken) == [histories[pick] for pick in picks]
    assert taken.user_ids.to_pylist() == [f"u{pick}" for pick in picks]
    assert lists(users.last(count)) == [items[len(items) - min(count, len(items)) :] for items in histories]
    assert users.rows().tolist() == [row for row, items in enumerate(histories) for _ in items]
    assert users.padded(count).tolist() == [([0] * count + items)[len(items) :] for items in histories]


def test_a_slice_of_a_table_is_its_own():
    rows = [{"user_id": u, "item_index": i, "timestamp": [0] * len(i)} for u, i in [("a", [1]), ("b", [2, 3])]]
    users = Sequences.from_table(pa.Table.from_pylist(rows, sequences.SCHEMA).slice(1))
    assert lists(users) == [[2, 3]]
