"""The lines of a text file, plain or compressed, by byte ranges, numbered.

Knows bytes and where lines end. What a line holds is `jsonl`'s and `delimited`'s business.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

MALFORMED = "_malformed"  # an added column: null, or the text of a line that cannot be read
NUMBER = "_number"  # an added column: the line's number from 1, counted where the reading of the file began
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}  # by suffix; such files can only be read from their beginning
CHUNK = 16 << 20  # bytes read and parsed at once; a longer line is cut, for it is none
_RECORD = 1 << 20  # bytes of a record with newlines in it; a quote that is open for longer is a mistake
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Lines:
    """Some lines, none of them empty, with one newline between two."""

    text: bytes
    starts: np.ndarray  # int64 (N,): where in the text each begins
    numbers: np.ndarray  # int64 (N,)

    @staticmethod
    def of(text: bytes, first: int = 1, quote: bytes | None = None, escape: bytes | None = None) -> "Lines":
        """Whole lines, empty ones dropped; with `quote`, a newline between two of these characters ends none."""
        if b"\r" in text:
            text = text.removesuffix(b"\r").replace(b"\r\n", b"\n")
        ends = line_ends(text, quote, escape)
        starts, stops = np.append(0, ends + 1), np.append(ends, len(text))
        newlines = ends if quote is None else line_ends(text)
        numbers = first + np.searchsorted(newlines, starts)
        full = stops > starts
        if not full.all():
            starts, stops, numbers = starts[full], stops[full], numbers[full]
            text = b"\n".join(text[start:stop] for start, stop in zip(starts, stops, strict=True))
            starts = np.append(0, np.cumsum(stops - starts + 1))[: len(starts)]
        return Lines(text, starts, numbers)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def stops(self) -> np.ndarray:
        """Where each ends, before its newline, int64 (N,)."""
        return np.append(self.starts, len(self.text) + 1)[1:] - 1

    def slice(self, start: int, stop: int) -> "Lines":
        begin = self.starts[start] if start < len(self) else len(self.text)
        end = self.starts[stop] - 1 if stop < len(self) else len(self.text)
        return Lines(self.text[begin:end], self.starts[start:stop] - begin, self.numbers[start:stop])

    def filter(self, keep: np.ndarray) -> "Lines":
        """Those where `keep`, bool (N,), is true."""
        if keep.all():
            return self
        lengths = np.diff(self.starts, append=len(self.text) + 1)  # with the newline
        text = np.frombuffer(self.text, dtype=np.uint8)[np.repeat(keep, lengths)[:-1]].tobytes()
        if not keep[-1]:
            text = text.removesuffix(b"\n")
        return Lines(text, np.append(0, np.cumsum(lengths[keep]))[: keep.sum()], self.numbers[keep])

    def each(self) -> list[bytes]:
        bounds = zip(self.starts.tolist(), self.stops.tolist(), strict=True)
        return [self.text[start:stop] for start, stop in bounds]


def line_ends(text: bytes, quote: bytes | None = None, escape: bytes | None = None) -> np.ndarray:
    """Where the newlines are, int64; with `quote`, only those with an even number of these characters before them."""
    data = np.frombuffer(text, dtype=np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    if quote is not None and quote in text:
        quotes = quotes_in(text, quote, escape)
        ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
    return ends


def quotes_in(text: bytes, quote: bytes, escape: bytes | None = None) -> np.ndarray:
    """Where the quotes are, int64, except those that are escaped."""
    quotes = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord(quote))
    return quotes if escape is None else np.setdiff1d(quotes, escapes_in(text, escape) + 1)


def escapes_in(text: bytes, escape: bytes) -> np.ndarray:
    """Where the characters are that escape the one behind them, int64, which is none of their own kind."""
    at = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord(escape))
    if not len(at):
        return at
    begins = np.flatnonzero(np.diff(at, prepend=-2) > 1)  # of runs; of two in one the first escapes the second
    lengths = np.diff(begins, append=len(at))
    return at[begins + lengths - 1][lengths % 2 == 1]


def malformed(lines: Lines, schema: pa.Schema, encoding: str = "utf-8") -> pa.Table:
    """Lines that cannot be read, as a table of the schema's columns, MALFORMED and NUMBER."""
    texts = pa.array([line.decode(encoding, errors="replace") for line in lines.each()], pa.string())
    nulls = [pa.nulls(len(lines), field.type) for field in schema]
    return pa.table([*nulls, texts, pa.array(lines.numbers)], names=[*schema.names, MALFORMED, NUMBER])


