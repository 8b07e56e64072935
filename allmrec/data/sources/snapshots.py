"""Tables of Delta Lake and Iceberg at one version: the files they consist of, and where columns and rows are in them.

The formats' own libraries replay their logs (`delta`, `iceberg`); the files are Parquet, which `sources` reads piece by
piece as any other. Knows nothing of what the columns mean.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from allmrec.core.storage import S3Config
from allmrec.data.sources.files import DELTA, HUDI, ICEBERG, InputFile, locate

_MODULES = {DELTA: "delta", ICEBERG: "iceberg"}  # and extras


@dataclass(frozen=True)
class Layout:
    """Where the columns of a table are in a file, and which of its rows are deleted."""

    columns: Mapping[str, str]  # the table's → the file's; others are null in all its rows
    values: Mapping[str, str | None] = field(default_factory=dict)  # of columns that have one value in all its rows
    deletes: tuple[str, ...] = ()  # URIs of Parquet files with the positions of rows that were deleted
    location: str = ""  # of the file, as those name it

    def only(self, wanted: Iterable[str]) -> "Layout":
        """Of these columns alone."""
        kept = {name: self.columns[name] for name in wanted if name in self.columns}
        return replace(self, columns=kept, values={name: self.values[name] for name in wanted if name in self.values})

    def deleted(self, s3: S3Config) -> np.ndarray:
        """Positions of the rows that were deleted, int64 (R,), from 0."""
        found = [np.zeros(0, np.int64)]
        for uri in self.deletes:
            filesystem, path = locate(uri, s3)
            mine = [("file_path", "==", self.location)]
            table = pq.read_table(path, filesystem=filesystem, columns=["pos"], filters=mine, partitioning=None)
            found.append(table.column("pos").to_numpy())
        return np.concatenate(found)


@dataclass(frozen=True)
class Snapshot:
    """A table at one version."""

    files: tuple[InputFile, ...]
    columns: tuple[str, ...]
    layouts: Mapping[str, Callable[[pa.Schema], Layout]]  # by URI: that of a file of this schema
    version: str


def open_snapshot(uri: str, kind: str, version: int | None, s3: S3Config) -> Snapshot:
    """A table at the given version, or at the newest.

    Args:
        uri: of the table's folder, or of one of Iceberg's `*.metadata.json`.

    Raises:
        ValueError: the format's library is not installed, the table is damaged or has no such version, or the version
            has what is not read: the message says what to do.
    """
    if kind == HUDI:
        raise ValueError(
            f"{uri} is a table of Hudi, which is not read; export a snapshot of it as Parquet and name that"
        )
    try:
        module = import_module(f"allmrec.data.sources.{_MODULES[kind]}")
    except ImportError:
        fix = f"pip install 'allmrec[{_MODULES[kind]}]'"
        raise ValueError(f"{uri} is a table of {kind}; what reads it is not installed: {fix}") from None
    opened: Snapshot = module.open_snapshot(uri, version, s3)
    return opened


def one_line(error: Any) -> str:
    return str(error).strip().split("\n")[0]
