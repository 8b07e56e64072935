"""What `prepare` reads and how it deals rows to shards."""

from typing import Literal

from pydantic import Field

from allmrec.config import Section


class SourceConfig(Section):
    """Where an input table lies and what its columns are called there."""

    paths: list[str] = Field(default_factory=list)  # files, folders or s3:// URIs
    format: Literal["parquet", "jsonl"] = "parquet"  # jsonl also gzipped
    columns: dict[str, str] = Field(default_factory=dict)  # our name → the source's, where they differ


class DataConfig(Section):
    interactions: SourceConfig = SourceConfig()
    items: SourceConfig = SourceConfig()
    num_shards: int = Field(8, ge=1)  # of users; the unit of resuming and publishing
