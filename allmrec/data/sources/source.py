"""Input tables as pieces: find the files, check the columns, read any piece as Arrow tables.

A piece is a run of Parquet row groups or a byte range of a text file, so one large file feeds many workers. Columns
come out under our names with the source's types; what they mean is `clean`'s business. The column MALFORMED is null,
or the text of a line that cannot be read, and NUMBER says which row or line it is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from allmrec.core.storage import S3Config
from allmrec.data.config import SourceConfig
from allmrec.data.sources.cells import plain_type
from allmrec.data.sources.files import ICEBERG, METADATA, InputFile, list_files, locate, partitions
from allmrec.data.sources.lines import MALFORMED, NUMBER
from allmrec.data.sources.readers import AMBIGUOUS, READERS, Columns, Piece
from allmrec.data.sources.snapshots import Layout, Snapshot, open_snapshot

_OPENED_AT_ONCE = 16  # files


@dataclass(frozen=True)
class Column:
    """What an input table's column must be."""

    required: bool
    accepts: Callable[[pa.DataType], bool]
    types: str  # those, in words
    read: bool = True  # false: only its presence and type are checked
    low_cardinality: bool = (
        False  # few values in many rows: text comes out dictionary-encoded, where the file has it so
    )


@dataclass(frozen=True)
class Source:
    """A checked input table: `fields` are its columns under our names, plain."""

    name: str  # interactions or items
    config: SourceConfig
    s3: S3Config
    fields: pa.Schema
    files: tuple[InputFile, ...]  # that the pieces are of; one that comes later is none of them
    pieces: tuple[Piece, ...]
    layouts: Mapping[str, Layout]  # of those files that are of a table format, by URI
    versions: Mapping[str, str]  # of tables of such formats, by URI
    skipped: Mapping[str, int]  # files in folders that are no input, by reason

    @property
    def rows(self) -> int | None:
        """How many there are, if that is known without reading them; more, where a table format deleted some."""
        rows = [piece.rows for piece in self.pieces]
        return None if None in rows else sum(rows)  # type: ignore[arg-type]

    def read(self, piece: Piece) -> Iterator[pa.Table]:
        """The piece's rows under our names, with MALFORMED and NUMBER, in tables of bounded size."""
        names, reader = _names(self.fields.names, self.config), READERS[self.config.format](self.config)
        layout = self.layouts.get(piece.uri)
        values = layout.values if layout else partitions(piece.uri)
        inside = {ours: layout.columns.get(theirs) if layout else theirs for ours, theirs in names.items()}
        wanted = {
            inside[field.name]: field.type
            for field in self.fields
            if inside[field.name] and names[field.name] not in values
        }
        try:
            deleted = layout.deleted(self.s3) if layout and layout.deletes else None
            for table in reader.read(*locate(piece.uri, self.s3), piece, pa.schema(list(wanted.items()))):
                if deleted is not None:
                    table = table.filter(~np.isin(table.column(NUMBER).to_numpy() - 1, deleted))
                columns = {
                    field.name: _typed(table.column(inside[field.name]), field.type)
                    if inside[field.name] in table.column_names
                    else pa.repeat(pa.scalar(values.get(names[field.name]), field.type), len(table))
                    for field in self.fields
                }
                yield pa.table(columns | {added: table.column(added) for added in (MALFORMED, NUMBER)})
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{self.name}: cannot read {piece.uri}: {_first_line(error)}") from None

    def place(self, piece: Piece) -> dict[str, Any]:
        """Where rows of the piece are found again, as the `rejected` table says it."""
        return {"file": piece.uri, "from_byte": None if self.config.format == "parquet" else piece.start}


def find_files(name: str, config: SourceConfig, s3: S3Config) -> list[InputFile]:
    """The files of an input table, ordered by URI; `files.list_files` says what paths mean.

    Args:
        name: the table, for messages.

    Raises:
        ValueError: no paths are configured, a path does not exist, is not readable, or holds no file of the format; or
            a table of a table format cannot be read.
    """
    return _find(name, config, s3)[0]


