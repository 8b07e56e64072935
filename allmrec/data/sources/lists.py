"""Lists of ids, made by people and by other systems: who must not appear, what is recalled, who is asked for.

They are read as the log is, so an id may be spelled in a list as it may be in the log. Beyond that a text file of one
column may go without a header, and spaces around an id are not meant: it counts with and without them. A line that
cannot be read is an error, since no one that it names may be passed over; so is a list of which hardly any id is known.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.storage import S3Config
from allmrec.data.config import ListConfig, SourceConfig
from allmrec.data.sources.cells import ID_TYPES, as_ids, is_id
from allmrec.data.sources.files import locate
from allmrec.data.sources.lines import MALFORMED, NUMBER
from allmrec.data.sources.readers import READERS, Piece
from allmrec.data.sources.source import Column, Source, find_files, open_source


@dataclass(frozen=True)
class IdList:
    name: str  # its key in the config, or its file
    spellings: pa.Array  # string, each once: every id as it was read, and without spaces around it
    least: float  # min_known_fraction

    @classmethod
    def of(cls, name: str, ids: pa.ChunkedArray, least: float) -> "IdList":
        """Raises ValueError where it lists nothing."""
        found = cls(name, pc.unique(spellings(ids)), least)
        if not len(found):
            raise ValueError(empty(name))
        return found

    def __len__(self) -> int:
        return len(pc.unique(trimmed(self.spellings)))

    def known(self, known: np.ndarray) -> int:
        """How many ids are known, where it is known of each spelling: bool (N,)."""
        return len(pc.unique(trimmed(self.spellings.filter(pa.array(known)))))


def open_list(name: str, config: SourceConfig, column: str, s3: S3Config, section: str | None = None) -> Source:
    """Check a list's files and columns, as `open_source` does; `column` is user_id or item_id."""
    found = [file for file in find_files(name, config, s3) if file.size]
    if config.format == "csv" and config.names is None and column not in config.columns and found:
        try:
            columns, _ = READERS["csv"](config).open(*locate(found[0].uri, s3), found[0], is_first=True)
        except (OSError, pa.ArrowException):
            columns = {}  # what is wrong with it `open_source` says
        if len(columns) == 1 and column not in columns:
            config = config.model_copy(update={"names": [column]})
    return open_source(name, config, s3, {column: Column(True, is_id, ID_TYPES)}, section)


def read_list(name: str, config: ListConfig, column: str, s3: S3Config, section: str, more: Any = ()) -> IdList:
    """A whole list; it should fit into memory. Raises ValueError as `open_list`, for a bad line, and if it is empty.

    Args:
        section: of `config`, for messages.
        more: ids that the config itself lists.
    """
    found = [pa.array(more, pa.string())]
    if config.paths:
        source = open_list(name, config, column, s3, section)
        found += [chunk for piece in source.pieces for ids in ids_of(source, piece, column) for chunk in ids.chunks]
    return IdList.of(section, pa.chunked_array(found, pa.string()), config.min_known_fraction)


def ids_of(source: Source, piece: Piece, column: str) -> Iterator[pa.ChunkedArray]:
    """A piece's ids, string, none of them null. Raises ValueError for a line that cannot be read."""
    for table in source.read(piece):
        bad = table.filter(pc.is_valid(table.column(MALFORMED)))
        if len(bad):
            raise ValueError(
                f"{source.name}: {len(bad):,} lines of {piece.uri} cannot be read, the first is number "
                f"{bad.column(NUMBER)[0]}; a list must be complete: fix it, or check its encoding, delimiter and quotes"
            )
        yield as_ids(table.column(column)).drop_null()


def spellings(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """As they are and without spaces around them; empty ones go."""
    both = pa.chunked_array([*ids.chunks, *trimmed(ids).chunks], pa.string())
    return both.filter(pc.greater(pc.binary_length(trimmed(both)), 0))


def trimmed(ids: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """Without spaces around them: what the log has where it has none."""
    return as_ids(pc.utf8_trim_whitespace(ids))


def refuse_unknown(name: str, listed: int, known: int, least: float, what: str = "ids") -> None:
    """Raise ValueError if too few of a list are known, or none; a fraction of 0 takes any list that is not empty.

    Args:
        what: is listed.
    """
    if not listed:
        raise ValueError(empty(name))
    if least > 0 and (not known or known < least * listed):
        raise ValueError(
            f"{name}: of {listed:,} {what} listed, {known:,} are known, less than min_known_fraction = {least:g} asks "
            "for; check its column and how it spells ids, or accept any list with min_known_fraction: 0"
        )


def empty(name: str) -> str:
    return f"{name} lists nothing; leave the key out if it should name no one"
