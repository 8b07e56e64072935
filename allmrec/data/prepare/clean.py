"""Rows of the log as they come in → events, rejected rows with their reason, and counts of what is filtered out.

Vectorised over a batch of any size: the result for a row depends on that row and the catalogue alone. Duplicates
are found where a user's rows meet, in `histories`. The catalogue's own cleaning is in `items`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.hashing import shard_of
from allmrec.data.config import DataConfig
from allmrec.data.prepare.item_ids import ItemIds, ItemLookup
from allmrec.data.sources.cells import (
    ID_TYPES,
    accepts,
    as_encoded_ids,
    as_ids,
    as_numbers,
    as_series,
    is_id,
    is_number,
    is_text,
    plain_chunks,
)
from allmrec.data.sources.lines import MALFORMED, NUMBER
from allmrec.data.sources.source import Column, Source
from schemas import rejected

# Why rows are left out that the config does not ask for: counted, not rejected.
OTHER_EVENT = "other_event"  # not of data.events
OUTSIDE_WINDOW = "outside_window"  # not from data.start to data.end
BELOW_MIN_RATING = "below_min_rating"  # or without a rating, by data.min_rating
FILTERED_OUT = (OTHER_EVENT, OUTSIDE_WINDOW, BELOW_MIN_RATING)

_SHARD = pa.field("shard", pa.int32(), nullable=False)
# Narrow, for this is what travels to shards: the good rows, by the shard of the user.
EVENTS = pa.schema(
    [
        _SHARD,
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_index", pa.int32(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),  # microseconds since 1970, UTC
    ]
)
# Rows of the `rejected` table, except `source`; by the shard of their text.
REJECTIONS = pa.schema([_SHARD, *(rejected.SCHEMA.field(name) for name in rejected.SCHEMA.names[1:])])

_ISO = (
    r"^\s*(?<day>\d{4}-\d{2}-\d{2})(?:[Tt ](?<minutes>\d{2}:\d{2})(?::(?<seconds>\d{2}(?:[.,]\d{1,9})?)\d*)?)?"
    r"\s*(?<zone>[Zz]|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?\s*$"
)


_is_time = accepts(is_text, is_number, pa.types.is_timestamp, pa.types.is_date)
_is_rating = accepts(is_text, is_number)
_OTHERS = {"rating": as_numbers, "event": as_ids}


def log_columns(data: DataConfig) -> dict[str, Column]:
    """What columns the log must have; those that nothing asks for are not read."""
    return {
        "user_id": Column(True, is_id, ID_TYPES),
        "item_id": Column(True, is_id, ID_TYPES, low_cardinality=True),
        "timestamp": Column(True, _is_time, "a timestamp, a date, a number or ISO 8601 text"),
        "rating": Column(data.min_rating is not None, _is_rating, "a number", read=data.min_rating is not None),
        "event": Column(data.events is not None, is_id, ID_TYPES, read=data.events is not None),
    }


@dataclass(frozen=True)
class Cleaned:
    """What cleaning makes of rows of the log."""

    events: pa.Table = field(default_factory=EVENTS.empty_table)
    rejections: pa.Table = field(default_factory=REJECTIONS.empty_table)
    filtered_out: Counter[str] = field(default_factory=Counter)  # rows left out as the config asks, by reason

    @staticmethod
    def concat(parts: Iterable["Cleaned"]) -> "Cleaned":
        """All parts as one."""
        parts = [Cleaned(), *parts]
        return Cleaned(
            pa.concat_tables([part.events for part in parts]),
            pa.concat_tables([part.rejections for part in parts]),
            sum((part.filtered_out for part in parts), Counter()),
        )


@dataclass(frozen=True)
class CleanInteractions:
    """Reads pieces of the log and cleans their rows."""

    source: Source
    data: DataConfig
    items: ItemIds  # the catalogue's

    def read(self, number: int) -> Iterator[Cleaned]:
        """One piece of `source.pieces`, cleaned table by table."""
        piece = self.source.pieces[number]
        place, lookup = self.source.place(piece), self.items.lookup()
        for table in self.source.read(piece):
            yield clean_interactions(table, self.data, lookup, place)


def clean_interactions(table: pa.Table, data: DataConfig, lookup: ItemLookup, place: Mapping[str, Any]) -> Cleaned:
    """Clean rows of the log under our column names, with MALFORMED and NUMBER. Each row ends in one of the three.

    Args:
        place: `Source.place` of the rows.
    """
    source = data.interactions
    users, items = as_ids(table.column("user_id")), as_encoded_ids(table.column("item_id"))
    item_index, times = lookup.find(items), as_series(table.column("timestamp"))
    no_item = _is_blank(items.cast(pa.string())) if item_index.null_count else item_index.is_null()
    stats = pl.DataFrame(
        {
            MALFORMED: table.column(MALFORMED).is_valid(),
            "no_id": pc.or_(_is_blank(users), no_item),
            "timestamp": microseconds(times, source.timestamp_unit, source.timestamp_format, data.timezone),
            "item_index": item_index,
            **{name: parse(table.column(name)) for name, parse in _OTHERS.items() if name in table.column_names},
        }
    )
    faults = _faults(data)
    faulty = stats.select(pl.any_horizontal(faults.values())).to_series()
    if not faulty.any():
        return Cleaned(_events(users, stats, data.num_shards))
    events = _events(users.filter((~faulty).to_arrow()), stats.filter(~faulty), data.num_shards)
    reason = pl.coalesce(pl.when(fault).then(pl.lit(name)) for name, fault in faults.items()).alias("reason")
    bad = to_polars(table.filter(faulty.to_arrow())).with_columns(stats.filter(faulty).select(reason))
    is_filtered_out = bad["reason"].is_in(FILTERED_OUT)
    counts = bad.filter(is_filtered_out)["reason"].value_counts().sort("reason")
    rejections = _rejections(bad.filter(~is_filtered_out), data.num_shards, place)
    return Cleaned(events, rejections, Counter(dict(counts.rows())))


def _faults(data: DataConfig) -> dict[str, pl.Expr]:
    """Reasons, and of which rows they hold; the first that does is a row's."""
    timestamp = pl.col("timestamp")
    faults = {
        rejected.MALFORMED: pl.col(MALFORMED),
        rejected.NULL_ID: pl.col("no_id"),
        rejected.BAD_TIMESTAMP: timestamp.is_null(),
        rejected.TIMESTAMP_OUT_OF_RANGE: ~timestamp.is_between(_midnight(data.earliest), _midnight(data.latest)),
    }
    if data.events is not None:
        faults[OTHER_EVENT] = ~pl.col("event").is_in(data.events).fill_null(False)
    if data.start is not None or data.end is not None:
        before = timestamp < _midnight(data.start or date.min, data.timezone)
        faults[OUTSIDE_WINDOW] = before | (timestamp >= _midnight(data.end or date.max, data.timezone))
    if data.min_rating is not None:
        faults[BELOW_MIN_RATING] = ~(pl.col("rating") >= data.min_rating).fill_null(False)
    return {**faults, rejected.UNKNOWN_ITEM: pl.col("item_index").is_null()}


