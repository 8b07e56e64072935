"""The catalogue as it comes in → the prepared `items` table.

Texts lose their markup (catalogues are full of HTML); lists of paragraphs become one text. The order of items, and
so `item_index`, is that of their ids, whatever the order of files and rows.
"""

import hashlib
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from allmrec.core.shard_tasks import Task
from allmrec.data.catalogue import item_texts
from allmrec.data.config import SourceConfig
from allmrec.data.prepare.clean import as_text, to_arrow, to_polars
from allmrec.data.sources.cells import ID_TYPES, accepts, as_flags, as_ids, as_words, is_id, is_list, is_number, is_text
from allmrec.data.sources.lines import MALFORMED, NUMBER
from allmrec.data.sources.source import Column, Source
from schemas import items, rejected

_REJECTED = rejected.SCHEMA.names[1:]

# Those are null in good rows, except the file.
CLEANED = pa.schema([*items.INPUT, *(rejected.SCHEMA.field(name).with_nullable(True) for name in _REJECTED)])
CLEANED = CLEANED.set(0, CLEANED.field(0).with_nullable(True))  # a rejected row may have no id

_WORDS = ("title", "description", "categories")
_ENTITY = r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});"
_MARKUP = r"(?is)<script\b.*?</script\s*>|<style\b.*?</style\s*>|<!--.*?-->|</?[a-z][^<>]*>"


def _is_words(kind: pa.DataType, depth: int = 2) -> bool:
    return _is_words(kind.value_type, depth - 1) if depth and is_list(kind) else is_id(kind)


ITEMS = {
    "item_id": Column(True, is_id, ID_TYPES),
    "title": Column(True, _is_words, "text"),
    "description": Column(False, _is_words, "text or a list of texts"),
    "categories": Column(False, _is_words, "a list of texts, or text"),
    "available": Column(False, accepts(pa.types.is_boolean, is_number, is_text), "a boolean, a number or text"),
}


@dataclass(frozen=True)
class CleanItems(Task):
    """Numbers of pieces of the catalogue → CLEANED rows."""

    source: Source

    def tables(self, number: int) -> Iterator[pa.Table]:
        piece = self.source.pieces[number]
        for table in self.source.read(piece):
            yield clean_items(table, self.source.config, self.source.place(piece))


def clean_items(table: pa.Table, config: SourceConfig, place: Mapping[str, Any]) -> pa.Table:
    """Rows of the catalogue under our column names, with MALFORMED and NUMBER → as many CLEANED rows, in their order.

    Args:
        place: `Source.place` of the rows.
    """
    raw = to_polars(table)
    texts = to_polars(pa.table({name: as_words(table.column(name)) for name in _WORDS if name in table.column_names}))
    words = texts.select(
        _words(texts, "title"), _words(texts, "description"), _words(texts, "categories", config.list_separator)
    )
    nothing = pa.chunked_array([pa.nulls(len(table))])
    available, unreadable = as_flags(table.column("available") if "available" in table.column_names else nothing)
    if config.no_title:
        junk = pl.col("title").list.eval(pl.element().str.contains(config.no_title)).list.any()
        words = words.with_columns(pl.when(~junk).then("title").alias("title"))
    entities = _entities(words)
    rows = raw.select(
        pl.Series("item_id", as_ids(table.column("item_id"))),
        MALFORMED,
        *(_plain(words[column], entities) for column in words.columns),
        as_text(pl.struct(pl.all().exclude(MALFORMED, NUMBER))),
        *(pl.lit(value).alias(name) for name, value in place.items()),
        available=available,
        unreadable=unreadable,
        number=NUMBER,
    ).with_columns(
        pl.col("title", "description").list.join(" ").replace("", None),
        reason=pl.when(pl.col(MALFORMED).is_not_null())
        .then(pl.lit(rejected.MALFORMED))
        .when(pl.col("item_id").fill_null("") == "")
        .then(pl.lit(rejected.NULL_ID))
        .when("unreadable")
        .then(pl.lit(rejected.BAD_AVAILABLE)),
    )
    is_rejected = pl.col("reason").is_not_null()
    rows = rows.with_columns(pl.when(is_rejected).then(pl.col(name)) for name in ("row", "from_byte", "number"))
    return to_arrow(rows, CLEANED)


