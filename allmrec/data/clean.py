"""Rows of the log as they come in → rows that `assemble` can deal to shards, each good or with its reason.

Vectorised over a batch of any size: what becomes of a row depends on that row and the catalogue alone. Duplicates
are found where a user's rows meet, in `assemble`. The catalogue's own cleaning is in `items`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

import polars as pl
import pyarrow as pa

from allmrec.data.config import DataConfig
from allmrec.data.jsonl import MALFORMED
from allmrec.data.sources import Column, Source
from allmrec.hashing import shard_of
from schemas import rejected

BELOW_MIN_RATING = "below_min_rating"  # left out by data.min_rating: counted, not rejected

CLEANED = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),  # of the user; of a rejected row by its text
        pa.field("user_id", pa.string()),  # this and the next two are null in rows with a reason
        pa.field("item_index", pa.int32()),
        pa.field("timestamp", pa.int64()),  # microseconds since 1970, UTC
        pa.field("reason", pa.string()),  # null: a good row; or one of rejected.REASONS, or BELOW_MIN_RATING
        pa.field("row", pa.string()),  # of a rejected row, as in the `rejected` table
    ]
)

_NUMBERS = (pl.Int64, pl.Float64)
_ISO = (
    r"^\s*(?<day>\d{4}-\d{2}-\d{2})(?:[T ](?<minutes>\d{2}:\d{2})(?::(?<seconds>\d{2}(?:\.\d{1,9})?))?)?"
    r"\s*(?<zone>Z|[+-]\d{2}:?\d{2})?\s*$"
)


def is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_id(kind: pa.DataType) -> bool:
    return is_text(kind) or pa.types.is_integer(kind)


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_time(kind: pa.DataType) -> bool:
    return is_text(kind) or is_number(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)


def _is_rating(kind: pa.DataType) -> bool:
    return is_number(kind) or is_text(kind) or pa.types.is_null(kind)


INTERACTIONS = {
    "user_id": Column(True, is_id, "text or an integer"),
    "item_id": Column(True, is_id, "text or an integer"),
    "timestamp": Column(True, _is_time, "a timestamp, a date, a number or ISO 8601 text"),
    "rating": Column(False, _is_rating, "a number"),
}


@dataclass(frozen=True)
class CleanInteractions:
    """A piece of the log → CLEANED rows, for `map_batches` over pieces."""

    source: Source
    data: DataConfig
    item_ids: pa.Array  # string (n,): the catalogue's, by item_index - 1

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for number in batch["id"]:
            for table in self.source.read(self.source.pieces[number]):
                yield clean_interactions(table, self.data, self.item_ids)


def clean_interactions(table: pa.Table, data: DataConfig, item_ids: pa.Array) -> pa.Table:
    """Rows of the log under our column names, with MALFORMED → as many CLEANED rows, the good ones first."""
    log = to_polars(table)
    catalogue = pl.DataFrame({"item_id": pl.Series(item_ids, dtype=pl.String)}).with_row_index("item_index", offset=1)
    rating = log["rating"].cast(pl.Float64, strict=False) if "rating" in log.columns else pl.lit(None, pl.Float64)
    below = pl.lit(False) if data.min_rating is None else (rating < data.min_rating).fill_null(True)
    timestamp = pl.col("timestamp")
    rows = (
        log.select(
            pl.col("user_id", "item_id").cast(pl.String),
            microseconds(log["timestamp"], data.interactions.timestamp_unit),
            MALFORMED,
            below.alias("below"),
            as_read=pl.struct(pl.all().exclude(MALFORMED)),
        )
        .join(catalogue, on="item_id", how="left", maintain_order="left")
        .with_columns(
            reason=pl.when(pl.col(MALFORMED).is_not_null())
            .then(pl.lit(rejected.MALFORMED))
            .when(pl.any_horizontal(pl.col("user_id", "item_id").fill_null("") == ""))
            .then(pl.lit(rejected.NULL_ID))
            .when(timestamp.is_null())
            .then(pl.lit(rejected.BAD_TIMESTAMP))
            .when(~timestamp.is_between(_midnight(data.earliest), _midnight(data.latest)))
            .then(pl.lit(rejected.ABSURD_TIMESTAMP))
            .when(pl.col("item_index").is_null())
            .then(pl.lit(rejected.UNKNOWN_ITEM))
            .when("below")
            .then(pl.lit(BELOW_MIN_RATING))
        )
    )
    reason = pl.col("reason")
    good = rows.filter(reason.is_null()).select("user_id", pl.col("item_index").cast(pl.Int32), "timestamp")
    bad = rows.filter(reason.is_in(rejected.REASONS)).select("reason", as_text("as_read"))
    left_out = rows.filter(reason == BELOW_MIN_RATING).select("reason")
    cleaned = pl.concat(
        [
            good.with_columns(_shards(good["user_id"], data.num_shards)),
            bad.with_columns(_shards(bad["row"], data.num_shards)),
            left_out.with_columns(shard=pl.lit(0, pl.Int32)),
        ],
        how="diagonal",
    )
    return to_arrow(cleaned, CLEANED)


def microseconds(times: pl.Series, unit: str) -> pl.Series:
    """Timestamps of any accepted type as int64 microseconds since 1970 in UTC, null where they cannot be parsed.

    Naive timestamps are taken as UTC. Numbers too large for 64 bits stay the largest there is.
    """
    factor = {"s": 1_000_000, "ms": 1_000, "us": 1}[unit]
    largest = (2**63 - 1) // factor
    if times.dtype == pl.String:
        whole, real = (microseconds(times.str.strip_chars().cast(kind, strict=False), unit) for kind in _NUMBERS)
        part = times.str.extract_groups(_ISO).struct.unnest().with_columns(pl.col("minutes").fill_null("00:00"))
        iso = part.select(
            pl.concat_str(
                "day",
                pl.lit("T"),
                "minutes",
                pl.lit(":"),
                pl.col("seconds").fill_null("00"),
                pl.col("zone").fill_null("Z").replace("Z", "+0000"),
            ).str.strptime(pl.Datetime("us", "UTC"), "%Y-%m-%dT%H:%M:%S%.f%z", strict=False)
        ).to_series()
        return pl.select(pl.coalesce(iso.cast(pl.Int64), whole, real)).to_series().alias(times.name)
    if times.dtype.is_temporal():
        return times.cast(pl.Datetime("us")).cast(pl.Int64)
    if times.dtype.is_float():
        scaled = (times.cast(pl.Float64).fill_nan(None) * factor).clip(-(2.0**62), 2.0**62)
        return scaled.round().cast(pl.Int64)
    return times.cast(pl.Int128).clip(-largest, largest).cast(pl.Int64) * factor


def to_polars(table: pa.Table) -> pl.DataFrame:
    """With text as String, whatever Arrow's encoding of it."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))


def to_arrow(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """The schema's columns in one chunk each, null where the frame has none."""
    missing = [pl.lit(None).alias(name) for name in schema.names if name not in frame.columns]
    return frame.with_columns(missing).select(schema.names).to_arrow().cast(schema).combine_chunks()


def as_text(as_read: str) -> pl.Expr:
    """The column `row` of the `rejected` table, from a struct of the row's columns and MALFORMED."""
    return pl.coalesce(MALFORMED, pl.col(as_read).struct.json_encode()).alias("row")


def _shards(keys: pl.Series, num_shards: int) -> pl.Series:
    return pl.Series("shard", shard_of(keys.to_arrow(), num_shards), pl.Int32)


def _midnight(day: date) -> int:
    """Microseconds since 1970."""
    return round(datetime.combine(day, time(), UTC).timestamp()) * 1_000_000
