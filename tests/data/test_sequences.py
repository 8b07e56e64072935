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
