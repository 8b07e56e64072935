from itertools import permutations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from allmrec.core.artifacts import commit, shard_name, write_shard
from allmrec.core.storage import open_storage
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


def test_the_training_part_leaves_held_out_users_out(tmp_path):
    columns = {"item_index": [[1, 2, 3, 4], [5, 6], [7]], "timestamp": [[0] * 4, [0] * 2, [0]]}
    table = pa.table({"user_id": ["a", "b", "c"], **columns, "train_length": [2, 0, 1]}).cast(sequences.SCHEMA)
    storage = open_storage(str(tmp_path))
    commit(storage, "sequences", "test", {shard_name(0): write_shard(storage, sequences.SCHEMA, shard_name(0), table)})
    train = Sequences.read_train(storage, [0])
    assert lists(train) == [[1, 2], [7]] and train.user_ids.to_pylist() == ["a", "c"]
    assert lists(Sequences.read(storage)) == columns["item_index"]


def test_histories_that_are_shuffled_train_in_the_order_that_is_stored(tmp_path):
    columns = {"item_index": [[1, 2, 3, 4], [5, 6]], "timestamp": [[0] * 4, [0] * 2]}
    more = {"train_length": [3, 0], "train_item_index": [[2, 1, 3], []]}
    table = pa.table({"user_id": ["a", "b"], **columns, **more}).cast(sequences.SHUFFLED)
    storage = open_storage(str(tmp_path))
    entry = write_shard(storage, sequences.SHUFFLED, shard_name(0), table)
    commit(storage, "sequences", "test", {shard_name(0): entry})
    train = Sequences.read_train(storage)
    assert lists(train) == [[2, 1, 3]] and train.user_ids.to_pylist() == ["a"]
    assert lists(Sequences.read(storage)) == columns["item_index"]


@given(histories=st.lists(st.lists(st.integers(1, 9), max_size=6), max_size=6), keep_last=st.booleans())
def test_a_shuffle_keeps_everyones_items_and_depends_on_the_user_alone(histories, keep_last):
    users, key = of(*histories), np.uint64(7)
    shuffled = users.shuffled(key, keep_last)
    assert [sorted(items) for items in lists(shuffled)] == [sorted(items) for items in histories]
    if keep_last:
        assert [items[-1:] for items in lists(shuffled)] == [items[-1:] for items in histories]
    for row in range(len(histories)):
        alone = users.take(np.array([row])).shuffled(key, keep_last)
        assert lists(alone)[0] == lists(shuffled)[row]


def test_every_order_is_about_as_frequent():
    drawn = lists(of(*[[1, 2, 3]] * 6000).shuffled(np.uint64(3)))
    counts = [sum(tuple(items) == order for items in drawn) for order in permutations((1, 2, 3))]
    assert sum(counts) == 6000 and max(abs(count - 1000) for count in counts) < 4 * (6000 * 5 / 36) ** 0.5


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