def _find(
    name: str, config: SourceConfig, s3: S3Config
) -> tuple[list[InputFile], dict[str, Snapshot], Mapping[str, int]]:
    """The files, the tables of table formats that some of them are of, by URI, and how many files were skipped."""
    if not config.paths:
        raise ValueError(f"data.{name}.paths is empty: name the files or folders of the {name} table")
    try:
        listing = list_files(config.paths, READERS[config.format].suffixes, s3)
        tables = listing.tables | {uri: ICEBERG for uri in listing.files if uri.endswith(METADATA)}
        if config.format != "parquet" and listing.tables:
            uri, kind = next(iter(tables.items()))
            raise ValueError(f"{uri} is a table of {kind}: its format is parquet here, not {config.format}")
        if config.format != "parquet":
            tables = {}
        if config.version is not None and len(tables) != 1:
            raise ValueError("version is that of one table of Delta Lake or Iceberg; name that table alone in paths")
        snapshots = {uri: open_snapshot(uri, kind, config.version, s3) for uri, kind in tables.items()}
        plain = [file for uri, file in listing.files.items() if uri not in tables]
        live = [file for snapshot in snapshots.values() for file in snapshot.files]
        return sorted([*plain, *live], key=lambda file: file.uri), snapshots, listing.skipped
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def open_source(
    name: str, config: SourceConfig, s3: S3Config, expected: Mapping[str, Column], section: str | None = None
) -> Source:
    """Check an input table's columns and cut it into pieces, without reading its rows.

    Args:
        section: of `config`, for messages; `data.<name>` by default.

    Every Parquet footer and every header of CSV is read. The columns of JSON lines are told from the head of the first
    file; a required one that is missing is searched for in all rows.

    Raises:
        ValueError: as `find_files`; a required or a mapped column is missing or of a wrong type; a file is not of
            the format; there is no row.
    """
    names, reader = _names(expected, config), READERS[config.format](config)
    found, snapshots, skipped = _find(name, config, s3)
    files = [file for file in found if file.size]
    table_of = {file.uri: snapshot for snapshot in snapshots.values() for file in snapshot.files}
    layouts: dict[str, Layout] = {}

    def opened(file: InputFile, is_first: bool) -> tuple[Columns, list[Piece]]:
        try:
            filesystem, path = locate(file.uri, s3)
            columns, pieces = reader.open(filesystem, path, file, is_first=is_first)
            if file.uri not in table_of:
                return columns and columns | dict.fromkeys(partitions(file.uri), pa.string()), pieces
            table, schema = table_of[file.uri], pq.read_schema(path, filesystem=filesystem)
            layout = layouts[file.uri] = table.layouts[file.uri](schema).only(names.values())
            inside = {theirs: columns[physical] for theirs, physical in layout.columns.items()}
            return dict.fromkeys(table.columns, pa.null()) | inside | dict.fromkeys(layout.values, pa.string()), pieces
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{name}: cannot read {file.uri} as {config.format}: {_first_line(error)}") from None

    def is_somewhere(key: str) -> bool:
        try:
            return any(reader.has_column(*locate(file.uri, s3), key) for file in files)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{name}: cannot look for {key!r} in all files: {_first_line(error)}") from None

    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:  # a store takes its time to answer
        heads = list(pool.map(lambda file: opened(file, file is files[0]), files))
    for number, file in enumerate(files):
        if any(columns for columns, _ in heads):
            break
        heads[number] = opened(file, True)  # those before it hold no line
    fields: dict[str, pa.DataType] = {}
    for file, (columns, _) in zip(files, heads, strict=True):
        if columns:
            for ours, theirs in names.items():
                needed = expected[ours].required or ours != theirs
                if reader.late_keys and theirs not in columns and (not needed or is_somewhere(theirs)):
                    columns[theirs] = pa.null()
                if reader.late_keys and columns.get(theirs) == pa.null():
                    columns[theirs] = _late_type(expected[ours])
            _check_columns(columns, expected, names, f"{name}: column", file.uri, section or f"data.{name}")
        for ours, theirs in names.items():
            if theirs in columns and expected[ours].read and pa.types.is_null(fields.get(ours, pa.null())):
                encode = expected[ours].low_cardinality and config.format == "parquet"
                kind = plain_type(columns[theirs])
                fields[ours] = _encoded(kind) if encode else kind
    for ours in [ours for ours, kind in fields.items() if pa.types.is_null(kind)]:  # null in every file
        if expected[ours].accepts(pa.null()):
            continue
        if expected[ours].accepts(pa.string()):
            fields[ours] = pa.string()
        elif expected[ours].required:
            raise ValueError(f"{name}: column {names[ours]!r} is null in every row; it must be {expected[ours].types}")
        else:
            del fields[ours]
    pieces = tuple(piece for _, cut in heads for piece in cut)
    versions = {uri: snapshot.version for uri, snapshot in snapshots.items()}
    source = Source(name, config, s3, pa.schema(list(fields.items())), tuple(found), pieces, layouts, versions, skipped)
    if not fields or not source.pieces or source.rows == 0:
        raise ValueError(f"{name}: the table is empty: no row in {', '.join(config.paths)}")
    return source


def _check_columns(
    columns: Columns, expected: Mapping[str, Column], names: Mapping[str, str], what: str, uri: str, section: str
) -> None:
    """Raise ValueError if a file's columns are not what is expected under these names."""
    for ours, theirs in names.items():
        column = expected[ours]
        if columns.get(theirs) == AMBIGUOUS:
            raise ValueError(f"{what} {theirs!r} occurs twice in {uri}; rename one of the two")
        if theirs in columns and columns[theirs] != pa.null() and not column.accepts(columns[theirs]):
            raise ValueError(f"{what} {theirs!r} is {columns[theirs]} in {uri}; it must be {column.types}")
        if theirs not in columns and (column.required or ours != theirs):
            has = f"is missing in {uri}, which has {shorten(', '.join(columns), 500, placeholder=' …')}"
            raise ValueError(f"{what} {theirs!r} {has}; name the right one in {section}.columns.{ours}")


def _typed(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column that is null in its file as that of the table."""
    return pa.chunked_array([pa.nulls(len(column), kind)]) if pa.types.is_null(column.type) else column


def _late_type(column: Column) -> pa.DataType:
    """The type of a column whose first rows do not show it: null, if only the rows can show whether it is a list."""
    if column.accepts(pa.list_(pa.string())):
        return pa.null()
    return pa.bool_() if column.accepts(pa.bool_()) else pa.string()


def _encoded(kind: pa.DataType) -> pa.DataType:
    """Text as a dictionary; other types as they are."""
    return pa.dictionary(pa.int32(), kind) if kind in (pa.string(), pa.large_string()) else kind


def _names(ours: Iterable[str], config: SourceConfig) -> dict[str, str]:
    """Our name → the source's."""
    return {name: config.columns.get(name, name) for name in ours}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
