import datetime as dt
import uuid
from decimal import Decimal

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allmrec.core.storage import S3Config
from allmrec.data.config import DataConfig, SourceConfig
from allmrec.data.prepare.clean import Cleaned, clean_interactions, log_columns
from allmrec.data.prepare.item_ids import ItemLookup
from allmrec.data.sources.cells import as_encoded_ids, as_flags, as_id_lists, as_ids, as_numbers, as_words, is_id, plain
from allmrec.data.sources.source import open_source

UUID = uuid.UUID("123e4567-e89b-12d3-a456-426614174000")
VIEWS = pa.DictionaryArray.from_arrays(pa.array([0, None], pa.uint32()), pa.array(["1.0", "b"], pa.string_view()))


@pytest.mark.parametrize(
    ("column", "ids"),
    [
        (pa.array(["007", "1.0", "1.00", "-2.0", "1.5", "1.50", "1.0a", "01.0", "1e3", "", None]), None),
        (pa.array([1, 2**63 - 1, -5, None]), ["1", "9223372036854775807", "-5", None]),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
        (pa.array([1.0, -0.0, 2.5, 2.0**53 - 1, 2.0**53, float("nan"), float("inf"), None]), None),
        (pa.array([16_777_215, 16_777_216], pa.float32()), ["16777215", None]),
        (pa.array([1.0, 1.5], pa.float16()), ["1", "1.5"]),
        (pa.array([Decimal("1.00"), Decimal("1.50"), None]), ["1", "1.50", None]),
        (pa.array([Decimal(10**37)], pa.decimal128(38, 0)), [str(10**37)]),
        (pa.array([Decimal("7.0")], pa.decimal256(60, 2)), ["7"]),
        (pa.array([Decimal("7.0")], pa.decimal32(3, 1)), ["7"]),
        (pa.array([UUID.bytes, None, UUID.bytes], pa.uuid()), [str(UUID), None, str(UUID)]),
        (pa.array([None, UUID.bytes], pa.binary(16)).slice(1), [str(UUID)]),
        (pa.array([b"ab", None], pa.binary(2)), ["ab", None]),
        (pa.array([b"a", None], pa.binary_view()), ["a", None]),
        (pa.array(["a", None], pa.string_view()), ["a", None]),
        (pa.array(["a", None], pa.large_string()), ["a", None]),
        (pa.array([7, None, 7]).dictionary_encode(), ["7", None, "7"]),
        (VIEWS, ["1", None]),
        (pa.nulls(2), [None, None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_an_id_is_one_text_whatever_its_type(column, ids):
    if ids is None:
        texts = ["007", "1", "1", "-2", "1.5", "1.50", "1.0a", "01.0", "1e3", "", None]
        ids = texts if pa.types.is_string(column.type) else ["1", "0", "2.5", str(2**53 - 1), *[None] * 4]
    assert is_id(column.type)
    found = as_ids(column)
    assert found.type == pa.string() and found.to_pylist() == ids
    encoded = as_encoded_ids(pa.chunked_array([column, column.slice(1)]))
    assert encoded.to_pylist() == ids + ids[1:]


def test_what_is_no_id():
    kinds = pa.bool_(), pa.date32(), pa.timestamp("us"), pa.list_(pa.string()), pa.struct([("a", pa.int8())])
    assert not any(map(is_id, kinds))


def test_lists_of_any_kind():
    values = [["1.0", "b"], None, [], ["c", None]]
    for kind in pa.list_, pa.large_list, pa.list_view, pa.large_list_view:
        for item in pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()):
            column = pa.array(values, kind(item)).slice(1)
            assert plain(column).to_pylist() == values[1:]
            assert as_id_lists(pa.array(values, kind(item))).to_pylist() == [["1", "b"], *values[1:]]
    assert as_id_lists(pa.array([[1.0, 2.0], None], pa.list_(pa.float64(), 2))).to_pylist() == [["1", "2"], None]
    words = as_words(pa.chunked_array([pa.array([[[1, 2]], None, [[3], None]])]))
    assert words.to_pylist() == [[["1", "2"]], None, [["3"], None]]
    assert as_words(pa.chunked_array([pa.array(["2.0"])])).to_pylist() == ["2.0"], "words are as they are"
    assert as_words(pa.chunked_array([pa.array([1984])])).to_pylist() == ["1984"]


def test_yes_and_no_as_people_write_them():
    yes = ["true", "True", "TRUE", "t", "yes", "Y", "on", "1", "1.0", " true ", "in_stock", "In Stock", "17"]
    no = ["false", "FALSE", "f", "No", "n", "off", "0", "0.0", "out_of_stock", "out-of-stock"]
    unknown = ["perhaps", "-1", "oui", "inf"]
    texts = [*yes, *no, *unknown, "", " ", "NaN", None]
    told = [*[True] * len(yes), *[False] * len(no), *[None] * (len(unknown) + 4)]
    unread = [*[False] * (len(yes) + len(no)), *[True] * len(unknown), *[False] * 4]
    for column in pa.array(texts), pa.array(texts, pa.string_view()), pa.array(texts).dictionary_encode():
        flags, unreadable = as_flags(pa.chunked_array([column]))
        assert flags.to_list() == told and unreadable.to_list() == unread
    for column in (
        pa.array([True, False, None]),
        pa.array([1, 0, None], pa.bool8()),
        pa.array([3, 0, None]),
        pa.array([1.0, 0.0, float("nan")]),
        pa.array([Decimal("2.0"), Decimal("0.0"), None]),
    ):
        flags, unreadable = as_flags(pa.chunked_array([column]))
        assert flags.to_list() == [True, False, None] and not unreadable.any()
    assert as_flags(pa.chunked_array([pa.nulls(2)]))[0].to_list() == [None, None]


def test_numbers():
    for column in (
        pa.array([" 4.5 ", "x", "nan", None]),
        pa.array([4.5, float("nan"), None, None]),
        pa.array([Decimal("4.5"), None, None, None]),
        pa.array([4.5, None, None, None], pa.float16()),
    ):
        assert as_numbers(pa.chunked_array([column])).to_list() == [4.5, None, None, None]


# Each kind of id and of time, by each writer.

NUMBERS = st.integers(0, 2**31 - 1) | st.none()
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(700_000_000, 2**31 - 1) | st.none()), min_size=1, max_size=8)
FRAMES = {
    "int64": lambda values: pd.Series(values, dtype="Int64"),
    "float64": lambda values: pd.Series(values, dtype="float64"),
    "object": lambda values: pd.Series([None if value is None else str(value) for value in values], dtype="object"),
    "string": lambda values: pd.Series([None if value is None else str(value) for value in values], dtype="string"),
    "category": lambda values: pd.Series(values, dtype="Int64").astype("category"),
    "decimals": lambda values: pd.Series(
        [None if value is None else Decimal(value) for value in values], dtype="object"
    ),
}
SERIES = {
    "int": lambda values: pl.Series(values, dtype=pl.Int64),
    "text": lambda values: pl.Series(values, dtype=pl.Int64).cast(pl.String),
    "categorical": lambda values: pl.Series(values, dtype=pl.Int64).cast(pl.String).cast(pl.Categorical),
    "float": lambda values: pl.Series(values, dtype=pl.Float64),
    "decimal": lambda values: pl.Series(values, dtype=pl.Int64).cast(pl.Decimal(20, 2)),
    "binary": lambda values: pl.Series(values, dtype=pl.Int64).cast(pl.String).cast(pl.Binary),
}
ARROWS = {
    str(kind): (lambda values, kind=kind: pa.array(values, pa.int64()).cast(pa.string()).cast(kind))
    for kind in (
        *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.int32(), pa.uint64(), pa.float64()),
        *(pa.decimal128(38, 0), pa.decimal128(20, 3), pa.decimal256(50, 0)),
    )
} | {"dictionary": lambda values: pa.array(values, pa.int64()).dictionary_encode()}
TIMES = {
    "s": lambda times: pa.array(times, pa.timestamp("s")),
    "us": lambda times: pa.array(times, pa.timestamp("s")).cast(pa.timestamp("us", "Asia/Tokyo")),
    "ns": lambda times: pa.array(times, pa.timestamp("s")).cast(pa.timestamp("ns")),
    "decimal": lambda times: pa.array([time and Decimal(time) for time in times], pa.decimal128(20, 6)),
    "text": lambda times: pa.array([time and str(time) for time in times], pa.string_view()),
    "iso": lambda times: pa.array([time and f"{dt.datetime.fromtimestamp(time, dt.UTC)}" for time in times]),
    "float": lambda times: pa.array(times, pa.float64()),
}


