import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from allmrec.artifacts import Manifest, seal, shard_name
from allmrec.data.assemble import CountItems, Draft, Finish, NamesItems, in_order, narrowed
from allmrec.data.clean import CLEANED, to_polars
from allmrec.data.config import DataConfig
from allmrec.data.exchange import write_piece
from allmrec.data.forget import Forgotten
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
    table, duplicates = in_order(to_polars(rows(EVENTS)), ITEM_IDS)
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
    numbers = [
        [[item - by for item in items] for items in table.column("item_index").to_pylist()]
        for table, by in ((before, 0), (after, 1))
    ]
    assert numbers[0] == numbers[1]


@given(order=st.permutations(EVENTS))
def test_the_order_of_rows_does_not_matter(order):
    expected, expected_duplicates = in_order(to_polars(rows(EVENTS)), ITEM_IDS)
    table, duplicates = in_order(to_polars(rows(order)), ITEM_IDS)
    assert table.equals(expected)
    assert duplicates.equals(expected_duplicates)


def test_histories_lose_interactions_and_users_who_have_none_left():
    table, _ = in_order(to_polars(rows(EVENTS)), ITEM_IDS)
    kept = narrowed(table, np.array([1, 0, 1, 0, 1, 1, 0, 0], dtype=bool))
    assert [(row["user_id"], row["item_index"]) for row in kept.to_pylist()] == [("ann", [3, 3]), ("bob", [5, 2])]
    assert [stamp.hour for stamp in kept.to_pylist()[0]["timestamp"]] == [1, 5]
    assert narrowed(table, np.zeros(8, dtype=bool)).equals(sequences.SCHEMA.empty_table())
    assert narrowed(table, np.ones(8, dtype=bool)).equals(table)
    assert narrowed(table.slice(0, 0), np.ones(0, dtype=bool)).num_rows == 0


BAD = [
    {"shard": 0, "reason": rejected.UNKNOWN_ITEM, "row": '{"user_id":"ann","item_id":"new"}'},
    {"shard": 0, "reason": rejected.MALFORMED, "row": "junk"},
]
NOBODY = Forgotten.of([], [], ITEM_IDS)


class Shop:
    """Two shards on a disk, brought up to date with one log after the other."""

    def __init__(self, root):
        self.storage = open_storage(str(root))
        self.histories, self.exchange = self.storage.at("histories"), self.storage.at("exchange")
        self.before: Manifest | None = None
        self.updates = 0

    def update(self, *logs, forgotten=NOBODY) -> dict[int, dict]:
        for number, block in enumerate(logs):
            write_piece(self.exchange, number, to_polars(block), 2)
        self.updates += 1
        forgets = forgotten is not NOBODY
        by = f"update {self.updates}"
        draft = Draft(self.exchange, len(logs), self.histories, self.before, forgotten, forgets, ITEM_IDS, by)
        reports = {row["shard"]: json.loads(row["report"]) for row in self.run(draft)}
        files = {name: entry for report in reports.values() for name, entry in report.pop("files").items()}
        self.before = seal(self.histories, "histories", by, files, facts={"shards": [reports[0], reports[1]]})
        return reports

    def finish(self, **data) -> list[dict]:
        finish = Finish(self.histories, self.storage.at("sequences"), None, DataConfig(**data), np.arange(10) > 0)
        return self.run(finish)

    def run(self, transform):
        return [row for shard in (0, 1) for table in transform({"id": np.array([shard])}) for row in table.to_pylist()]

    def content(self) -> dict[str, bytes]:
        shards = self.before.facts["shards"]
        names = [(number, kind, shard[kind]) for number, shard in enumerate(shards) for kind in ("events", "rejected")]
        return {f"{kind} {number}": self.histories.read(name) for number, kind, name in names}


