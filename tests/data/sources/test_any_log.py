"""Whatever a log holds, in whatever format: every row is accepted, rejected with a reason, or left out and counted."""

import datetime as dt
import gzip
import itertools
import json
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from allmrec.core.storage import S3Config, open_storage
from allmrec.data.config import DataConfig
from allmrec.data.prepare.clean import FILTERED_OUT, Cleaned, CleanInteractions, log_columns
from allmrec.data.prepare.item_ids import ItemIds, ItemLookup
from allmrec.data.prepare.items import ITEMS
from allmrec.data.sources import lines as lines_module
from allmrec.data.sources import readers
from allmrec.data.sources.source import open_source
from schemas import rejected
from tests.data.catalogues import cleaned_rows, index_items

IDS = ["a", "b", "7", "ü", " "]
COLUMNS = ["user_id", "item_id", "timestamp", "rating", "event", "title"]
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
words = st.sampled_from([*IDS, "", "1500000000", "2017-07-14", "4.5", "view", "nan"]) | text
numbers = st.sampled_from([0, 7, 1_500_000_000, -1, 2**63, 2**70]) | st.floats() | st.integers()
values = st.none() | words | numbers | st.booleans() | st.lists(words, max_size=2) | st.dictionaries(words, words)
rows = st.lists(st.dictionaries(st.sampled_from(COLUMNS), values), max_size=8)
junk = st.lists(st.binary(max_size=9).map(lambda line: line.translate(None, b"\n\r")), max_size=4)
first = {"user_id": "a", "item_id": "7", "timestamp": 1_500_000_000, "rating": 4.5, "event": "view", "title": "t"}


def told(data, s3=S3Config()):
    """How many rows were accepted, rejected and left out."""
    log = open_source("interactions", data.interactions, s3, log_columns(data))
    with TemporaryDirectory() as folder:
        items = ItemIds.write(open_storage(folder), ItemLookup.of(pa.array(IDS)))
        clean = CleanInteractions(log, data, items)
        cleaned = Cleaned.concat(table for piece in range(len(log.pieces)) for table in clean.read(piece))
    good, bad, filtered_out = cleaned.events, cleaned.rejections, cleaned.filtered_out
    assert set(bad.column("reason").to_pylist()) <= set(rejected.REASONS) and set(filtered_out) <= set(FILTERED_OUT)
    assert not any(bad.column(name).null_count for name in ("row", "file", "number"))
    assert not any(column.null_count for column in good.columns)
    shop = open_source("items", data.items, s3, ITEMS)
    items, bad_items = index_items(cleaned_rows(shop))
    assert len(items) + len(bad_items) == len(good) + len(bad) + sum(filtered_out.values())
    return len(good), len(bad), sum(filtered_out.values())


def write(path, lines):
    data = b"\n".join(lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def config(path, wanted, **source):
    section = {"paths": [str(path)], **source}
    return DataConfig(interactions=section, items=section, **wanted)


any_log = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
wanted = st.sampled_from(
    [{}, {"min_rating": 3}, {"events": ["view"]}, {"start": dt.date(2017, 1, 1), "end": dt.date(2018, 1, 1)}]
)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(readers, "RANGE", 50)
    monkeypatch.setattr(lines_module, "CHUNK", 2000)
    monkeypatch.setattr(lines_module, "_RECORD", 300)


@any_log
@given(rows=rows, junk=junk, wanted=wanted, name=st.sampled_from(["log.json", "log.json.gz"]), literal=st.booleans())
def test_objects(tmp_path, rows, junk, wanted, name, literal):
    written = [repr(row) if literal else json.dumps(row) for row in [*[first] * 9, *rows]]
    mixed = [line for pair in itertools.zip_longest([line.encode() for line in written], junk) for line in pair if line]
    write(tmp_path / name, mixed)
    count = len([line for line in mixed if line.strip()])  # lines of nothing but blanks are none
    assert sum(told(config(tmp_path / name, wanted, format="literal" if literal else "jsonl"))) == count


@any_log
@given(
    rows=st.lists(st.lists(words, min_size=4, max_size=8), max_size=8),
    junk=junk,
    wanted=wanted,
    delimiter=st.sampled_from([",", "::", "\t"]),
    quote=st.sampled_from(['"', None]),
    encoding=st.sampled_from(["utf-8", "cp1252"]),
    quoted_newlines=st.booleans(),
)
def test_delimited(tmp_path, rows, junk, wanted, delimiter, quote, encoding, quoted_newlines):
    table = [[str(value) for value in first.values()], *rows]
    if quote:
        table = [[f'"{value}"' if "a" in value else value for value in row] for row in table]
    lines = [line for row in table for line in delimiter.join(row).encode().splitlines()]
    mixed = [line for pair in itertools.zip_longest(lines, junk) for line in pair if line]
    write(tmp_path / "log.csv", mixed)
    form = {"delimiter": delimiter, "quote": quote, "encoding": encoding, "quoted_newlines": quoted_newlines}
    found = sum(told(config(tmp_path / "log.csv", wanted, format="csv", names=COLUMNS, **form)))
    assert found <= len(mixed) if quoted_newlines and quote else found == len(mixed)


KINDS = {
    "user_id": [pa.string(), pa.large_string(), pa.int64(), pa.dictionary(pa.int32(), pa.string())],
    "item_id": [pa.string(), pa.string_view(), pa.uint8(), pa.dictionary(pa.int8(), pa.string())],
    "timestamp": [pa.int64(), pa.uint64(), pa.float64(), pa.string(), pa.timestamp("ns", "UTC"), pa.date32()],
    "rating": [pa.float32(), pa.float64(), pa.int8(), pa.string(), pa.null()],
    "event": [pa.string(), pa.int32()],
    "title": [pa.string(), pa.list_(pa.string())],
}
PLAIN = {
    "int": st.none() | st.integers(0, 100),
    "uint": st.none() | st.integers(0, 100),
    "float": st.none() | st.floats(width=32),
    "double": st.none() | st.floats(),
    "halffloat": st.none() | st.floats(width=16),
    "timestamp": st.none() | st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1)),
    "date": st.none() | st.dates(),
    "list": st.none() | st.lists(st.none() | words, max_size=2),
    "null": st.none(),
}


@any_log
@given(data=st.data(), wanted=wanted, count=st.integers(1, 20), group=st.integers(1, 7))
def test_parquet(tmp_path, data, wanted, count, group):
    columns = {}
    for name, kinds in KINDS.items():
        kind = data.draw(st.sampled_from(kinds))
        plain = PLAIN.get(str(kind).rstrip("0123456789").partition("[")[0].partition("<")[0].rstrip("0123456789"))
        entries = data.draw(st.lists(st.none() | words if plain is None else plain, min_size=count, max_size=count))
        columns[name] = pa.array(entries, pa.string()).cast(kind) if plain is None else pa.array(entries, kind)
    pq.write_table(pa.table(columns), tmp_path / "log.parquet", row_group_size=group)
    assert sum(told(config(tmp_path / "log.parquet", wanted))) == count
