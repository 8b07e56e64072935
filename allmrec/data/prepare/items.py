"""The catalogue as it comes in → the prepared `items` table.

Texts lose their markup (catalogues are full of HTML); lists of paragraphs become one text. The order of items, and
so `item_index`, is that of their ids, whatever the order of files and rows. Knows rows that are at hand; `item_shards`
has what is done with a catalogue that no process holds.
"""

import hashlib
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.columns import take
from allmrec.core.hashing import hash_strings
from allmrec.data.catalogue import item_texts
from allmrec.data.config import SourceConfig
from allmrec.data.prepare.clean import as_text, to_arrow, to_polars
from allmrec.data.sources.cells import ID_TYPES, accepts, as_flags, as_ids, as_words, is_id, is_list, is_number, is_text
from allmrec.data.sources.lines import MALFORMED, NUMBER
from allmrec.data.sources.source import Column
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


def number_items(item_ids: pa.ChunkedArray, files: np.ndarray, known: pa.Array) -> pa.Array:
    """Ids of all items, by item_index from 1: string (n,).

    New items come after the known ones, ordered by the first file that has them and by id; so a catalogue that grows
    by files gives the same numbers in one preparation as in many.

    Args:
        item_ids: of the catalogue's rows that are not rejected; an id may come again.
        files: int (N,), the place of each row's file among all, by name.
        known: ids that have their index, from 1 on; one that is not in the catalogue any longer keeps it.
    """
    keys = hash_strings(item_ids)
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(keys[order]) > 0)[: len(keys)])
    new = ~np.isin(keys[order[starts]], hash_strings(known))
    file = np.minimum.reduceat(files[order], starts)[new] if len(starts) else files
    rows = pa.table({"file": file, "item_id": take(item_ids, order[starts][new])})
    ascending = pc.sort_indices(rows, [("file", "ascending"), ("item_id", "ascending")])
    found = take(rows.column("item_id"), ascending.to_numpy())
    return pa.concat_arrays([known, *found.chunks])


def merge_items(
    rows: pa.Table, item_ids: pa.Array, first: int, excluded: Sequence[str] = (), before: pa.Table | None = None
) -> tuple[pa.Table, pa.Table]:
    """All CLEANED rows of consecutive items → their `items` table without interactions, and the rejected rows.

    Of several rows with one id one with a title is kept; of several of those the first in the order of their
    content, so that the choice does not hang on the order of files.

    Args:
        item_ids: string, of the items; one that has no row is not in the catalogue any longer, and not available.
        first: the item_index of the first one.
        excluded: ids that stay without words, not available.
        before: rows of the `items` table of the preparation before, which have the words of what the catalogue has
            lost: they are still in histories.
    """
    cleaned, content = to_polars(rows.select(CLEANED.names)), pl.struct(items.INPUT.names).struct.json_encode()
    good = cleaned.filter(pl.col("reason").is_null()).with_columns(row=content)
    good = good.sort("item_id", pl.col("title").is_null(), "row")
    is_first = pl.col("item_id").is_first_distinct()
    kept = _with_all(good.filter(is_first), item_ids, excluded, before)
    kept = kept.with_row_index("item_index", offset=first)
    inputs = to_arrow(kept, items.INPUT)
    texts = item_texts(inputs.column("title"), inputs.column("description"))
    kept = kept.with_columns(_text_hashes(texts), popularity=pl.lit(0), interactions=pl.lit(0))
    duplicates = good.filter(~is_first).with_columns(reason=pl.lit(rejected.DUPLICATE_ITEM))
    bad = pl.concat([cleaned.filter(pl.col("reason").is_not_null()), duplicates])
    bad = bad.sort("reason", "row", "file", "number").with_columns(source=pl.lit("items"))
    return to_arrow(kept, items.SCHEMA), to_arrow(bad, rejected.SCHEMA)


def _with_all(rows: pl.DataFrame, item_ids: pa.Array, excluded: Sequence[str], before: pa.Table | None) -> pl.DataFrame:
    """CLEANED rows of different items → a row for each of the ids, in their order."""
    every = pl.DataFrame({"item_id": pl.Series(item_ids, dtype=pl.String)}).with_row_index("place")
    gone = every.select("item_id").join(rows, on="item_id", how="anti")
    if before is not None:
        gone = gone.join(to_polars(before.select(["item_id", *_WORDS])), on="item_id", how="left")
    gone = gone.with_columns(available=pl.lit(False))
    rows = pl.concat([rows, gone], how="diagonal").join(every, on="item_id").sort("place").drop("place")
    out = pl.col("item_id").is_in(pl.Series(excluded, dtype=pl.String).implode())
    words = [pl.when(~out).then(pl.col(name)).alias(name) for name in _WORDS]
    return rows.with_columns(*words, available=pl.when(out).then(pl.lit(False)).otherwise("available"))


def with_counts(table: pa.Table, popularity_I: np.ndarray, interactions_I: np.ndarray) -> pa.Table:
    """Rows of the `items` table with their interactions that train, and all of them.

    Args:
        popularity_I, interactions_I: int64 (n + 1,), by item_index.
    """
    index = table.column("item_index").to_numpy()
    for name, counts_I in (("popularity", popularity_I), ("interactions", interactions_I)):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(counts_I[index], pa.int64()))
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