def well_formed(table: pa.Table, numbers: np.ndarray) -> pa.Table:
    """A table that lines with these numbers were read into, a row each, with MALFORMED and NUMBER."""
    return table.append_column(MALFORMED, pa.nulls(len(table), pa.string())).append_column(NUMBER, pa.array(numbers))


def compressed(*suffixes: str) -> tuple[str, ...]:
    """The suffixes of text files, with and without that of a compression."""
    return tuple(f"{suffix}{compression}" for compression in ("", *COMPRESSION) for suffix in suffixes)


def is_compressed(path: str) -> bool:
    return path.lower().endswith(tuple(COMPRESSION))


def read_lines(
    filesystem: Any, path: str, start: int, stop: int, quote: bytes | None = None, escape: bytes | None = None
) -> Iterator[Lines]:
    """The lines that begin in bytes `start ... stop - 1`, some 16 MB at a time. A compressed file is read whole.

    With `quote`, newlines between two of these characters end no line; the range must be the whole file then. Those
    behind an `escape` do not count.
    """
    for suffix, compression in COMPRESSION.items():
        if path.lower().endswith(suffix):
            with filesystem.open_input_stream(path, compression=compression) as stream:
                yield from _split(_blocks(stream, None, is_head=True), quote, escape)
            return
    with filesystem.open_input_file(path) as file:
        size = file.size()  # beyond it, files of stores cannot be sought
        begin, end = (size if at >= size else _next_line(file, at) for at in (start, stop))
        file.seek(begin)
        yield from _split(_blocks(file, end - begin, is_head=begin == 0), quote, escape)


def _split(blocks: Iterator[bytes], quote: bytes | None, escape: bytes | None) -> Iterator[Lines]:
    return _lines(blocks) if quote is None else _records(blocks, quote, escape)


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


def _blocks(stream: Any, length: int | None, is_head: bool) -> Iterator[bytes]:
    """At most `length` bytes of a stream, without the mark that some programs put before UTF-8."""
    while block := stream.read(CHUNK if length is None else min(CHUNK, length)):
        length = None if length is None else length - len(block)
        yield block.removeprefix(_BOM) if is_head else block
        is_head = False


def _lines(blocks: Iterator[bytes]) -> Iterator[Lines]:
    rest, first = b"", 1
    for block in blocks:
        text = rest + block
        whole = text.rfind(b"\n") + 1 or (len(text) if len(text) > CHUNK else 0)
        if lines := Lines.of(text[:whole].removesuffix(b"\n"), first):
            yield lines
        first, rest = first + text.count(b"\n", 0, whole), text[whole:]
    if lines := Lines.of(rest, first):
        yield lines


def _records(blocks: Iterator[bytes], quote: bytes, escape: bytes | None) -> Iterator[Lines]:
    """As `_lines`, but with newlines in quotes. Where a quote stays open, the line that it is on goes by itself."""
    rest, first = b"", 1
    block = next(blocks, None)
    while block is not None:
        text, block = rest + block, next(blocks, None)
        whole, is_open = _whole_records(text, quote, escape, block is None)
        while True:
            if lines := Lines.of(text[:whole].removesuffix(b"\n"), first, quote, escape):
                yield lines
            first, text = first + text.count(b"\n", 0, whole), text[whole:]
            if not is_open:
                break
            line = text.find(b"\n", 0, _RECORD) + 1 or _RECORD
            if lines := Lines.of(text[:line].removesuffix(b"\n"), first):
                yield lines
            first, text = first + text.count(b"\n", 0, line), text[line:]
            whole, is_open = _whole_records(text, quote, escape, block is None)
        rest = text


def _whole_records(text: bytes, quote: bytes, escape: bytes | None, is_last: bool) -> tuple[int, bool]:
    """How many bytes of the text are whole records, and whether a quote stays open behind them."""
    starts = np.append(0, line_ends(text, quote, escape) + 1)
    too_long = np.diff(starts, append=len(text)) > _RECORD
    if is_last and len(quotes_in(text[starts[-1] :], quote, escape)) % 2:
        too_long[-1] = True
    if too_long.any():
        return int(starts[too_long.argmax()]), True
    return len(text) if is_last else int(starts[-1]), False
