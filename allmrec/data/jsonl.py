"""Lines that hold one object each, as Arrow tables: JSON, or the literals of Python that some publishers write instead.

Knows the types of JSON. Where lines end is `lines`' business, what columns mean `clean`'s.
"""

import ast
import io
import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from allmrec.data.lines import MALFORMED, NUMBER, Lines, well_formed

_FINE = 64  # lines parsed at once where a chunk holds a bad one

Load = Callable[[bytes], dict[str, Any]]  # a line's object; raises ValueError where there is none


def load_json(line: bytes) -> dict[str, Any]:
    try:
        return _object(json.loads(line))
    except RecursionError as error:
        raise ValueError(str(error)) from None


def load_literal(line: bytes) -> dict[str, Any]:
    """A dictionary as Python writes it. Only literals are read; nothing is evaluated."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of backslashes that escape nothing
            return _object(ast.literal_eval(line.decode()))
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        raise ValueError(str(error)) from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("the line holds no object")
    return value


def column_types(lines: list[bytes], load: Load) -> dict[str, pa.DataType]:
    """The types of columns, told from some lines. Raises ArrowInvalid where none of them holds an object."""
    values: dict[str, list[Any]] = {}
    for line in lines:
        try:
            row = load(line)
        except ValueError:
            continue
        for key, value in row.items():
            values.setdefault(key, []).append(value)
    if not values:
        raise pa.ArrowInvalid("none of its first lines holds an object")
    return {key: _json_type(found) for key, found in values.items()}


def _json_type(values: list[Any]) -> pa.DataType:
    """The type that holds all values, nulls aside. Objects are kept as text, and lists among more other values."""
    kinds = {type(value) for value in values if value is not None}
    lists = [value for value in values if isinstance(value, list)]
    if 2 * len(lists) > len(values) - values.count(None):
        deeper = [entry for value in lists for entry in value]
        return pa.list_(pa.list_(pa.string()) if any(isinstance(entry, list) for entry in deeper) else pa.string())
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int} and all(abs(value) < 2**63 for value in values if value is not None):
        return pa.int64()
    return pa.float64() if float in kinds and kinds <= {int, float} else pa.string()


def parse_json(lines: Lines, wanted: pa.Schema) -> pa.Table:
    """JSON lines as a table of the wanted columns, MALFORMED and NUMBER, in any order.

    Where a line is bad, or a value of another type than its column, plain values come out as text.
    """
    table = _parse_whole(lines, wanted)
    if table is not None:
        return table
    text = np.frombuffer(lines.text, dtype=np.uint8)
    looks_good = (text[lines.starts] == ord("{")) & (text[lines.stops - 1] == ord("}"))
    tables = [parse_singly(lines.filter(~looks_good), wanted, load_json)]
    parts = [lines.filter(looks_good)]
    while parts:
        part = parts.pop()
        table = _parse_whole(part, wanted)
        if table is not None:
            tables.append(table.cast(tables[0].schema))
        elif len(part) > _FINE:
            parts += [part.slice(first, first + _FINE) for first in range(0, len(part), _FINE)]
        else:
            tables.append(parse_singly(part, wanted, load_json))
    return pa.concat_tables(tables).combine_chunks()


def _parse_whole(lines: Lines, wanted: pa.Schema) -> pa.Table | None:
    """None if any line is bad."""
    text = lines.text
    # The parser does not care where lines end. No object goes on over a line's end between } and {.
    if text.count(b"}\n{") < len(lines) - 1:
        return None
    try:
        text.decode()
        table = pa.json.read_json(
            io.BytesIO(text),
            read_options=pa.json.ReadOptions(use_threads=False, block_size=len(text) + 1),
            parse_options=pa.json.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore"),
        )
    except ValueError:  # pyarrow's ArrowInvalid is one
        return None
    return well_formed(table, lines.numbers) if len(table) == len(lines) else None  # else two objects on one line


def parse_singly(lines: Lines, wanted: pa.Schema, load: Load) -> pa.Table:
    """Line by line, plain values as text."""
    columns = [field if pa.types.is_list(field.type) else field.with_type(pa.string()) for field in wanted]
    rows: list[dict[str, Any]] = []
    for line, number in zip(lines.each(), lines.numbers.tolist(), strict=True):
        if not line.strip():
            continue
        try:
            row = load(line)
            rows.append({field.name: _fitted(row.get(field.name), field.type) for field in columns})
        except (ValueError, TypeError):  # JSON has no name for some literals
            rows.append({MALFORMED: line.decode(errors="replace")})
        rows[-1][NUMBER] = number
    return pa.Table.from_pylist(rows, pa.schema([*columns, (MALFORMED, pa.string()), (NUMBER, pa.int64())]))


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """A value as text, or as lists of text. Raises ValueError for text that no encoding holds."""
    if value is None:
        return None
    if pa.types.is_list(kind):
        return [_fitted(entry, kind.value_type) for entry in (value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        return " ".join(_fitted(entry, kind) or "" for entry in value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text.encode()
    return text
