"""The formats of input files: which columns a file has, how it is cut into pieces, and how a piece is read.

One reader a format, all with the same two methods. Columns keep the source's names; `sources` gives them ours.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from allmrec.data.config import SourceConfig
from allmrec.data.sources import delimited, jsonl
from allmrec.data.sources.cells import plain
from allmrec.data.sources.files import InputFile
from allmrec.data.sources.lines import MALFORMED, NUMBER, compressed, is_compressed, read_lines, well_formed

RANGE = 64 << 20  # bytes of a plain text file in one piece
ROWS = 1 << 20  # rows of a Parquet piece, whole row groups
_BATCH = 1 << 18  # rows of Parquet read at once
_HEAD = 1 << 20  # bytes of a plain text file in which the columns are looked for


Columns = dict[str, pa.DataType]
AMBIGUOUS = pa.struct([])  # the type of a column whose name occurs twice: no file has an empty struct


@dataclass(frozen=True)
class Piece:
    """Row groups `start ... stop - 1` of a Parquet file, or the lines that begin in bytes `start ... stop - 1`."""

    uri: str
    start: int
    stop: int
    rows: int | None  # where known without reading
    before: int = 0  # rows of the file that come before it, where it is Parquet


class Reader(ABC):
    """Reads one format. Raises OSError and ArrowException for files that are not of it."""

    suffixes: ClassVar[tuple[str, ...]]
    late_keys: ClassVar[bool] = False  # whether rows may have columns that the first ones do not

    def __init__(self, config: SourceConfig):
        self.config = config

    @abstractmethod
    def open(self, filesystem: Any, path: str, file: InputFile, is_first: bool) -> tuple[Columns, list[Piece]]:
        """A file's columns and its pieces. Where types must be told from rows, only the first file's are (or {}).

        {} is also what a text file without a line has. A column's type is null where its first rows do not tell it.
        """

    def has_column(self, filesystem: Any, path: str, key: str) -> bool:
        """Whether some row of a file has a column that `open` did not find."""
        return False

    @abstractmethod
    def read(self, filesystem: Any, path: str, piece: Piece, wanted: pa.Schema) -> Iterator[pa.Table]:
        """A piece's rows in tables of bounded size: those of the wanted columns that the file has, MALFORMED, NUMBER.

        NUMBER counts from the file's first row, if that is Parquet, or from the piece's first line.
        """


class ParquetReader(Reader):
    suffixes = (".parquet", ".pq")

    def open(self, filesystem: Any, path: str, file: InputFile, is_first: bool) -> tuple[Columns, list[Piece]]:
        with pq.ParquetFile(path, filesystem=filesystem) as parquet:
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            columns = _by_name(parquet.schema_arrow.names, parquet.schema_arrow.types)
        before = np.append(0, np.cumsum(sizes)).tolist()
        pieces, start = [], 0
        for stop in range(1, len(before)):
            if stop == len(sizes) or before[stop + 1] - before[start] > ROWS:
                pieces.append(Piece(file.uri, start, stop, before[stop] - before[start], before[start]))
                start = stop
        return columns, pieces

    def read(self, filesystem: Any, path: str, piece: Piece, wanted: pa.Schema) -> Iterator[pa.Table]:
        encoded = [field.name for field in wanted if pa.types.is_dictionary(field.type)]
        options = {"read_dictionary": encoded, "coerce_int96_timestamp_unit": "us"}
        with pq.ParquetFile(path, filesystem=filesystem, **options) as file:
            columns = [name for name in wanted.names if name in file.schema_arrow.names]
            number = piece.before + 1
            for batch in file.iter_batches(_BATCH, row_groups=range(piece.start, piece.stop), columns=columns):
                table = pa.table({name: plain(batch.column(name)) for name in columns})
                yield _well_encoded(table, np.arange(number, number + len(batch)))
                number += len(batch)


class ObjectReader(Reader):
    """JSON lines, and lines of Python literals."""

    suffixes = compressed(".json", ".jsonl", ".ndjson", ".txt")
    late_keys = True

    def open(self, filesystem: Any, path: str, file: InputFile, is_first: bool) -> tuple[Columns, list[Piece]]:
        columns: Columns = {}
        if is_first:
            load = jsonl.load_json if self.config.format == "jsonl" else jsonl.load_literal
            lines = chain.from_iterable(lines.each() for lines in read_lines(filesystem, path, 0, _HEAD))
            if head := list(islice(filter(bytes.strip, lines), 1000)):
                columns = jsonl.column_types(head, load)
        return columns, _ranges(file)

    def has_column(self, filesystem: Any, path: str, key: str) -> bool:
        spellings = jsonl.spellings(key)
        lines = read_lines(filesystem, path, 0, filesystem.get_file_info(path).size)
        return any(spelling in part.text for part in lines for spelling in spellings)

    def read(self, filesystem: Any, path: str, piece: Piece, wanted: pa.Schema) -> Iterator[pa.Table]:
        for lines in read_lines(filesystem, path, piece.start, piece.stop):
            if self.config.format == "jsonl":
                yield jsonl.parse_json(lines, wanted)
            else:
                yield jsonl.parse_literals(lines, wanted)


class DelimitedReader(Reader):
    """CSV and its kin. With newlines in values, a file is one piece: where its records begin, only its head tells."""

    suffixes = compressed(".csv", ".tsv", ".txt", ".dat", ".psv")

    def open(self, filesystem: Any, path: str, file: InputFile, is_first: bool) -> tuple[Columns, list[Piece]]:
        whole = [Piece(file.uri, 0, file.size, None)]
        names = self._names(filesystem, path)
        columns = _by_name(names, [pa.string()] * len(names))
        return columns, whole if self.config.quoted_newlines else _ranges(file)

    def read(self, filesystem: Any, path: str, piece: Piece, wanted: pa.Schema) -> Iterator[pa.Table]:
        names = self._names(filesystem, path)
        columns = [name for name in wanted.names if name in names]
        skip = int(self.config.names is None and piece.start == 0)  # the header
        for lines in read_lines(filesystem, path, piece.start, piece.stop, self._quote(), self._escape()):
            yield delimited.parse(lines.slice(skip, len(lines)), names, columns, self.config)
            skip = 0

    def _names(self, filesystem: Any, path: str) -> list[str]:
        if self.config.names is not None:
            return self.config.names
        head = next(read_lines(filesystem, path, 0, _HEAD, self._quote(), self._escape()), None)
        return delimited.header(head, self.config) if head else []

    def _quote(self) -> bytes | None:
        return self.config.quote.encode() if self.config.quoted_newlines and self.config.quote else None

    def _escape(self) -> bytes | None:
        return self.config.escape.encode() if self.config.escape else None


READERS: dict[str, type[Reader]] = {
    "parquet": ParquetReader,
    "csv": DelimitedReader,
    "jsonl": ObjectReader,
    "literal": ObjectReader,
}


def _by_name(names: Sequence[str], types: Sequence[pa.DataType]) -> Columns:
    return {name: AMBIGUOUS if names.count(name) > 1 else kind for name, kind in zip(names, types, strict=True)}


def _well_encoded(table: pa.Table, numbers: np.ndarray) -> pa.Table:
    """Rows of Parquet with MALFORMED and NUMBER; malformed are those with text that is not UTF-8."""
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        plain = pa.table({name: _decoded(table.column(name)) for name in table.column_names})
        bad = np.zeros(len(table), dtype=bool)
        bad[_badly_encoded(plain, np.arange(len(table)))] = True
        rows = plain.filter(bad).cast(pa.schema([field.with_type(_bytes(field.type)) for field in plain.schema]))
        texts = [json.dumps(row, default=_shown, ensure_ascii=False) for row in rows.to_pylist()]
        nulls = [pa.nulls(len(texts), field.type) for field in plain.schema]
        ending = pa.table([*nulls, texts, numbers[bad]], names=[*plain.column_names, MALFORMED, NUMBER])
        return pa.concat_tables([well_formed(plain.filter(~bad), numbers[~bad]), ending])
    return well_formed(table, numbers)


def _badly_encoded(table: pa.Table, rows: np.ndarray) -> list[int]:
    """Which of these rows do not validate: found by halves."""
    try:
        table.take(rows).validate(full=True)  # a copy: of a slice, the lists' values would be looked at outside it too
        return []
    except pa.ArrowInvalid:
        half = len(rows) // 2
        return [*_badly_encoded(table, rows[:half]), *_badly_encoded(table, rows[half:])] if half else rows.tolist()


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _bytes(kind: pa.DataType) -> pa.DataType:
    """The type with bytes where it has text."""
    if pa.types.is_list(kind):
        return pa.list_(_bytes(kind.value_type))
    return {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(kind, kind)


def _shown(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _ranges(file: InputFile) -> list[Piece]:
    step = file.size if is_compressed(file.uri) else RANGE
    return [Piece(file.uri, start, min(start + step, file.size), None) for start in range(0, file.size, step)]
