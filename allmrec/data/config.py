"""What `prepare` reads, which rows it keeps, and how it deals users to shards."""

from datetime import date
from typing import Literal

from pydantic import Field, model_validator

from allmrec.config import Section
from schemas import interactions, items


class SourceConfig(Section):
    """Where an input table lies and what its columns are called there."""

    paths: list[str] = Field(default_factory=list)  # files, folders or s3:// URIs
    format: Literal["parquet", "jsonl"] = "parquet"  # jsonl also gzipped
    columns: dict[str, str] = Field(default_factory=dict)  # our name → the source's, where they differ
    timestamp_unit: Literal["s", "ms", "us"] = "s"  # of timestamps that are numbers, counted from 1970 in UTC


FILTERS = ("repeats", "min_item_interactions", "min_user_interactions", "core", "max_history")  # see DataConfig


class DataConfig(Section):
    interactions: SourceConfig = SourceConfig()
    items: SourceConfig = SourceConfig()
    num_shards: int = Field(8, ge=1)  # of users; the unit of resuming and publishing
    earliest: date = date(1990, 1, 1)  # timestamps before it are absurd
    latest: date = date(2100, 1, 1)  # and so are those after it
    max_rejected_fraction: float = Field(0.05, ge=0, le=1)  # of a table's rows; above it the job fails
    min_rating: float | None = None  # interactions rated lower, or not at all, are left out; null keeps all
    forgotten_users: SourceConfig = SourceConfig()  # a table of user_id: privacy requests; they appear nowhere
    forgotten_items: SourceConfig = SourceConfig()  # a table of item_id: recalls; their index stays, untitled
    # What of the histories becomes `sequences`, in this order. A change of these does not read the log again.
    repeats: Literal["keep", "first", "last"] = "keep"  # of a user's interactions with one item
    min_item_interactions: int = Field(1, ge=1)  # rarer items leave the histories (not the catalogue)
    min_user_interactions: int = Field(1, ge=1)  # users with shorter histories are left out
    core: Literal["once", "iterated"] = "once"  # both counted in the whole log, or again until nothing changes (k-core)
    max_history: int | None = Field(None, ge=1)  # newest interactions of a user; null keeps all

    @model_validator(mode="after")
    def _consistent(self) -> "DataConfig":
        if self.earliest >= self.latest:
            raise ValueError(f"earliest ({self.earliest}) must come before latest ({self.latest})")
        for name, source, schema in (
            ("interactions", self.interactions, interactions.SCHEMA),
            ("items", self.items, items.INPUT),
        ):
            for column in source.columns:
                if column not in schema.names:
                    raise ValueError(f"{name}.columns: unknown column {column!r}; known: {', '.join(schema.names)}")
        return self
