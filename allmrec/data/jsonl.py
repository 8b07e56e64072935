"""JSON lines as Arrow tables, plain or gzipped, with lines that no parser can read among them.

Knows bytes and JSON types. Files, tables and what columns mean are `sources`' and `clean`'s business.
"""

import io
import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.json

MALFORMED = "_malformed"  # the added column: null, or the text of a line that cannot be read
_HEAD_LINES = 1000  # from which the columns' types are told
_CHUNK = 16 << 20  # bytes read and parsed at once
_FINE = 64  # lines parsed at once where a chunk holds a bad one


def read_lines(filesystem: Any, path: str, start: int, stop: int) -> Iterator[bytes]:
    """The lines that begin in bytes `start ... stop - 1`, some 16 MB at a time. A .gz file is read whole."""
    if path.endswith(".gz"):
        with filesystem.open_input_stream(path, compression="gzip") as stream:
            yield from _whole_lines(stream)
        return
    with filesystem.open_input_file(path) as file:
        start, stop = _next_line(file, start), _next_line(file, stop)
        file.seek(start)
        yield from _whole_lines(file, stop - start)


def _next_line(file: Any, position: int) -> int:
    """Where the first line begins at or after `position`."""
    if position == 0:
        return 0
    file.seek(position - 1)
    at = position - 1
    while block := file.read(1 << 16):
        found = block.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(block)
    return at


def _whole_lines(stream: Any, length: int | None = None) -> Iterator[bytes]:
    rest = b""
    while block := stream.read(_CHUNK if length is None else min(_CHUNK, length)):
        length = None if length is None else length - len(block)
        lines, newline, tail = block.rpartition(b"\n")
        if newline:
            yield rest + lines
            rest = tail
        else:
            rest += block
    if rest:
        yield rest


def column_types(filesystem: Any, path: str) -> dict[str, pa.DataType]:
    """The types of a file's columns, told from its first lines. Raises ArrowInvalid where none is a JSON object."""
    head = b"\n".join(islice(read_lines(filesystem, path, 0, _CHUNK), 2))  # two: the last line may come alone
    lines = head.split(b"\n", _HEAD_LINES)[:_HEAD_LINES]
    values: dict[str, list[Any]] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            for key, value in row.items():
                values.setdefault(key, []).append(value)
    if not values:
        raise pa.ArrowInvalid("none of its first lines holds a JSON object")
    return {key: _json_type(found) for key, found in values.items()}


def _json_type(values: list[Any]) -> pa.DataType:
    """The type that holds all values, nulls aside. Objects are kept as text."""
    kinds = {type(value) for value in values if value is not None}
    if list in kinds:
        deeper = [entry for value in values if isinstance(value, list) for entry in value]
        return pa.list_(pa.list_(pa.string()) if any(isinstance(entry, list) for entry in deeper) else pa.string())
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int} and all(abs(value) < 2**63 for value in values if value is not None):
        return pa.int64()
    return pa.float64() if float in kinds and kinds <= {int, float} else pa.string()


def parse(chunk: bytes, wanted: pa.Schema) -> pa.Table:
    """JSON lines as a table of the wanted columns and MALFORMED.

    Where a line is bad, or a value of another type than its column, plain values come out as text.
    """
    table = _parse_whole(chunk, wanted)
    if table is not None:
        return table
    text = pa.schema([field if pa.types.is_list(field.type) else field.with_type(pa.string()) for field in wanted])
    lines = [line for line in chunk.split(b"\n") if line.strip()]
    tables = []
    for first in range(0, len(lines), _FINE):
        few = lines[first : first + _FINE]
        table = _parse_whole(b"\n".join(few), wanted)
        tables.append(_parse_singly(few, text) if table is None else table.cast(_with_malformed(text)))
    return pa.concat_tables(tables).combine_chunks()


def _parse_whole(chunk: bytes, wanted: pa.Schema) -> pa.Table | None:
    """None if any line is bad."""
    chunk = chunk.strip()
    if not chunk:
        return _with_malformed(wanted).empty_table()
    if chunk.count(b"\n") != chunk.count(b"}\n{"):
        chunk = re.sub(rb"\s*\n\s*", b"\n", chunk)  # empty lines, \r\n
    # The parser does not care where lines end. No object goes on over a line's end between } and {.
    ends = chunk.count(b"}\n{")
    if chunk.count(b"\n") != ends:
        return None
    try:
        chunk.decode()
        table = pa.json.read_json(
            io.BytesIO(chunk),
            read_options=pa.json.ReadOptions(use_threads=False, block_size=len(chunk) + 1),
            parse_options=pa.json.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore"),
        )
    except ValueError:  # pyarrow's ArrowInvalid is one
        return None
    if table.num_rows != ends + 1:
        return None  # two objects on one line
    return table.append_column(MALFORMED, pa.nulls(table.num_rows, pa.string()))


def _parse_singly(lines: list[bytes], schema: pa.Schema) -> pa.Table:
    """Line by line; only the neighbours of a bad line come here."""
    rows: list[dict[str, Any]] = []
    for line in lines:
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no object")
            rows.append({field.name: _fitted(row.get(field.name), field.type) for field in schema})
        except (ValueError, RecursionError):
            rows.append({MALFORMED: line.decode(errors="replace")})
    return pa.Table.from_pylist(rows, _with_malformed(schema))


def _with_malformed(schema: pa.Schema) -> pa.Schema:
    return schema.append(pa.field(MALFORMED, pa.string()))


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """A JSON value as text, or as lists of text. Raises ValueError for text that no encoding holds."""
    if value is None:
        return None
    if pa.types.is_list(kind):
        return [_fitted(entry, kind.value_type) for entry in (value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        return " ".join(_fitted(entry, kind) or "" for entry in value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text.encode()
    return text