def index_items(
    cleaned: pa.Table, known: Sequence[str] = (), excluded: Sequence[str] = (), before: pa.Table | None = None
) -> tuple[pa.Table, pa.Table]:
    """All CLEANED rows → the `items` table without interactions, and the rejected rows.

    Args:
        known: ids that have their index, from 1 on; one that is not in the catalogue any longer stays, not available.
        excluded: ids that stay without words, not available.
        before: the `items` table of the preparation before, which has the words of what the catalogue has lost: they
            are still in histories.

    New items come after the known ones, ordered by the first file that has them and by id; so a catalogue that grows
    by files gives the same numbers in one preparation as in many.

    Of several rows with one id one with a title is kept; of several of those the first in the order of their
    content, so that the choice does not hang on the order of files.
    """
    rows = to_polars(cleaned)
    content = pl.struct(items.INPUT.names).struct.json_encode()
    good = rows.filter(pl.col("reason").is_null()).with_columns(row=content)
    good = good.sort("item_id", pl.col("title").is_null(), "row")
    good = good.with_columns(first_file=pl.col("file").min().over("item_id"))
    first = pl.col("item_id").is_first_distinct()
    kept = _numbered(good.filter(first), known, excluded, before)
    inputs = to_arrow(kept, items.INPUT)
    texts = item_texts(inputs.column("title"), inputs.column("description"))
    kept = kept.with_columns(_text_hashes(texts), popularity=pl.lit(0), interactions=pl.lit(0))
    duplicates = good.filter(~first).drop("first_file").with_columns(reason=pl.lit(rejected.DUPLICATE_ITEM))
    bad = pl.concat([rows.filter(pl.col("reason").is_not_null()), duplicates]).sort("reason", "row", "file", "number")
    return to_arrow(kept, items.SCHEMA), to_arrow(bad.with_columns(source=pl.lit("items")), rejected.SCHEMA)


def _numbered(
    rows: pl.DataFrame, known: Sequence[str], excluded: Sequence[str], before: pa.Table | None
) -> pl.DataFrame:
    """CLEANED rows of different items with `first_file` → all items in the order of their new column item_index."""
    positions = pl.DataFrame({"item_id": pl.Series(known, dtype=pl.String)}).with_row_index("place")
    gone = positions.select("item_id").join(rows, on="item_id", how="anti")
    if before is not None:
        gone = gone.join(to_polars(before.select(["item_id", *_WORDS])), on="item_id", how="left")
    gone = gone.with_columns(available=pl.lit(False))
    rows = pl.concat([rows, gone], how="diagonal").join(positions, on="item_id", how="left")
    rows = rows.sort("place", "first_file", "item_id", nulls_last=True).drop("place")
    rows = rows.with_row_index("item_index", offset=1)
    out = pl.col("item_id").is_in(pl.Series(excluded, dtype=pl.String).implode())
    words = [pl.when(~out).then(pl.col(name)).alias(name) for name in ("title", "description", "categories")]
    return rows.with_columns(*words, available=pl.when(out).then(pl.lit(False)).otherwise("available"))


def with_counts(table: pa.Table, popularity_I: np.ndarray, interactions_I: np.ndarray) -> pa.Table:
    """The `items` table with its interactions that train, and all of them: int64 (n + 1,) by item_index."""
    for name, counts_I in (("popularity", popularity_I), ("interactions", interactions_I)):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(counts_I[1:], pa.int64()))
    return table


def _text_hashes(texts: pa.ChunkedArray) -> pl.Series:
    return pl.Series("text_hash", [hashlib.sha256(text.encode()).hexdigest() for text in texts.to_pylist()], pl.String)


def _words(raw: pl.DataFrame, column: str, separator: str | None = None) -> pl.Expr:
    """A column of text, or of lists or lists of lists of it, as list<string>; null where the source is."""
    kind = raw.schema.get(column, pl.Null())
    if kind == pl.Null:
        return pl.lit(None, pl.List(pl.String)).alias(column)
    if kind == pl.String and separator:
        return pl.col(column).str.split(separator)
    if kind == pl.String:
        return pl.when(pl.col(column).is_not_null()).then(pl.concat_list(column))
    nested = isinstance(kind, pl.List) and kind.inner == pl.List
    flat = pl.col(column).list.eval(pl.element().explode()) if nested else pl.col(column)
    return flat.cast(pl.List(pl.String))


def _entities(words: pl.DataFrame) -> list[str]:
    """The distinct HTML entities in a frame of list<string>: few, so that resolving them is one pass over the text."""
    found = [column.explode().str.extract_all(_ENTITY).explode() for column in words.iter_columns()]
    return pl.concat([column.rename("entity") for column in found]).drop_nulls().unique().sort().to_list()


def _plain(lists: pl.Series, entities: list[str]) -> pl.Series:
    """Without HTML and repeated white space; entries that are empty then, or come again, are dropped."""
    text = pl.element()
    if entities:
        text = text.str.replace_many(entities, [html.unescape(entity) for entity in entities])
    text = text.str.replace_all(_MARKUP, " ").str.replace_all(r"\s+", " ").str.strip_chars()
    plain = pl.col(lists.name).list.eval(text.filter(text != "")).list.unique(maintain_order=True)
    return lists.to_frame().select(plain).to_series()
