"""Delimited text (CSV, TSV, any delimiter) as Arrow tables of text, with lines that no parser can read among them.

Every value is text: an id 007 stays what it is, and what a timestamp is `clean` knows. A line is malformed if it has
another number of fields than the file has columns, opens a quote that it does not close, or is not of the encoding.
"""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from allmrec.data.config import SourceConfig
from allmrec.data.sources.lines import Lines, escapes_in, malformed, quotes_in, well_formed

# What stands for a delimiter of several bytes while lines are parsed: a character that does not occur in them.
_STANDINS = [bytes([code]) for code in range(31, 0, -1) if code not in b"\t\n\r"]


def header(lines: Lines, config: SourceConfig) -> list[str]:
    """The fields of the first line. Raises ArrowInvalid where it cannot be read."""
    first = lines.slice(0, 1)
    if not _decodable(first, config.encoding).all():
        raise pa.ArrowInvalid(f"its first line is no {config.encoding} text")
    if not (prepared := _prepared(first, config)):
        raise pa.ArrowInvalid("its first line holds no names of columns")
    text, delimiter = prepared
    try:
        (fields,) = _strictly(text, delimiter, config)
    except csv.Error as error:
        raise pa.ArrowInvalid(f"its first line, which names the columns, is misquoted: {error}") from None
    return [field.replace(delimiter.decode(), config.delimiter).strip() for field in fields]


