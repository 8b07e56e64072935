import io
from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from allmrec.data.prepare.clean import BELOW_MIN_RATING, Cleaned, to_polars
from allmrec.data.prepare.exclusions import Exclusions
from allmrec.data.prepare.histories import MentionsItems, in_order
from allmrec.data.prepare.item_ids import ItemIds, ItemLookup
from schemas import rejected, sequences
from tests.data.shop import EVENTS, ITEM_IDS, Shop, cleaned, rows


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
    """A catalogue that grows gives items other numbers; no user's history may change by that."""
    longer = pa.array(["a new first item", *ITEM_IDS.to_pylist()])
    moved = [(user, item + 1, hour) for user, item, hour in EVENTS]
    before, _ = in_order(to_polars(rows(EVENTS)), ITEM_IDS)
    after, _ = in_order(to_polars(rows(moved)), longer)
    numbers = [
        [[item - by for item in items] for items in table.column("item_index").to_pylist()]
        for table, by in ((before, 0), (after, 1))
    ]
    assert numbers[0] == numbers[1]


def test_times_are_told_apart_to_the_microsecond_in_a_large_shard():
    random = np.random.default_rng(0)
    seconds, micros = random.integers(1, 4_102_444_800, 20), random.integers(0, 3, 20_000)
    time = random.choice(seconds, 20_000) * 1_000_000 + micros
    user, item = random.integers(0, 500, 20_000), random.integers(1, 10, 20_000).astype(np.int32)
    events = pl.DataFrame({"user_id": [f"user-{number:03d}" for number in user], "item_index": item, "timestamp": time})
    expected = events.unique().group_by("user_id").agg(pl.col("timestamp").sort()).sort("user_id")
    table, duplicates = in_order(events, ITEM_IDS)
    assert table.column("user_id").to_pylist() == expected["user_id"].to_list()
    assert table.column("timestamp").cast(pa.list_(pa.int64())).to_pylist() == expected["timestamp"].to_list()
    assert len(duplicates) == len(events) - len(events.unique()) > 0


@given(order=st.permutations(EVENTS))
def test_the_order_of_rows_does_not_matter(order):
    expected, expected_duplicates = in_order(to_polars(rows(EVENTS)), ITEM_IDS)
    table, duplicates = in_order(to_polars(rows(order)), ITEM_IDS)
    assert table.equals(expected)
    assert duplicates.equals(expected_duplicates)


def test_an_update_reports_what_was_kept_and_what_was_rejected(tmp_path):
    log, shop = cleaned(EVENTS), Shop(tmp_path)
    assert {row["user_id"]: row["shard"] for row in log.events.to_pylist()} == {"ann": 0, "bob": 0, "cid": 1}
    first, second = shop.update(log)
    assert first.rejected == {rejected.DUPLICATE_EVENT: 1, rejected.MALFORMED: 1, rejected.UNKNOWN_ITEM: 1}
    assert second.rejected == {}
    assert (first.dropped, second.dropped) == ({BELOW_MIN_RATING: 3}, {})
    assert (first.counts["kept"], second.counts["kept"]) == (7, 1)


def part(log, *slices):
    """Some of the rows of a log."""
    return Cleaned(log.events.take(pa.array(slices[0])), log.rejections.take(pa.array(slices[1])), Counter())


def test_files_are_the_same_in_whatever_order_and_logs_rows_come(tmp_path):
    log, whole = cleaned(EVENTS, filtered_out=0), Shop(tmp_path / "whole")
    whole.update(log)
    events, bad = np.arange(len(log.events))[::-1], np.arange(len(log.rejections))[::-1]
    pieces = Shop(tmp_path / "pieces")
    pieces.update(part(log, events[:4], bad[:1]), Cleaned(), part(log, events[4:], bad[1:]))
    days = Shop(tmp_path / "days")
    for day in range(3):
        days.update(part(log, events[day::3], bad[day::3]))
    assert pieces.content() == whole.content() == days.content()


def test_a_shard_that_gets_nothing_new_keeps_its_files(tmp_path):
    shop = Shop(tmp_path)
    first = shop.update(cleaned(EVENTS))
    second = shop.update(Cleaned(rows([("cid", 1, 7)], 2)))
    for kind in ("events", "rejected"):
        assert second[0].details[kind] == first[0].details[kind]
    assert second[0].rejected == first[0].rejected and second[0].dropped == first[0].dropped
    assert second[1].details["events"] != first[1].details["events"]
    assert [report.counts["kept"] for report in second] == [7, 2]


def test_counts_of_what_was_filtered_out_add_up_over_logs(tmp_path):
    shop = Shop(tmp_path)
    shop.update(cleaned(EVENTS))
    first, _ = shop.update(Cleaned(filtered_out=Counter({BELOW_MIN_RATING: 2, "other_event": 1})))
    assert first.dropped == {BELOW_MIN_RATING: 5, "other_event": 1}
    assert first.counts["kept"] == 7


def test_excluded_users_and_items_leave_histories_and_rejected_rows(tmp_path):
    shop = Shop(tmp_path)
    shop.update(cleaned(EVENTS))
    first, _ = shop.update(excluded=Exclusions.of(["ann"], ["item-7"], ITEM_IDS))
    assert first.rejected == {rejected.MALFORMED: 1}
    assert first.details["users"] == ["ann"]
    events = pa.concat_tables(
        [pq.read_table(io.BytesIO(data)) for name, data in shop.content().items() if "ev" in name]
    )
    assert {row["user_id"]: row["item_index"] for row in events.to_pylist()} == {"bob": [9, 5, 2], "cid": [4]}


def test_rejected_rows_that_name_an_item(tmp_path):
    shop = Shop(tmp_path)
    shop.update(cleaned(EVENTS))
    items = ItemIds.write(shop.storage, ItemLookup.of(pa.array(["item-1", "new", "newer"])))
    for first, counts in ((1, [1, 0]), (2, [0, 0])):
        found = shop.run(MentionsItems(shop.histories, shop.before, items, first))
        assert [report.counts["rows"] for report in found] == counts
