import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from allmrec.data.prepare.clean import BELOW_MIN_RATING, to_polars
from allmrec.data.prepare.exclusions import Exclusions
from allmrec.data.prepare.histories import MentionsItems, in_order
from schemas import rejected, sequences
from tests.data.shop import BAD, EVENTS, ITEM_IDS, Shop, rows


def test_events_are_put_in_time_order_and_ties_by_hash():
    table, duplicates = in_order(to_polars(rows(EVENTS)), ITEM_IDS)
    assert table.schema == sequences.HISTORY
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


def test_a_draft_reports_what_was_kept_and_what_was_rejected(tmp_path):
    block, shop = rows(EVENTS, 2, BAD), Shop(tmp_path)
    assert {row["user_id"]: row["shard"] for row in block.to_pylist()[:9]} == {"ann": 0, "bob": 0, "cid": 1}
    reports = shop.update(block)
    assert reports[0]["reasons"] == {rejected.DUPLICATE_EVENT: 1, rejected.MALFORMED: 1, rejected.UNKNOWN_ITEM: 1}
    assert reports[1]["reasons"] == {}
    assert (reports[0]["filtered_out"], reports[1]["filtered_out"]) == ({BELOW_MIN_RATING: 3}, {})
    assert (reports[0]["kept"], reports[1]["kept"]) == (7, 1)


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
    reports = shop.update(excluded=Exclusions.of(["ann"], ["item-7"], ITEM_IDS))
    assert reports[0]["reasons"] == {rejected.MALFORMED: 1}
    events = pa.concat_tables(
        [pq.read_table(io.BytesIO(data)) for name, data in shop.content().items() if "ev" in name]
    )
    assert {row["user_id"]: row["item_index"] for row in events.to_pylist()} == {"bob": [9, 5, 2], "cid": [4]}


def test_rejected_rows_that_name_an_item(tmp_path):
    shop = Shop(tmp_path)
    shop.update(rows(EVENTS, 2, BAD))
    names = [row["names"] for row in shop.run(MentionsItems(shop.histories, shop.before, pa.array(["new", "newer"])))]
    assert names == [True, False]
    assert not any(row["names"] for row in shop.run(MentionsItems(shop.histories, shop.before, pa.array(["newer"]))))
