"""What `prepare` reads, which rows it keeps, and how it deals users to shards."""

from datetime import date
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field, model_validator

from allmrec.config import Section, Timezone
from schemas import interactions, items


class SourceConfig(Section):
    """Where an input table lies, how it is written, and what its columns are called there."""

    paths: list[str] = Field(default_factory=list)  # files, folders or globs (*, ?, **), on a disk or s3://
    format: Literal["parquet", "csv", "jsonl", "literal"] = "parquet"  # literal: a Python dictionary a line
    version: int | None = None  # of a table of Delta Lake, or the id of Iceberg's snapshot; null: the newest
    columns: dict[str, str] = Field(default_factory=dict)  # our name → the source's, where they differ
    timestamp_unit: Literal["s", "ms", "us"] = "s"  # of timestamps that are numbers, counted from 1970 in UTC
    timestamp_format: str | None = None  # of timestamps that are text other than ISO 8601, e.g. "%d.%m.%Y %H:%M"
    list_separator: str | None = None  # between categories that come in one text: "|" in Comedy|Drama
    no_title: str | None = None  # titles in which this regular expression is found count as missing

    # Of csv, which is any delimited text.
    delimiter: str = Field(",", min_length=1)  # one character or several
    names: list[str] | None = None  # of the columns, by position; null: the first line of each file has them
    quote: str | None = Field('"', min_length=1, max_length=1)  # null: quotes are characters like any other
    escape: str | None = Field(None, min_length=1, max_length=1)  # makes a quote or a delimiter a character: \\
    quoted_newlines: bool = False  # values may hold newlines; files are read whole then, not in parts
    nulls: list[str] = Field(default_factory=list)  # values that mean null, such as NULL or \N
    encoding: Literal["utf-8", "latin-1", "cp1252"] = "utf-8"

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
            raise ValueError("names: a name comes twice; each column needs its own")
        if self.list_separator == "":
            raise ValueError("list_separator is empty; null splits nothing")
        try:
            pl.select(pl.lit("").str.contains(self.no_title or ""))
        except pl.exceptions.ComputeError:
            raise ValueError(f"no_title: {self.no_title!r} is no regular expression") from None
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
    """Settings of a SourceConfig for paths whose first one's name says what it is, or else does not."""
    suffixes = [suffix.lower() for suffix in reversed(Path(str(paths[0])).suffixes)] if paths else []
    return {"paths": paths, **next((_SUFFIXES[suffix] for suffix in suffixes if suffix in _SUFFIXES), otherwise)}


class ListConfig(SourceConfig):
    """A list of ids. If fewer of them are known, the job ends: it is probably not what was meant."""

    min_known_fraction: float = Field(0.5, ge=0, le=1)  # 0 takes any list


FILTERS = ("repeats", "min_item_interactions", "min_user_interactions", "core", "max_history")  # see DataConfig


class DataConfig(Section):
    interactions: SourceConfig = SourceConfig()
    items: SourceConfig = SourceConfig()
    num_shards: int = Field(8, ge=1)  # of users; the unit of resuming and publishing
    earliest: date = date(1990, 1, 1)  # timestamps before it are absurd
    latest: date = date(2100, 1, 1)  # and so are those after it
    max_rejected_fraction: float = Field(0.05, ge=0, le=1)  # of a table's rows; above it the job fails
    min_rating: float | None = None  # interactions rated lower, or not at all, are left out; null keeps all
    events: list[str] | None = Field(None, min_length=1)  # kinds of event that are kept; null keeps all
    start: date | None = None  # events before this day are left out
    end: date | None = None  # events from this day on are left out
    timezone: Timezone = "UTC"  # of times that name none, and of `start` and `end`
    forgotten_users: ListConfig = ListConfig()  # a table of user_id: privacy requests; they appear nowhere
    forgotten_items: ListConfig = ListConfig()  # a table of item_id: recalls; their index stays, untitled
    # What of the histories becomes `sequences`, in this order. A change of these does not read the log again.
    repeats: Literal["keep", "first", "last"] = "keep"  # of a user's interactions with one item
    min_item_interactions: int = Field(1, ge=1)  # rarer items leave the histories (not the catalogue)
    min_user_interactions: int = Field(1, ge=1)  # users with shorter histories are left out
    core: Literal["once", "iterated"] = "once"  # both counted in the whole log, or again until nothing changes (k-core)
    max_history: int | None = Field(None, ge=1)  # newest interactions of a user; null keeps all

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