def parse(lines: Lines, names: Sequence[str], wanted: Sequence[str], config: SourceConfig) -> pa.Table:
    """Lines as a table of the wanted columns, MALFORMED and NUMBER, in any order.

    Args:
        names: of the file's columns, by position.
    """
    columns = [names.index(name) for name in wanted]
    schema = pa.schema([(name, pa.string()) for name in wanted])
    fits = _decodable(lines, config.encoding)
    tables = [malformed(lines.filter(~fits), schema, config.encoding)]
    lines = lines.filter(fits)
    misquoted = _misquoted(lines, config)
    for line in np.flatnonzero(misquoted).tolist():
        record = lines.slice(line, line + 1)
        if b"\n" in record.text:  # perhaps no record with newlines in it, but some without
            tables.append(parse(Lines.of(record.text, int(record.numbers[0])), names, wanted, config))
        else:
            tables.append(malformed(record, schema, config.encoding))
    lines = lines.filter(~misquoted)
    odd = _odd_quotes(lines, config)  # these would draw their neighbours in
    parts = [lines.filter(~odd), *(lines.slice(line, line + 1) for line in np.flatnonzero(odd).tolist())]
    while parts:
        part = parts.pop()
        found = _rows(part, len(names), config)
        if found is not None:
            table, right = found
            tables.append(well_formed(table.select(columns).rename_columns(schema.names), part.numbers[right]))
            tables.append(malformed(part.filter(~right), schema, config.encoding))
        elif len(part) > 1:  # one of the lines is bad: which, is found by halves
            parts += [part.slice(len(part) // 2, len(part)), part.slice(0, len(part) // 2)]
        elif b"\n" in part.text:  # no record with newlines in it, but perhaps some without
            parts.append(Lines.of(part.text, int(part.numbers[0])))
        else:
            tables.append(malformed(part, schema, config.encoding))
    return pa.concat_tables(tables).combine_chunks()


def _decodable(lines: Lines, encoding: str) -> np.ndarray:
    """Which lines are of the encoding, bool (N,)."""

    def decodes(text: bytes) -> bool:
        try:
            text.decode(encoding)
        except UnicodeDecodeError:
            return False
        return True

    if decodes(lines.text):
        return np.ones(len(lines), dtype=bool)
    return np.array([decodes(line) for line in lines.each()])


def _quotes(lines: Lines, config: SourceConfig) -> np.ndarray:
    """Where in the text the quotes are that no escape precedes, int64."""
    if config.quote is None:
        return np.array([], dtype=np.int64)
    return quotes_in(lines.text, config.quote.encode(), config.escape.encode() if config.escape else None)


def _odd_quotes(lines: Lines, config: SourceConfig) -> np.ndarray:
    """Which lines hold an odd number of quotes, bool (N,)."""
    owners = np.searchsorted(lines.starts, _quotes(lines, config), side="right") - 1
    return np.bincount(owners, minlength=len(lines)) % 2 == 1


def _misquoted(lines: Lines, config: SourceConfig) -> np.ndarray:
    """Which lines hold a value whose quotes end before it does, such as "The "Best" Lamp", bool (N,).

    Each parser makes something else of them. Only lines with a quote amid other characters are looked at one by one.
    """
    wrong = np.zeros(len(lines), dtype=bool)
    quotes = _quotes(lines, config)
    if not len(quotes):
        return wrong
    text = np.frombuffer(b"\n" + lines.text + b"\n", dtype=np.uint8)
    edges = [*config.delimiter.encode(config.encoding, "replace"), ord(config.quote or " "), ord("\n"), ord("\r")]
    inner = ~np.isin(text[quotes], edges) & ~np.isin(text[quotes + 2], edges)
    for line in np.unique(np.searchsorted(lines.starts, quotes[inner], side="right") - 1).tolist():
        try:
            if prepared := _prepared(lines.slice(line, line + 1), config):
                _strictly(*prepared, config)
        except csv.Error:
            wrong[line] = True
    return wrong


def _strictly(text: bytes, delimiter: bytes, config: SourceConfig) -> list[list[str]]:
    """Records as Python's own parser reads them. Raises csv.Error where quotes are amiss."""
    dialect: dict[str, Any] = {"delimiter": delimiter.decode(), "quotechar": config.quote, "escapechar": config.escape}
    dialect["quoting"] = csv.QUOTE_NONE if config.quote is None else csv.QUOTE_MINIMAL
    return list(csv.reader([text.decode()], **dialect, strict=True))


def _rows(lines: Lines, width: int, config: SourceConfig) -> tuple[pa.Table, np.ndarray] | None:
    """The lines of `width` fields as a table, and which lines they are, bool (N,); None if quotes are amiss."""
    prepared = _prepared(lines, config)
    if prepared is None:
        return None
    text, delimiter = prepared
    text += b"\n" + delimiter.join([b"."] * width)  # a last row of ours, which a quote that is open would swallow
    wrong: list[int] = []

    def skip(row: Any) -> str:
        wrong.append(row.number - 1)
        return "skip"

    columns = [str(column) for column in range(width)]
    table = pa.csv.read_csv(
        io.BytesIO(text),
        read_options=pa.csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=columns),
        parse_options=pa.csv.ParseOptions(
            delimiter=delimiter.decode(),
            quote_char=config.quote or False,
            escape_char=config.escape or False,
            newlines_in_values=config.quoted_newlines,
            invalid_row_handler=skip,
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()),
            null_values=config.nulls,
            strings_can_be_null=bool(config.nulls),
        ),
    )
    if len(table) + len(wrong) != len(lines) + 1:
        return None
    if delimiter.decode() != config.delimiter:  # a stand-in that is left is in a value
        values = [pc.replace_substring(column, delimiter.decode(), config.delimiter) for column in table.columns]
        table = pa.table(values, names=columns)
    right = np.ones(len(lines) + 1, dtype=bool)
    right[wrong] = False
    return table.slice(0, len(table) - 1), right[:-1]


def _prepared(lines: Lines, config: SourceConfig) -> tuple[bytes, bytes] | None:
    """The lines in UTF-8 with a delimiter of one byte, and that; None if no byte is free for it."""
    text, delimiter = lines.text, config.delimiter.encode()
    if config.encoding != "utf-8":
        text = text.decode(config.encoding).encode()
    if len(delimiter) > 1:
        free = next((standin for standin in _STANDINS if standin not in text), None)
        if free is None:
            return None
        text, delimiter = text.replace(delimiter, free), free
    if config.escape is not None:
        text = _escaped(text, config.escape.encode(), {*delimiter, ord(config.quote or config.escape)})
    return text.replace(b"\r", b" "), delimiter  # the parser would take it for the end of a line


def _escaped(text: bytes, escape: bytes, escapable: set[int]) -> bytes:
    """The text with every escape doubled that precedes something else, as in \\N and C:\\new: it is meant."""
    data = np.frombuffer(text, dtype=np.uint8)
    at = escapes_in(text, escape)
    behind = np.append(data, ord("\n"))[at + 1]
    return np.insert(data, at[~np.isin(behind, list(escapable))], ord(escape)).tobytes()