def _events(users: pa.ChunkedArray, stats: pl.DataFrame, num_shards: int) -> pa.Table:
    columns = [stats["item_index"].to_arrow(), stats["timestamp"].to_arrow()]
    return pa.table([pa.array(shard_of(users, num_shards)), users, *columns], schema=EVENTS)


def _rejections(bad: pl.DataFrame, num_shards: int, place: Mapping[str, Any]) -> pa.Table:
    """REJECTIONS of rows with their reason."""
    rows = bad.select(
        "reason",
        as_text(pl.struct(pl.all().exclude("reason", MALFORMED, NUMBER))),
        *(pl.lit(value).alias(name) for name, value in place.items()),
        number=NUMBER,
    )
    shards = pl.Series(shard_of(rows["row"].to_arrow(), num_shards), dtype=pl.Int32)
    return to_arrow(rows.with_columns(shard=shards), REJECTIONS)


def microseconds(times: pl.Series, unit: str, format: str | None = None, timezone: str = "UTC") -> pl.Series:
    """Timestamps of any accepted type as int64 microseconds since 1970 in UTC, null where they cannot be parsed.

    Numbers too large for 64 bits stay the largest there is.

    Args:
        format: of text other than numbers and ISO 8601, as `strptime` takes it; numbers are taken as text then.
        timezone: of times that name none.
    """
    if times.dtype == pl.Null:
        return times.cast(pl.Int64)
    if format is not None:
        zone = "UTC" if "%z" in format else None
        if times.dtype.is_float() or times.dtype.is_decimal():
            times = times.cast(pl.Int64, strict=False)
        lenient = format.replace("%z", "%#z")  # takes +02 besides +0200
        parsed = times.cast(pl.String).str.strptime(pl.Datetime("us", zone), lenient, strict=False)
        return (parsed if zone else _local(parsed, timezone)).cast(pl.Int64)
    factor = {"s": 1_000_000, "ms": 1_000, "us": 1}[unit]
    largest = (2**63 - 1) // factor
    if times.dtype == pl.String:
        text = times.str.strip_chars()
        whole = microseconds(text.cast(pl.Int64, strict=False), unit)
        if whole.null_count() == times.null_count():
            return whole
        real = microseconds(text.cast(pl.Float64, strict=False), unit)
        part = times.str.extract_groups(_ISO).struct.unnest().with_columns(pl.col("minutes").fill_null("00:00"))
        iso = part.select(
            pl.concat_str(
                "day",
                pl.lit("T"),
                "minutes",
                pl.lit(":"),
                pl.col("seconds").fill_null("00").str.replace(",", ".", literal=True),
                pl.col("zone").fill_null("").str.replace("^(?:[Zz]|UTC|GMT|)$", "+00").str.replace("^...$", "${0}00"),
            ).str.strptime(pl.Datetime("us", "UTC"), "%Y-%m-%dT%H:%M:%S%.f%z", strict=False)
        ).to_series()
        naive = _local(iso.dt.replace_time_zone(None), timezone)
        zoned = iso.zip_with(part["zone"].is_not_null(), naive).cast(pl.Int64)
        return pl.select(pl.coalesce(zoned, whole, real)).to_series().alias(times.name)
    if times.dtype.is_temporal():
        zone = getattr(times.dtype, "time_zone", None)
        times = times.cast(pl.Datetime("us", zone))
        return (times if zone else _local(times, timezone)).cast(pl.Int64)
    if times.dtype.is_float() or times.dtype.is_decimal():
        scaled = (times.cast(pl.Float64).fill_nan(None) * factor).clip(-(2.0**62), 2.0**62)
        return scaled.round().cast(pl.Int64)
    if times.dtype == pl.UInt64:
        times = times.clip(upper_bound=largest)
    return times.cast(pl.Int64).clip(-largest, largest) * factor


