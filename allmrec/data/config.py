"""What `prepare` reads, and which rows it keeps."""

from datetime import date
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field, model_validator

from allmrec.core.settings import Section, Timezone
from schemas import interactions, items


class SourceConfig(Section):
    """Where an input table is, its format, and what its columns are called there."""

    paths: list[str] = Field(default_factory=list)  # files, folders or globs (*, ?, **), on a disk or s3://
    format: Literal["parquet", "csv", "jsonl", "literal"] = "parquet"  # literal: one Python dictionary per line
    version: int | None = None  # of a Delta Lake table, or an Iceberg snapshot id; null: the newest
    columns: dict[str, str] = Field(default_factory=dict)  # our name → the source's name, where they differ
    timestamp_unit: Literal["s", "ms", "us"] = "s"  # of numeric timestamps, counted from 1970 in UTC
    timestamp_format: str | None = None  # of text timestamps that are not ISO 8601, e.g. "%d.%m.%Y %H:%M"
    list_separator: str | None = None  # splits categories given as one text: "|" in Comedy|Drama
    no_title: str | None = None  # titles that match this regular expression count as missing

    delimiter: str = Field(",", min_length=1)  # of format csv, as are the keys below; one character or several
    names: list[str] | None = None  # of the columns, in order; null: the first line of each file is a header
    quote: str | None = Field('"', min_length=1, max_length=1)  # null: quotes have no meaning
    escape: str | None = Field(None, min_length=1, max_length=1)  # before a quote or delimiter that is text: \
    quoted_newlines: bool = False  # values may contain newlines; each file is then read in one piece
    nulls: list[str] = Field(default_factory=list)  # values that mean null, e.g. NULL or \N
    encoding: Literal["utf-8", "latin-1", "cp1252"] = "utf-8"  # of the files' text

    @model_validator(mode="after")
    def _fits_the_format(self) -> "SourceConfig":
        defaults = SourceConfig.model_construct()
        for key in ("delimiter", "names", "quote", "escape", "quoted_newlines", "nulls", "encoding"):
            if self.format != "csv" and getattr(self, key) != getattr(defaults, key):
                raise ValueError(f"{key} is a key of format csv; this is {self.format}")
        if "\n" in self.delimiter or "\r" in self.delimiter or self.quote in [*self.delimiter, "\n", "\r"]:
            raise ValueError("delimiter and quote must differ, and neither can end a line")
        if self.escape is not None and (self.escape in [*self.delimiter, self.quote, "\n", "\r"] or self.escape > "~"):
            raise ValueError(
                "escape must be an ASCII character, neither delimiter nor quote; a doubled quote needs none"
            )
        if self.names is not None and len(set(self.names)) < len(self.names):
            raise ValueError("names: a name occurs twice; each column needs its own")
        if self.list_separator == "":
            raise ValueError("list_separator is empty; null splits nothing")
        try:
            pl.select(pl.lit("").str.contains(self.no_title or ""))
        except pl.exceptions.ComputeError:
            raise ValueError(f"no_title: {self.no_title!r} is not a regular expression") from None
        try:
            pl.Series(["", None]).str.strptime(pl.Datetime("us"), self.timestamp_format or "%Y", strict=False)
        except pl.exceptions.PolarsError as error:
            what = str(error).split("\n")[0]
            raise ValueError(f"timestamp_format: {self.timestamp_format!r} cannot be read: {what}") from None
        return self


# What a list's file is, by its suffix. Of text one line is one id: no text holds this delimiter.
LINES: dict[str, Any] = {"format": "csv", "delimiter": "\x1f"}
_JSON, _PARQUET = {"format": "jsonl"}, {"format": "parquet"}
_SUFFIXES: dict[str, dict[str, Any]] = {
    **{".parquet": _PARQUET, ".pq": _PARQUET, ".jsonl": _JSON, ".ndjson": _JSON, ".json": _JSON},
    **{".csv": {"format": "csv"}, ".tsv": {"format": "csv", "delimiter": "\t"}, ".txt": LINES},
}


def by_suffix(paths: list[Any], otherwise: dict[str, Any]) -> dict[str, Any]:
    """Settings of a SourceConfig for paths, by the suffix of the first one's name."""
    suffixes = [suffix.lower() for suffix in reversed(Path(str(paths[0])).suffixes)] if paths else []
    return {"paths": paths, **next((_SUFFIXES[suffix] for suffix in suffixes if suffix in _SUFFIXES), otherwise)}


class ListConfig(SourceConfig):
    """A list of ids: where its table is, its format, and what share of it must be known."""

    min_known_fraction: float = Field(0.5, ge=0, le=1)  # with a smaller share the job ends; 0 takes any list


FILTERS = ("deduplicate", "min_item_interactions", "min_user_interactions", "k_core", "max_history")  # see DataConfig


_USERS_OF_A_SHARD = 50_000  # at most: a worker holds them at once, and does them again after a kill


def least_shards(users: int, workers: int) -> int:
    """How many shards there should be: none too large, and for each worker another one while the last are done."""
    return max(2 * workers, -(-users // _USERS_OF_A_SHARD))


class DataConfig(Section):
    """The input tables, which rows of the log are kept, and which of the histories become `sequences`."""

    interactions: SourceConfig = SourceConfig()  # the log: user_id, item_id, timestamp
    items: SourceConfig = SourceConfig()  # the catalogue: item_id, title
    # Of users: a shard is what a task processes, resumes and publishes. At least one per 50,000 users, and twice
    # workers.num_workers.
    num_shards: int = Field(8, ge=1)
    earliest: date = date(1990, 1, 1)  # earlier timestamps are rejected (timestamp_out_of_range)
    latest: date = date(2100, 1, 1)  # later timestamps are rejected
    max_rejected_fraction: float = Field(0.05, ge=0, le=1)  # of a table's rows; with more, the job ends with an error
    min_rating: float | None = None  # interactions with a lower rating or none are left out; null keeps all
    events: list[str] | None = Field(None, min_length=1)  # kinds of event to keep; null keeps all
    start: date | None = None  # events before this day are left out
    end: date | None = None  # events from this day on are left out
    timezone: Timezone = "UTC"  # of timestamps that name none, and of `start` and `end`
    excluded_users: ListConfig = ListConfig()  # a list of user_id: privacy requests; these users appear in no table
    excluded_items: ListConfig = ListConfig()  # a list of item_id: recalls; they lose their text and availability
    deduplicate: Literal["keep", "first", "last"] = "keep"  # of a user's interactions with one item; keep: all
    min_item_interactions: int = Field(1, ge=1)  # rarer items leave the histories, not the catalogue
    min_user_interactions: int = Field(1, ge=1)  # users with shorter histories are left out
    k_core: bool = False  # false: the two minima are counted once, in the whole log; true: until none is left
    max_history: int | None = Field(None, ge=1)  # newest interactions of a user to keep; null keeps all

    @model_validator(mode="after")
    def _consistent(self) -> "DataConfig":
        for first, then in (("earliest", "latest"), ("start", "end")):
            bounds = getattr(self, first), getattr(self, then)
            if None not in bounds and bounds[0] >= bounds[1]:
                raise ValueError(f"{first} ({bounds[0]}) must come before {then} ({bounds[1]})")
        for name, source, schema in (
            ("interactions", self.interactions, interactions.SCHEMA),
            ("items", self.items, items.INPUT),
        ):
            for column in source.columns:
                if column not in schema.names:
                    raise ValueError(f"{name}.columns: unknown column {column!r}; known: {', '.join(schema.names)}")
        return self
