"""Input tables as pieces: find the files, check the columns, read any piece as Arrow tables.

A piece is a run of Parquet row groups or a byte range of a JSON lines file, so one large file feeds many workers.
Columns come out under our names with the source's types; what they mean is `clean`'s business. The column MALFORMED
is null, or the text of a line of JSON that cannot be read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from allmrec.data.config import SourceConfig
from allmrec.data.jsonl import MALFORMED, column_types, parse, read_lines
from allmrec.storage import S3Config, open_storage

_SUFFIXES = {"parquet": (".parquet", ".pq"), "jsonl": (".json", ".jsonl", ".ndjson")}
_RANGE = 64 << 20  # bytes of a plain JSON lines file in one piece
_ROWS = 1 << 20  # rows of a Parquet piece, whole row groups


@dataclass(frozen=True)
class InputFile:
    uri: str
    size: int  # bytes
    modified: int  # nanoseconds since 1970


@dataclass(frozen=True)
class Piece:
    """Row groups `start ... stop - 1` of a Parquet file, or the lines that begin in bytes `start ... stop - 1`."""

    uri: str
    start: int
    stop: int
    rows: int | None  # where known without reading


@dataclass(frozen=True)
class Column:
    """What an input table's column must be."""

    required: bool
    accepts: Callable[[pa.DataType], bool]
    types: str  # those, in words


@dataclass(frozen=True)
class Source:
    """A checked input table: `fields` are its columns under our names, as the source types them."""

    name: str  # interactions or items
    config: SourceConfig
    s3: S3Config
    fields: pa.Schema
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int | None:
        """How many there are, if that is known without reading them."""
        rows = [piece.rows for piece in self.pieces]
        return None if None in rows else sum(rows)  # type: ignore[arg-type]

    def read(self, piece: Piece) -> Iterator[pa.Table]:
        """The piece's rows, in tables of bounded size."""
        try:
            if self.config.format == "parquet":
                yield from self._read_parquet(piece)
            else:
                yield from self._read_lines(piece)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{self.name}: cannot read {piece.uri}: {_first_line(error)}") from None

    def _read_parquet(self, piece: Piece) -> Iterator[pa.Table]:
        names = _names(self.fields.names, self.config)
        filesystem, path = _locate(piece.uri, self.s3)
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            have = [ours for ours in names if names[ours] in file.schema_arrow.names]
            groups = range(piece.start, piece.stop)
            for batch in file.iter_batches(1 << 18, row_groups=groups, columns=[names[ours] for ours in have]):
                table = pa.table({ours: batch.column(names[ours]) for ours in have})
                for ours in names:
                    if ours not in have:
                        table = table.append_column(ours, pa.nulls(len(table), self.fields.field(ours).type))
                yield table.append_column(MALFORMED, pa.nulls(len(table), pa.string()))

    def _read_lines(self, piece: Piece) -> Iterator[pa.Table]:
        names = _names(self.fields.names, self.config)
        wanted = pa.schema([pa.field(names[field.name], field.type) for field in self.fields])
        filesystem, path = _locate(piece.uri, self.s3)
        for lines in read_lines(filesystem, path, piece.start, piece.stop):
            yield parse(lines, wanted).rename_columns([*self.fields.names, MALFORMED])


def find_files(name: str, config: SourceConfig, s3: S3Config) -> list[InputFile]:
    """The files of an input table, ordered by URI.

    Args:
        name: the table, for messages.

    Raises:
        ValueError: no paths are configured, a path does not exist, is not readable, or holds no file of the format.
    """
    if not config.paths:
        raise ValueError(f"data.{name}.paths is empty: name the files or folders of the {name} table")
    found: dict[str, InputFile] = {}
    for uri in config.paths:
        filesystem, path = _locate(uri, s3)
        try:
            info = filesystem.get_file_info(path)
            inside = []
            if info.type == fs.FileType.Directory:
                inside = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        except OSError as error:
            raise ValueError(f"{name}: cannot list {uri}: {_first_line(error)}") from None
        if info.type == fs.FileType.NotFound:
            raise ValueError(f"{name}: no such path: {uri}")
        files = [info] if info.type == fs.FileType.File else [file for file in inside if _is_data(file, path, config)]
        if not files:
            raise ValueError(f"{name}: {uri} holds no {' or '.join(_SUFFIXES[config.format])} file")
        for file in files:
            at = uri.rstrip("/") + file.path[len(path) :]
            found[at] = InputFile(at, file.size, file.mtime_ns or 0)
    return [found[uri] for uri in sorted(found)]