def test_shards_are_drafted_counted_and_finished(tmp_path):
    block, shop = rows(EVENTS, 2, BAD), Shop(tmp_path)
    assert {row["user_id"]: row["shard"] for row in block.to_pylist()[:9]} == {"ann": 0, "bob": 0, "cid": 1}
    reports = shop.update(block)
    assert reports[0]["reasons"] == {rejected.DUPLICATE_EVENT: 1, rejected.MALFORMED: 1, rejected.UNKNOWN_ITEM: 1}
    assert reports[1]["reasons"] == {}
    assert (reports[0]["kept"], reports[1]["kept"]) == (7, 1)
    everything = np.arange(10) > 0
    counts = np.sum(
        [row["item_counts"] for row in shop.run(CountItems(shop.histories, DataConfig(), everything, 1))], 0
    )
    assert counts.tolist() == [0, 1, 1, 2, 1, 1, 0, 1, 0, 1]
    counts = np.sum(
        [row["item_counts"] for row in shop.run(CountItems(shop.histories, DataConfig(), everything, 2))], 0
    )
    assert counts.tolist() == [0, 1, 1, 2, 0, 1, 0, 1, 0, 1]
    finished = shop.finish()
    report = json.loads(finished[0]["report"])
    assert (report["users"], report["interactions"], report["evaluable"]) == (2, 7, 2)
    assert {entry.key for entry in shop.storage.at("sequences").list()} == {shard_name(0), shard_name(1)}
    train = np.sum([row["item_counts"] for row in finished], axis=0)  # without the last two of ann and bob
    assert train.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1]


def test_files_are_the_same_in_whatever_order_and_logs_rows_come(tmp_path):
    block, whole = rows(EVENTS, 2, BAD), Shop(tmp_path / "whole")
    whole.update(block)
    turned = block.take(pa.array(np.arange(len(block))[::-1]))
    pieces = Shop(tmp_path / "pieces")
    pieces.update(turned.slice(0, 4), turned.slice(4, 0), turned.slice(4))
    days = Shop(tmp_path / "days")
    for day in range(0, len(turned), 3):
        days.update(turned.slice(day, 3))
    assert pieces.content() == whole.content() == days.content()


def test_a_shard_that_nothing_is_new_for_keeps_its_files(tmp_path):
    shop = Shop(tmp_path)
    first = shop.update(rows(EVENTS, 2, BAD))
    second = shop.update(rows([("cid", 1, 7)], 2))
    assert second[0]["events"] == first[0]["events"] and second[1]["events"] != first[1]["events"]
    assert (second[0]["kept"], second[1]["kept"]) == (7, 2)


def test_forgotten_users_and_items_leave_histories_and_rejected_rows(tmp_path):
    shop = Shop(tmp_path)
    shop.update(rows(EVENTS, 2, BAD))
    reports = shop.update(forgotten=Forgotten.of(["ann"], ["item-7"], ITEM_IDS))
    assert reports[0]["reasons"] == {rejected.MALFORMED: 1}
    events = pa.concat_tables(
        [pq.read_table(io.BytesIO(data)) for name, data in shop.content().items() if "ev" in name]
    )
    assert {row["user_id"]: row["item_index"] for row in events.to_pylist()} == {"bob": [9, 5, 2], "cid": [4]}


def test_rejected_rows_that_name_an_item(tmp_path):
    shop = Shop(tmp_path)
    shop.update(rows(EVENTS, 2, BAD))
    names = [row["names"] for row in shop.run(NamesItems(shop.histories, shop.before, pa.array(["new", "newer"])))]
    assert names == [True, False]
    assert not any(row["names"] for row in shop.run(NamesItems(shop.histories, shop.before, pa.array(["newer"]))))


def test_an_empty_shard_and_an_unchanged_one(tmp_path):
    shop = Shop(tmp_path)
    shop.update(rows([("ann", 1, 1)], 2))
    before = json.loads(shop.finish()[1]["report"])
    assert before["users"] == 0
    entries = {shard_name(shard): json.loads(row["report"])["sequences"] for shard, row in enumerate(shop.finish())}
    sequences_at = shop.storage.at("sequences")
    sequences_at.delete(shard_name(0))
    finish = Finish(shop.histories, sequences_at, Manifest("sequences", "", entries), DataConfig(), np.arange(10) > 0)
    shop.run(finish)
    assert not sequences_at.exists(shard_name(0)), "what the manifest says is there already is not written again"