def _local(naive: pl.Series, timezone: str) -> pl.Series:
    """Times of a zone; of an hour that comes twice the first is meant, and in one that is left out there is none."""
    there = naive.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null")
    return there.dt.convert_time_zone("UTC")


def to_polars(table: pa.Table) -> pl.DataFrame:
    """With text as String, whatever Arrow's encoding of it."""
    frame = pl.from_arrow(pa.table({name: plain_chunks(table.column(name)) for name in table.column_names}))
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))


def to_arrow(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """The schema's columns in one chunk each, null where the frame has none."""
    missing = [pl.lit(None).alias(name) for name in schema.names if name not in frame.columns]
    return frame.with_columns(missing).select(schema.names).to_arrow().cast(schema).combine_chunks()


def as_text(as_read: pl.Expr) -> pl.Expr:
    """The column `row` of the `rejected` table, from a struct of the row's columns, and MALFORMED."""
    return pl.coalesce(MALFORMED, as_read.struct.json_encode()).alias("row")


def _is_blank(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.equal(pc.binary_length(ids), 0).fill_null(True)


def _midnight(day: date, timezone: str = "UTC") -> int:
    """Microseconds since 1970."""
    return round(datetime.combine(day, time(), ZoneInfo(timezone)).timestamp()) * 1_000_000
