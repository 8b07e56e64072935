import datetime as dt
import json

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmrec.data.clean import BELOW_MIN_RATING, CLEANED, clean_interactions, microseconds
from allmrec.data.config import DataConfig
from allmrec.data.jsonl import MALFORMED
from allmrec.hashing import shard_of
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
SCHEMA = pa.schema(KINDS | {MALFORMED: pa.string()})


def cleaned(rows, schema=SCHEMA, **data):
    table = clean_interactions(pa.Table.from_pylist(rows, schema), DataConfig(num_shards=4, **data), ITEM_IDS)
    assert table.schema == CLEANED and len(table) == len(rows)
    return table.to_pylist()


def test_every_reason_and_the_row_as_json():
    rows = cleaned(ROWS)
    assert [(row["user_id"], row["item_index"], row["timestamp"]) for row in rows if not row["reason"]] == [
        ("u1", 2, 1_500_000_000_000_000),
        ("u1", 1, 1_500_000_001_000_000),
    ]
    assert [(row["reason"], row["row"]) for row in rows if row["reason"]] == [
        (rejected.MALFORMED, '{"user_id": "u'),
        (rejected.NULL_ID, '{"user_id":null,"item_id":"a","timestamp":1500000000,"rating":1.0}'),
        (rejected.NULL_ID, '{"user_id":"u2","item_id":"","timestamp":1500000000,"rating":1.0}'),
        (rejected.BAD_TIMESTAMP, '{"user_id":"u2","item_id":"a","timestamp":null,"rating":1.0}'),
        (rejected.ABSURD_TIMESTAMP, '{"user_id":"u2","item_id":"a","timestamp":5,"rating":1.0}'),
        (rejected.ABSURD_TIMESTAMP, f'{{"user_id":"u2","item_id":"a","timestamp":{2**62},"rating":1.0}}'),
        (rejected.UNKNOWN_ITEM, '{"user_id":"u2","item_id":"z","timestamp":1500000000,"rating":null}'),
    ]


def test_a_row_goes_to_its_users_shard():
    users = [f"user-{number}" for number in range(50)]
    rows = cleaned([{"user_id": user, "item_id": "a", "timestamp": 1_500_000_000} for user in users])
    assert [row["shard"] for row in rows] == shard_of(pa.array(users), 4).tolist()
    assert {row["shard"] for row in rows} == {0, 1, 2, 3}


def test_low_ratings_are_left_out_but_not_rejected():
    rows = cleaned([*ROWS[:2], {**ROWS[0], "rating": None}], min_rating=3)
    assert [(row["item_index"], row["reason"], row["row"]) for row in rows] == [
        (2, None, None),
        (None, BELOW_MIN_RATING, None),
        (None, BELOW_MIN_RATING, None),
    ]


def test_bounds_are_config():
    day = dt.date.fromtimestamp(1_500_000_000)
    assert cleaned(ROWS[:1], earliest=day, latest=day + dt.timedelta(1))[0]["reason"] is None
    assert cleaned(ROWS[:1], latest=day)[0]["reason"] == rejected.ABSURD_TIMESTAMP
    assert cleaned(ROWS[:1], earliest=day + dt.timedelta(1))[0]["reason"] == rejected.ABSURD_TIMESTAMP


def test_integer_and_dictionary_ids_are_read_as_text():
    table = pa.table(
        {
            "user_id": pa.array(["u", "v"]).dictionary_encode(),
            "item_id": pa.array([7, 8]),
            "timestamp": pa.array([1_500_000_000] * 2),
            MALFORMED: pa.nulls(2, pa.string()),
        }
    )
    rows = clean_interactions(table, DataConfig(), pa.array(["7"])).to_pylist()
    assert [(row["user_id"], row["item_index"], row["reason"]) for row in rows] == [
        ("u", 1, None),
        (None, None, rejected.UNKNOWN_ITEM),
    ]
    assert json.loads(rows[1]["row"])["user_id"] == "v"


@given(order=st.permutations(range(len(ROWS))), cut=st.integers(0, len(ROWS)))
def test_a_row_fares_the_same_in_any_batch(order, cut):
    rows = [ROWS[number] for number in order]
    apart = [*cleaned(rows[:cut]), *cleaned(rows[cut:])]
    assert sorted(map(str, apart)) == sorted(map(str, cleaned(ROWS)))


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
    assert microseconds(pl.Series([moment.date()]), "s").to_list() == [17_699 * DAY_US]
    assert microseconds(pl.Series([float("nan"), float("inf")]), "s").to_list() == [None, 2**62]
