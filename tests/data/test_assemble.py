import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmrec.artifacts import shard_name
from allmrec.data.assemble import Draft, Finish, frequent, histories, in_order, rejected_name
from allmrec.data.clean import BELOW_MIN_RATING, CLEANED, to_polars
from allmrec.data.config import DataConfig
from allmrec.hashing import shard_of
from allmrec.storage import open_storage
from schemas import rejected, sequences

ITEM_IDS = pa.array([f"item-{number}" for number in range(1, 10)])
HOUR = 3_600_000_000
EVENTS = [  # user, item_index, hour
    ("ann", 3, 5),
    ("ann", 1, 2),
    ("ann", 3, 1),
    ("ann", 3, 5),  # again
    ("bob", 7, 4),
    ("bob", 2, 4),  # at the same time
    ("bob", 5, 4),
    ("bob", 9, 1),
    ("cid", 4, 0),
]


def rows(events, num_shards=1, bad=()):
    users = pa.array([user for user, _, _ in events], pa.string())
    good = [
        {"shard": shard, "user_id": user, "item_index": item, "timestamp": hour * HOUR}
        for shard, (user, item, hour) in zip(shard_of(users, num_shards), events, strict=True)
    ]
    return pa.Table.from_pylist([*good, *bad], CLEANED)


def test_events_are_put_in_time_order_and_ties_by_hash():
    events, duplicates = in_order(to_polars(rows(EVENTS)), ITEM_IDS)
    table = histories(events)
    assert table.schema == sequences.SCHEMA
    found = {row["user_id"]: row["item_index"] for row in table.to_pylist()}
    assert list(found) == ["ann", "bob", "cid"]
    assert found["ann"] == [3, 1, 3]  # the same item at another time is another event
    assert found["bob"] == [9, 5, 2, 7]  # golden: neither the log's order nor the items'
    assert found["cid"] == [4]
    assert [stamp.hour for stamp in table.to_pylist()[1]["timestamp"]] == [1, 4, 4, 4]
    assert duplicates.to_dicts() == [
        {
            "reason": rejected.DUPLICATE_EVENT,
            "row": '{"user_id":"ann","item_id":"item-3","timestamp":"1970-01-01T05:00:00+00:00"}',
        }
    ]


def test_ties_do_not_hang_on_item_numbers():
    """A catalogue that grows gives items other numbers; nobody's history may change by that."""
    longer = pa.array(["a new first item", *ITEM_IDS.to_pylist()])
    moved = [(user, item + 1, hour) for user, item, hour in EVENTS]
    before, _ = in_order(to_polars(rows(EVENTS)), ITEM_IDS)
    after, _ = in_order(to_polars(rows(moved)), longer)
    assert (after["item_index"] - 1).to_list() == before["item_index"].to_list()


@given(order=st.permutations(EVENTS))
def test_the_order_of_rows_does_not_matter(order):
    expected, expected_duplicates = in_order(to_polars(rows(EVENTS)), ITEM_IDS)
    events, duplicates = in_order(to_polars(rows(order)), ITEM_IDS)
    assert histories(events).equals(histories(expected))
    assert duplicates.equals(expected_duplicates)


def test_rare_items_go_first_and_then_short_histories():
    table = histories(in_order(to_polars(rows(EVENTS)), ITEM_IDS)[0])
    counts = np.array([0, 1, 2, 5, 1, 2, 0, 2, 0, 2])  # of all shards together
    kept = {row["user_id"]: row for row in frequent(table, counts, 2, 1).to_pylist()}
    assert {user: row["item_index"] for user, row in kept.items()} == {"ann": [3, 3], "bob": [9, 5, 2, 7]}
    assert [stamp.hour for stamp in kept["ann"]["timestamp"]] == [1, 5]
    assert frequent(table, counts, 2, 3).column("user_id").to_pylist() == ["bob"]
    assert frequent(table, counts, 9, 1).equals(sequences.SCHEMA.empty_table())
    assert frequent(table.slice(0, 0), counts, 2, 2).num_rows == 0
    assert frequent(table, counts, 1, 1).equals(table)


BAD = [
    {"shard": 0, "aside": json.dumps(aside)}
    for aside in (
        {"reason": rejected.UNKNOWN_ITEM, "row": "{}", "file": "log.json", "from_byte": 0, "number": 7},
        {"reason": rejected.MALFORMED, "row": "junk", "file": "log.json", "from_byte": 0, "number": 1},
        {"reason": BELOW_MIN_RATING, "count": 1},
        {"reason": BELOW_MIN_RATING, "count": 4},
    )
]


def drafted(root, block):
    """Draft and finish two shards; what both report, and all files."""
    at = {name: open_storage(str(root / name)) for name in ("drafts", "rejected", "sequences")}
    draft = Draft(at["drafts"], at["rejected"], ITEM_IDS)
    first = [row for part in block for table in draft(part) for row in table.to_pylist()]
    counts = np.sum([row["item_counts"] for row in first], axis=0)
    finish = Finish(at["drafts"], at["sequences"], DataConfig(num_shards=2), counts)
    second = [row for shard in (0, 1) for table in finish({"id": np.array([shard])}) for row in table.to_pylist()]
    files = {name: {entry.key: at[name].read(entry.key) for entry in at[name].list()} for name in at}
    return {row["shard"]: json.loads(row["report"]) for row in first}, second, counts, files


def test_shards_are_drafted_and_finished(tmp_path):
    block = rows(EVENTS, 2, BAD)
    assert {row["user_id"]: row["shard"] for row in block.to_pylist()[:9]} == {"ann": 0, "bob": 0, "cid": 1}
    first, second, counts, files = drafted(tmp_path, [block])
    assert first[0]["reasons"] == {rejected.DUPLICATE_EVENT: 1, rejected.MALFORMED: 1, rejected.UNKNOWN_ITEM: 1}
    assert first[0]["left_out"] == {BELOW_MIN_RATING: 5}
    assert (first[0]["kept"], first[1]["kept"]) == (7, 1)
    assert first[1]["reasons"] == {}
    assert first[0]["rejected"]["rows"] == 3
    assert counts.tolist() == [0, 1, 1, 2, 1, 1, 0, 1, 0, 1]
    assert set(files["rejected"]) == {rejected_name(0), rejected_name(1)}
    assert set(files["sequences"]) == {shard_name(0), shard_name(1)}
    report = json.loads(second[0]["report"])
    assert (report["users"], report["interactions"], report["evaluable"]) == (2, 7, 2)
    train = np.sum([row["item_counts"] for row in second], axis=0)  # without the last two of ann and bob
    assert train.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("apart", [False, True])
def test_files_are_the_same_however_rows_and_shards_come(tmp_path, apart):
    block = rows(EVENTS, 2, BAD)
    *_, expected = drafted(tmp_path / "expected", [block])
    turned = block.take(pa.array(np.arange(len(block))[::-1]))
    parts = [turned.filter(pa.array(np.array(turned.column("shard")) == shard)) for shard in (1, 0)]
    *_, files = drafted(tmp_path / "turned", parts if apart else [turned])
    assert files == expected


def test_an_empty_shard_and_an_empty_block(tmp_path):
    block = rows([("ann", 1, 1)], 2)
    first, second, _, files = drafted(tmp_path, [block, block.slice(0, 0)])
    assert list(first) == [0]
    assert json.loads(second[1]["report"])["users"] == 0
    assert set(files["sequences"]) == {shard_name(0), shard_name(1)}