def written(path, writer, kind, rows):
    users, items, times = (list(column) for column in zip(*rows, strict=True))
    match writer:
        case "pandas":
            columns = {"user_id": FRAMES[kind](users), "item_id": FRAMES[kind](items)}
            moments = pd.to_datetime(pd.Series(times, dtype="float64"), unit="s", utc=True)
            pd.DataFrame({**columns, "timestamp": moments}).to_parquet(path)
        case "polars":
            moments = pl.from_epoch(pl.Series(times, dtype=pl.Int64), "s").dt.replace_time_zone("UTC")
            columns = {"user_id": SERIES[kind](users), "item_id": SERIES[kind](items)}
            pl.DataFrame({**columns, "timestamp": moments}).write_parquet(path)
        case "pyarrow":
            of = TIMES.get(kind, TIMES["s"])
            kind = kind if kind in ARROWS else "string"
            columns = {"user_id": ARROWS[kind](users), "item_id": ARROWS[kind](items)}
            pq.write_table(pa.table({**columns, "timestamp": of(times)}), path)


def read(path):
    """What became of the rows, by reason; the good ones in full."""
    data = DataConfig(interactions=SourceConfig(paths=[str(path)]))
    source = open_source("interactions", data.interactions, S3Config(), log_columns(data))
    lookup = ItemLookup.of(pa.array(["7"]))
    parts = [
        clean_interactions(table, data, lookup, {"file": "log", "from_byte": None})
        for piece in source.pieces
        for table in source.read(piece)
    ]
    cleaned = Cleaned.concat(parts)
    reasons = [*cleaned.rejections.column("reason").to_pylist(), *cleaned.filtered_out.elements()]
    return sorted([*reasons, *map(str, cleaned.events.to_pylist())])


@settings(deadline=None, max_examples=4)
@given(rows=ROWS)
def test_every_writer_gives_the_same_rows(rows, tmp_path_factory):
    rows = [(0, 7, 1_500_000_000), *rows]
    path = tmp_path_factory.mktemp("written") / "log.parquet"
    kinds = {"pandas": FRAMES, "polars": SERIES, "pyarrow": ARROWS | TIMES}
    found = {}
    for writer, kind in [(writer, kind) for writer, them in kinds.items() for kind in them]:
        written(path, writer, kind, rows)
        found[writer, kind] = read(path)
    assert all(told == found["pyarrow", "string"] for told in found.values())
