"""Lines that hold one object each, as Arrow tables: JSON, or the literals of Python that some publishers write instead.

Knows the types of JSON. Where lines end is `lines`' business, what columns mean `clean`'s.
"""

import ast
import io
import json
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from allmrec.data.sources.lines import MALFORMED, NUMBER, Lines, well_formed

_TOLD_FROM = 1000  # lines
_FINE = 64  # lines parsed at once where a chunk holds a bad one

_HAS_NONE = re.compile(rb"\b(?:nan|inf)\b")

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
            tree = ast.parse(line.decode().strip(), mode="eval")
            return _object(ast.literal_eval(_NumbersThatAreNone().visit(tree) if _HAS_NONE.search(line) else tree))
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        raise ValueError(str(error)) from None


class _NumbersThatAreNone(ast.NodeTransformer):
    """What Python prints for a number that is none is a name, nan or inf: null."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(None) if node.id in ("nan", "inf") else node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        is_infinite = isinstance(node.operand, ast.Name) and node.operand.id == "inf"
        return ast.Constant(None) if is_infinite else node


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("the line holds no object")
    return value


def column_types(lines: list[bytes], load: Load) -> dict[str, pa.DataType]:
    """The types of columns, told from some lines; null where nothing is known.

    Raises ArrowInvalid where none of the lines holds an object.
    """
    values: dict[str, list[Any]] = {}
    for line in lines:
        try:
            row = load(line)
        except ValueError:
            continue
        for key, value in row.items():
            found = values.setdefault(key, [])
            if not _is_null(value):
                found.append(value)
    if not values:
        raise pa.ArrowInvalid("none of its first lines holds an object")
    return {key: _json_type(found) for key, found in values.items()}


def _is_null(value: Any) -> bool:
    """Whether it is null, or a number that is none: programs write NaN where they have nothing."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _json_type(values: list[Any]) -> pa.DataType:
    """The type that holds all values, none of them null. Objects are text, and lists among more other values."""
    if not values:
        return pa.null()
    kinds = {type(value) for value in values}
    lists = [value for value in values if isinstance(value, list)]
    if 2 * len(lists) > len(values):
        deeper = [entry for value in lists for entry in value]
        return pa.list_(pa.list_(pa.string()) if any(isinstance(entry, list) for entry in deeper) else pa.string())
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int} and all(abs(value) < 2**63 for value in values):
        return pa.int64()
    is_real = kinds <= {int, float} and all(abs(value) < 2**53 for value in values)
    return pa.float64() if is_real and float in kinds else pa.string()


def parse_json(lines: Lines, wanted: pa.Schema) -> pa.Table:
    """JSON lines as a table of the wanted columns, MALFORMED and NUMBER, in any order.

    Types are those wanted, or those that the lines tell, where nothing is known of a column (null) or they do not
    fit. Where a line is bad, or values of one column differ in type, plain values come out as text.
    """
    table = _parse_whole(lines, wanted)
    if table is not None:
        return table
    told = _told(lines, wanted, load_json)
    if told != wanted:
        table = _parse_whole(lines, told)
        if table is not None:
            return table
    wanted = pa.schema([field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in told])
    text = np.frombuffer(lines.text, dtype=np.uint8)
    looks_good = (text[lines.starts] == ord("{")) & (text[lines.stops - 1] == ord("}"))
    tables = [parse_singly(lines.filter(~looks_good), wanted, load_json)]
    parts = [lines.filter(looks_good)]
    while parts:
        part = parts.pop()
        table = _parse_whole(part, wanted)
        if table is not None:
            tables.append(_as_singly(table, tables[0].schema))
        elif len(part) > _FINE:
            parts += [part.slice(first, first + _FINE) for first in range(0, len(part), _FINE)]
        else:
            tables.append(parse_singly(part, wanted, load_json))
    return pa.concat_tables(tables).combine_chunks()


def _parse_whole(lines: Lines, wanted: pa.Schema) -> pa.Table | None:
    """None if any line is bad."""
    text = lines.text
    # The parser does not care where lines end. No object continues past a line's end between } and {.
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
    if len(table) != len(lines):  # two objects on one line
        return None
    columns = [_finite(table.column(field.name)) for field in wanted]
    return well_formed(pa.table(columns, names=wanted.names), lines.numbers)


def _finite(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_floating(column.type) or pc.all(pc.is_finite(column)).as_py() is not False:
        return column
    return pc.if_else(pc.is_finite(column), column, None)


def _as_singly(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """What was read whole, with the types of what was read line by line."""
    for at, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):  # Arrow's text of them has other digits
            text = pl.Series(table.column(at)).cast(pl.String).to_arrow()
            table = table.set_column(at, field.name, text.cast(pa.string()))
    return table.cast(schema)


def spellings(key: str) -> set[bytes]:
    """How a key is written in a line, in quotes."""
    texts = {json.dumps(key), json.dumps(key, ensure_ascii=False), repr(key)}
    return {text.encode() for text in texts}


def _told(lines: Lines, wanted: pa.Schema, load: Load) -> pa.Schema:
    """The wanted columns with the types that some of the lines tell.

    The lines are spread evenly; the first ones with the key of a column of which nothing is known are among them.
    """
    at = np.unique(np.linspace(0, len(lines) - 1, _TOLD_FROM).astype(int))
    for field in wanted:
        if pa.types.is_null(field.type):
            at = np.union1d(at, _lines_with(lines, field.name))
    starts, stops = lines.starts, lines.stops
    try:
        told = column_types([lines.text[starts[line] : stops[line]] for line in at.tolist()], load)
    except pa.ArrowInvalid:
        return wanted
    return pa.schema([(field.name, _later(field.type, told.get(field.name, pa.null()))) for field in wanted])


def _later(known: pa.DataType, told: pa.DataType) -> pa.DataType:
    """What a column is where later lines tell another type: a plain value does not become a list, nor the reverse."""
    if pa.types.is_null(known) or pa.types.is_null(told):
        return known if pa.types.is_null(told) else told
    return known if pa.types.is_list(known) or pa.types.is_list(told) or pa.types.is_boolean(told) else told


def _lines_with(lines: Lines, key: str) -> np.ndarray:
    """Some lines in which a key may occur, int64."""
    found: list[int] = []
    for spelling in spellings(key):
        at = lines.text.find(spelling)
        while at >= 0 and len(found) < _TOLD_FROM:
            found.append(at)
            at = lines.text.find(spelling, at + 1)
    return np.searchsorted(lines.starts, found, side="right").astype(np.int64) - 1


def parse_literals(lines: Lines, wanted: pa.Schema) -> pa.Table:
    """Lines of Python literals as a table of the wanted columns, MALFORMED and NUMBER."""
    return parse_singly(lines, _told(lines, wanted, load_literal), load_literal)


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
    if _is_null(value):
        return None
    if pa.types.is_list(kind):
        return [_fitted(entry, kind.value_type) for entry in (value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        return " ".join(_fitted(entry, kind) or "" for entry in value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text.encode()
    return text
