import datetime as dt
import json
from decimal import Decimal

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allmrec.core.hashing import shard_of
from allmrec.data.config import DataConfig, SourceConfig
from allmrec.data.prepare.clean import (
    BELOW_MIN_RATING,
    EVENTS,
    OTHER_EVENT,
    OUTSIDE_WINDOW,
    REJECTIONS,
    clean_interactions,
    microseconds,
)
from allmrec.data.prepare.item_ids import ItemLookup
from allmrec.data.sources.lines import MALFORMED, NUMBER
from schemas import rejected

ITEM_IDS = pa.array(["a", "b", "c"])
DAY_US = 86_400_000_000
ROWS = [
    {"user_id": "u1", "item_id": "b", "timestamp": 1_500_000_000, "rating": 5.0},
    {"user_id": "u1", "item_id": "a", "timestamp": 1_500_000_001, "rating": 2.0},
    {"user_id": None, "item_id": None, "timestamp": None, "rating": None, MALFORMED: '{"user_id": "u'},
    {"user_id": None, "item_id": "a", "timestamp": 1_500_000_000, "rating": 1.0},
    {"user_id": "u2", "item_id": "", "timestamp": 1_500_000_000, "rating": 1.0},
    {"user_id": "u2", "item_id": "a", "timestamp": None, "rating": 1.0},
    {"user_id": "u2", "item_id": "a", "timestamp": 5, "rating": 1.0},
    {"user_id": "u2", "item_id": "a", "timestamp": 2**62, "rating": 1.0},
    {"user_id": "u2", "item_id": "z", "timestamp": 1_500_000_000, "rating": None},
]
KINDS = {"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64(), "rating": pa.float64()}
SCHEMA = pa.schema(KINDS | {MALFORMED: pa.string(), NUMBER: pa.int64()})
PLACE = {"file": "log.json", "from_byte": 0}


def cleaned(rows, schema=SCHEMA, **data):
    """The good rows, the rejected ones, and how many were left out and why."""
    rows = [{**row, NUMBER: number} for number, row in enumerate(rows, 1)]
    table = pa.Table.from_pylist(rows, schema)
    found = clean_interactions(table, DataConfig(num_shards=4, **data), ItemLookup.of(ITEM_IDS), PLACE)
    assert found.events.schema == EVENTS and found.rejections.schema == REJECTIONS
    assert len(found.events) + len(found.rejections) + found.filtered_out.total() == len(rows)
    return found.events.to_pylist(), found.rejections.to_pylist(), found.filtered_out


def test_every_reason_and_the_row_as_json():
    good, bad, filtered_out = cleaned(ROWS)
    assert [(row["user_id"], row["item_index"], row["timestamp"]) for row in good] == [
        ("u1", 2, 1_500_000_000_000_000),
        ("u1", 1, 1_500_000_001_000_000),
    ]
    assert [(row["reason"], row["row"]) for row in bad] == [
        (rejected.MALFORMED, '{"user_id": "u'),
        (rejected.NULL_ID, '{"user_id":null,"item_id":"a","timestamp":1500000000,"rating":1.0}'),
        (rejected.NULL_ID, '{"user_id":"u2","item_id":"","timestamp":1500000000,"rating":1.0}'),
        (rejected.BAD_TIMESTAMP, '{"user_id":"u2","item_id":"a","timestamp":null,"rating":1.0}'),
        (rejected.TIMESTAMP_OUT_OF_RANGE, '{"user_id":"u2","item_id":"a","timestamp":5,"rating":1.0}'),
        (rejected.TIMESTAMP_OUT_OF_RANGE, f'{{"user_id":"u2","item_id":"a","timestamp":{2**62},"rating":1.0}}'),
        (rejected.UNKNOWN_ITEM, '{"user_id":"u2","item_id":"z","timestamp":1500000000,"rating":null}'),
    ]
    assert [(row["file"], row["from_byte"], row["number"]) for row in bad] == [
        ("log.json", 0, number) for number in range(3, 10)
    ]
    assert not filtered_out


def test_a_row_goes_to_its_users_shard():
    users = [f"user-{number}" for number in range(50)]
    good, *_ = cleaned([{"user_id": user, "item_id": "a", "timestamp": 1_500_000_000} for user in users])
    assert [row["shard"] for row in good] == shard_of(pa.array(users), 4).tolist()
    assert {row["shard"] for row in good} == {0, 1, 2, 3}


def test_what_the_config_does_not_ask_for_is_left_out_and_counted():
    rows = [
        {"rating": 5.0, "event": "buy"},
        {"rating": 2.0, "event": "buy"},
        {"rating": None, "event": "buy"},
        {"rating": 5.0, "event": "view"},
        {"rating": 5.0, "event": None, "item_id": "z"},
        {"rating": 5.0, "event": "buy", "timestamp": 1_500_000_000 + 86_400},
        {"rating": 5.0, "event": "buy", "timestamp": 1_500_000_000 - 86_400},
        {"rating": 5.0, "event": "cart", "item_id": "z"},
        {"rating": 1.0, "event": "view", "timestamp": None},
    ]
    rows = [{"user_id": "u1", "item_id": "b", "timestamp": 1_500_000_000} | row for row in rows]
    schema, day = SCHEMA.append(pa.field("event", pa.string())), dt.date.fromtimestamp(1_500_000_000)
    wanted = {"min_rating": 3, "events": ["buy", "cart"], "start": day, "end": day + dt.timedelta(1)}
    good, bad, filtered_out = cleaned(rows, schema, **wanted)
    assert len(good) == 1
    assert [row["reason"] for row in bad] == [rejected.UNKNOWN_ITEM, rejected.BAD_TIMESTAMP]
    assert filtered_out == {BELOW_MIN_RATING: 2, OTHER_EVENT: 2, OUTSIDE_WINDOW: 2}
    assert cleaned(rows, schema, start=day)[2] == {OUTSIDE_WINDOW: 1}
    assert cleaned(rows, schema, end=day)[2] == {OUTSIDE_WINDOW: 7}


def test_bounds_are_config():
    day = dt.date.fromtimestamp(1_500_000_000)
    assert cleaned(ROWS[:1], earliest=day, latest=day + dt.timedelta(1))[0]
    for bounds in {"latest": day}, {"earliest": day + dt.timedelta(1)}:
        _, (bad,), _ = cleaned(ROWS[:1], **bounds)
        assert bad["reason"] == rejected.TIMESTAMP_OUT_OF_RANGE


def test_integer_and_dictionary_ids_are_read_as_text():
    table = pa.table(
        {
            "user_id": pa.array(["u", "v"]).dictionary_encode(),
            "item_id": pa.array([7, 8]),
            "timestamp": pa.array([1_500_000_000] * 2),
            MALFORMED: pa.nulls(2, pa.string()),
            NUMBER: pa.array([1, 2]),
        }
    )
    found = clean_interactions(table, DataConfig(), ItemLookup.of(pa.array(["7"])), PLACE)
    assert [(row["user_id"], row["item_index"]) for row in found.events.to_pylist()] == [("u", 1)]
    (bad,) = found.rejections.to_pylist()
    assert bad["reason"] == rejected.UNKNOWN_ITEM
    assert json.loads(bad["row"])["user_id"] == "v"


@settings(deadline=None)
@given(order=st.permutations(range(len(ROWS))), cut=st.integers(0, len(ROWS)))
def test_a_row_fares_the_same_in_any_batch(order, cut):
    def told(*batches):
        return sorted(str(row | {"number": 0}) for good, bad, _ in batches for row in [*good, *bad])

    rows = [ROWS[number] for number in order]
    assert told(cleaned(rows[:cut]), cleaned(rows[cut:])) == told(cleaned(ROWS))


@pytest.mark.parametrize(
    ("value", "us"),
    [
        ("2018-06-17", 17_699 * DAY_US),
        ("2018-06-17T00:00:01", 17_699 * DAY_US + 1_000_000),
        (" 2018-06-17 01:30 ", 17_699 * DAY_US + 5_400_000_000),
        ("2018-06-17T00:00:00.000250Z", 17_699 * DAY_US + 250),
        ("2018-06-17T02:00:00+02:00", 17_699 * DAY_US),
        ("2018-06-16T22:00:00-0200", 17_699 * DAY_US),
        ("1529193600", 17_699 * DAY_US),
        ("1529193600.5", 17_699 * DAY_US + 500_000),
        ("2018-06-17 00:00:00+00", 17_699 * DAY_US),
        ("2018-06-17 05:30:00.5+05:30", 17_699 * DAY_US + 500_000),
        ("2018-06-17 02:00:00.5+02", 17_699 * DAY_US + 500_000),
        ("2018-06-17 00:00:00 UTC", 17_699 * DAY_US),
        ("2018-06-17 00:00:00.25 GMT", 17_699 * DAY_US + 250_000),
        ("2018-06-17t00:00:00z", 17_699 * DAY_US),
        ("2018-06-17 00:00:00,250", 17_699 * DAY_US + 250_000),
        ("2018-06-17 00:00:00 CET", None),
        ("2018-02-31", None),
        ("2018-06-17T25:00:00", None),
        ("06 17, 2018", None),
        ("nan", None),
        ("", None),
        (None, None),
    ],
)
def test_timestamps_as_text(value, us):
    assert microseconds(pl.Series("timestamp", [value], pl.String), "s").to_list() == [us]


def test_timestamps_of_other_types():
    moment = dt.datetime(2018, 6, 17, 12, tzinfo=dt.UTC)
    us = 17_699 * DAY_US + DAY_US // 2
    naive, berlin = moment.replace(tzinfo=None), pl.Datetime("ns", "Europe/Berlin")
    for values, unit in [
        (pl.Series([us // 1_000_000]), "s"),
        (pl.Series([us // 1_000]), "ms"),
        (pl.Series([us], dtype=pl.UInt64), "us"),
        (pl.Series([us / 1e6]), "s"),
        (pl.Series([naive]), "s"),
        (pl.Series([moment]).cast(berlin), "s"),
    ]:
        assert microseconds(values, unit).to_list() == [us], values
    fractions = pl.Series([Decimal("0.1"), Decimal("0.123456"), None], dtype=pl.Decimal(38, 6))
    assert microseconds(fractions, "s").to_list() == [100_000, 123_456, None]
    assert microseconds(pl.Series([None, None]), "s").to_list() == [None, None]
    assert microseconds(pl.Series([None]), "s", "%Y").to_list() == [None]
    assert microseconds(pl.Series([moment.date()]), "s").to_list() == [17_699 * DAY_US]
    assert microseconds(pl.Series([float("nan"), float("inf")]), "s").to_list() == [None, 2**62]


def test_timestamps_of_a_format():
    assert microseconds(pl.Series(["06 17, 2018", "6 17, 2018", "junk", None]), "s", "%m %d, %Y").to_list() == [
        17_699 * DAY_US,
        17_699 * DAY_US,
        None,
        None,
    ]
    assert microseconds(pl.Series([20180617, 20181399]), "s", "%Y%m%d").to_list() == [17_699 * DAY_US, None]
    zoned = pl.Series(["17.06.2018 02:00 +0200"])
    assert microseconds(zoned, "s", "%d.%m.%Y %H:%M %z").to_list() == [17_699 * DAY_US]
    assert microseconds(pl.Series(["17.06.2018 02:00+02"]), "s", "%d.%m.%Y %H:%M%z").to_list() == [17_699 * DAY_US]
    with pytest.raises(ValueError, match=r"timestamp_format: '%d %H' cannot be read"):
        SourceConfig(timestamp_format="%d %H")
    assert microseconds(pl.Series([20180617.0, None]), "s", "%Y%m%d").to_list() == [17_699 * DAY_US, None]


def test_numbers_as_text_beside_other_text():
    texts = pl.Series(["1529193600", " 1529193601 ", "2018-06-17", "junk", None])
    us = 17_699 * DAY_US
    assert microseconds(texts, "s").to_list() == [us, us + 1_000_000, us, None, None]
    assert microseconds(texts[:2], "s").to_list() == [us, us + 1_000_000]


@settings(deadline=None)
@given(
    catalogue=st.sets(st.text(min_size=1, max_size=9), min_size=1, max_size=30),
    others=st.lists(st.none() | st.text(max_size=9), max_size=9),
    kind=st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]),
)
def test_lookup_agrees_with_a_dictionary(catalogue, others, kind):
    item_ids = sorted(catalogue)
    index = {item_id: number for number, item_id in enumerate(item_ids, 1)}
    wanted = [*item_ids, *others, *item_ids]
    found = ItemLookup.of(pa.array(item_ids)).find(pa.chunked_array([pa.array(wanted).cast(kind), pa.array([], kind)]))
    assert found.to_pylist() == [index.get(item_id) for item_id in wanted]


def test_times_in_a_dictionary_of_text_and_ratings_that_are_none():
    table = pa.table(
        {
            "user_id": ["u", "v", "w"],
            "item_id": pa.array([1.0, 2.0, None]),
            "timestamp": pa.array(["2018-06-17", "2018-06-18", "2018-06-17"]).dictionary_encode(),
            "rating": pa.array([4.0, float("nan"), 5.0]),
            "event": pa.array([1.0, 1.0, 1.0]),
            MALFORMED: pa.nulls(3, pa.string()),
            NUMBER: pa.array([1, 2, 3]),
        }
    )
    data = DataConfig(min_rating=3, events=["1"])
    found = clean_interactions(table, data, ItemLookup.of(pa.array(["1", "2"])), PLACE)
    (good,) = found.events.to_pylist()
    assert (good["user_id"], good["item_index"], good["timestamp"]) == ("u", 1, 17_699 * DAY_US)
    assert found.rejections.column("reason").to_pylist() == [rejected.NULL_ID]
    assert found.filtered_out == {BELOW_MIN_RATING: 1}


@pytest.mark.parametrize(
    ("times", "format"),
    [
        (pl.Series(["2024-07-01T12:00", "2024-07-01 10:00Z", "2024-07-01T12:00+02:00", "1719828000"]), None),
        (pl.Series([dt.datetime(2024, 7, 1, 12)]), None),
        (pl.Series([dt.datetime(2024, 7, 1, 10, tzinfo=dt.UTC)]), None),
        (pl.Series(["01.07.2024 12:00"]), "%d.%m.%Y %H:%M"),
        (pl.Series(["01.07.2024 12:00 +0200"]), "%d.%m.%Y %H:%M %z"),
    ],
)
def test_times_that_name_no_zone_are_of_the_configured_one(times, format):
    assert set(microseconds(times.alias("timestamp"), "s", format, "Europe/Berlin")) == {1_719_828_000_000_000}


def test_hours_that_come_twice_or_never_and_days():
    times = pl.Series("timestamp", ["2024-03-31 02:30", "2024-10-27 02:30", "2024-07-01"])
    first = int(dt.datetime(2024, 10, 27, 0, 30, tzinfo=dt.UTC).timestamp()) * 1_000_000
    day = int(dt.datetime(2024, 6, 30, 22, tzinfo=dt.UTC).timestamp()) * 1_000_000
    assert microseconds(times, "s", None, "Europe/Berlin").to_list() == [None, first, day]
    assert microseconds(pl.Series([dt.date(2024, 7, 1)]), "s", None, "Europe/Berlin").to_list() == [day]
    with pytest.raises(ValueError, match="no time zone 'Mars/Base'"):
        DataConfig(timezone="Mars/Base")