def open_source(
    name: str, config: SourceConfig, s3: S3Config, expected: Mapping[str, Column], section: str | None = None
) -> Source:
    """Check an input table's columns and cut it into pieces, without reading its rows.

    Args:
        section: where `config` stands, for messages; `data.<name>` by default.

    Every Parquet footer is read. The columns of JSON lines are told from the head of the first file.

    Raises:
        ValueError: as `find_files`; a required or a mapped column is missing or of a wrong type; a file is not of
            the format; there is no row.
    """
    files = [file for file in find_files(name, config, s3) if file.size]
    names = _names(list(expected), config)
    fields: dict[str, pa.DataType] = {}
    pieces: list[Piece] = []
    for file in files:
        try:
            if config.format == "parquet":
                columns, cut = _open_parquet(file, s3)
            else:
                columns, cut = ({} if fields else column_types(*_locate(file.uri, s3))), _cut_lines(file)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{name}: cannot read {file.uri} as {config.format}: {_first_line(error)}") from None
        for ours, theirs in names.items() if columns else ():
            column = expected[ours]
            if theirs in columns:
                if not column.accepts(columns[theirs]):
                    found = f"is {columns[theirs]} in {file.uri}"
                    raise ValueError(f"{name}: column {theirs!r} {found}; it must be {column.types}")
                fields.setdefault(ours, columns[theirs])
            elif column.required or ours in config.columns:
                has = f"is missing in {file.uri}, which has {', '.join(columns)}"
                raise ValueError(
                    f"{name}: column {theirs!r} {has}; name the right one in {section or f'data.{name}'}.columns.{ours}"
                )
        pieces += cut
    source = Source(name, config, s3, pa.schema(list(fields.items())), tuple(pieces))
    if not pieces or source.rows == 0:
        raise ValueError(f"{name}: the table is empty: no row in {', '.join(config.paths)}")
    return source


def _names(ours: Sequence[str], config: SourceConfig) -> dict[str, str]:
    """Our name → the source's."""
    return {name: config.columns.get(name, name) for name in ours}


def _locate(uri: str, s3: S3Config) -> tuple[Any, str]:
    return open_storage(uri, s3).arrow()


def _is_data(file: Any, root: str, config: SourceConfig) -> bool:
    below = file.path[len(root) :].strip("/").split("/")
    hidden = any(part.startswith(("_", ".")) for part in below)
    name = below[-1].removesuffix(".gz") if config.format == "jsonl" else below[-1]
    return file.type == fs.FileType.File and not hidden and name.endswith(_SUFFIXES[config.format])


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _open_parquet(file: InputFile, s3: S3Config) -> tuple[dict[str, pa.DataType], list[Piece]]:
    """The file's columns and its pieces, from its footer."""
    filesystem, path = _locate(file.uri, s3)
    with pq.ParquetFile(path, filesystem=filesystem) as parquet:
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        columns = {field.name: field.type for field in parquet.schema_arrow}
    pieces, start = [], 0
    for stop in range(1, len(sizes) + 1):
        if stop == len(sizes) or sum(sizes[start : stop + 1]) > _ROWS:
            pieces.append(Piece(file.uri, start, stop, sum(sizes[start:stop])))
            start = stop
    return columns, pieces


def _cut_lines(file: InputFile) -> list[Piece]:
    step = file.size if file.uri.endswith(".gz") else _RANGE  # gzip can only be read from its beginning
    starts = range(0, file.size, step)
    return [Piece(file.uri, start, min(start + step, file.size), None) for start in starts]
