"""The prepared items table as arrays by item index."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import read_manifest, read_parts, read_rows, read_table
from allmrec.core.mapped_columns import MappedColumns
from allmrec.core.storage import Storage
from schemas import items

UNTITLED = "untitled item"
ITEMS_PER_SHARD = 1 << 15  # of `items` and of their text embeddings, in the order of item_index


@dataclass(frozen=True)
class Catalogue:
    """n items; arrays have n + 1 entries, entry 0 is padding."""

    words: pa.Table  # title and, for `texts`, description as the shop has them, without padding
    item_ids: pa.Array  # string
    titles: pa.Array  # large_string, never null: UNTITLED where the catalogue has none
    text_hashes: pa.Array  # string
    popularity: np.ndarray  # int64, training interactions
    available: np.ndarray  # bool; entry 0 is False
    drawable: np.ndarray  # int32 (M,), not by index: see `drawable_items`

    @property
    def num_items(self) -> int:
        return len(self.item_ids) - 1

    @cached_property
    def texts(self) -> pa.Array:
        """large_string (n + 1,): what the text encoder reads (paper equation 2)."""
        return _padded(item_texts(self.words.column("title"), self.words.column("description")), "")

    @classmethod
    def read(cls, storage: Storage, texts: bool = False) -> "Catalogue":
        """From the stored `items` table. Args: texts: with the descriptions, which only `texts` needs."""
        return cls.from_table(read_table(storage) if texts else read_item_table(storage))

    @classmethod
    def from_table(cls, table: pa.Table) -> "Catalogue":
        """From the prepared `items` table, which is ordered by item_index."""
        words = in_order(table).select([name for name in ("title", "description") if name in table.column_names])
        available = pc.fill_null(table.column("available"), True)
        return cls(
            words=words,
            item_ids=_padded(table.column("item_id"), ""),
            titles=_padded(display_titles(words.column("title")), ""),
            text_hashes=_padded(table.column("text_hash"), ""),
            popularity=_padded(table.column("popularity"), 0).to_numpy(),
            available=_padded(available, False).to_numpy(zero_copy_only=False),
            drawable=drawable_items(table),
        )


@dataclass(frozen=True)
class ItemCounts:
    """What `sequences` holds of each item: int64 (n + 1,), entry 0 is padding."""

    popularity: np.ndarray  # interactions that train: what a system can know
    interactions: np.ndarray  # all; the others were held out, or not trained on
    users: int  # of `sequences`


@dataclass(frozen=True)
class StoredCounts:
    """`ItemCounts` in a draft: tasks carry its name, and workers map it."""

    columns: MappedColumns  # popularity and interactions, int64 (n + 1,)
    users: int

    def read(self) -> ItemCounts:
        table = self.columns.read()
        popularity, interactions = (table.column(name).to_numpy() for name in ("popularity", "interactions"))
        return ItemCounts(popularity, interactions, self.users)


def read_item_table(storage: Storage) -> pa.Table:
    """The stored `items` table without descriptions, which are most of a catalogue."""
    return read_table(storage, columns=[name for name in items.SCHEMA.names if name != "description"])


def parts_in_order(storage: Storage, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of the stored `items` table and item_index, which ascends from 1: one file after the other."""
    first = 1
    for part in read_parts(storage, ["item_index", *columns]):
        index = part.column("item_index").to_numpy()
        assert np.array_equal(index, np.arange(first, first + len(part))), "item_index is dense and ascending"
        first += len(part)
        yield part


def read_titles(storage: Storage) -> pa.Array:
    """`Catalogue.titles`, of the stored `items` table."""
    parts = (display_titles(part.column("title")) for part in parts_in_order(storage, ["title"]))
    return _padded(pa.chunked_array([chunk for titles in parts for chunk in titles.chunks], pa.large_string()), "")


def some_titles(storage: Storage, count: int) -> pa.Array:
    """As `read_titles`, of `count` items at most from all over the table."""
    manifest = read_manifest(storage)
    numbers = np.linspace(1, manifest.rows, min(manifest.rows, count)).astype(np.int64)
    return _padded(display_titles(read_rows(storage, manifest, numbers - 1, ["title"]).column("title")), "")


def read_drawable(storage: Storage) -> np.ndarray:
    """`Catalogue.drawable`, of the stored `items` table."""
    return np.concatenate([drawable_items(part) for part in parts_in_order(storage, ["interactions"])])


def is_untitled(storage: Storage) -> bool:
    """Whether no item of the stored `items` table has a title."""
    parts = (display_titles(part.column("title")) for part in read_parts(storage, ["title"]))
    return all(pc.all(pc.equal(titles, UNTITLED)).as_py() for titles in parts)


def item_shards(table: pa.Table) -> Iterator[pa.Table]:
    """A table by item as its files have it; one of no items is one file."""
    for first in range(0, max(len(table), 1), ITEMS_PER_SHARD):
        yield table.slice(first, ITEMS_PER_SHARD)


def in_order(table: pa.Table) -> pa.Table:
    """The `items` table itself, which `prepare` orders by item_index: 1 … n."""
    index = table.column("item_index").to_numpy()
    assert np.array_equal(index, np.arange(1, len(table) + 1)), "item_index is dense and ascending"
    return table


def drawable_items(table: pa.Table) -> np.ndarray:
    """int32 (M,), ascending: the items that occur in `sequences`, in any part of them, of the prepared `items` table.

    Wherever an item is drawn or competes it is one of these: one that filters took out, or that no user has had,
    can be told from a target by that alone.
    """
    occurs = pc.greater(table.column("interactions"), 0)
    return np.sort(table.column("item_index").filter(occurs).to_numpy())


def warm_and_cold(popularity_I: np.ndarray, fraction: float = 0.35) -> tuple[np.ndarray, np.ndarray]:
    """bool (n + 1,) twice: the top and the bottom 35 % of items by interactions (paper section 5.2.2).

    Footnote 1 of the paper ("within the top 35% of interactions") is read as a share of the items that have
    interactions, ranked by these. Items with as many are on one side, so that the share is as near to 35 % as that
    allows, of two that are as near the larger one. Items without interactions are cold besides.
    """
    counts, of_I = np.unique(popularity_I[1:], return_inverse=True)
    items = np.bincount(of_I) * (counts > 0)
    wanted = fraction * items.sum()
    fewest, most = _closest(items.cumsum(), wanted), _closest(items[::-1].cumsum(), wanted)
    pad, known = np.zeros(1, dtype=bool), popularity_I[1:] > 0
    warm, cold = known & (of_I >= len(counts) - most), ~known | (of_I < fewest)
    return np.concatenate([pad, warm]), np.concatenate([pad, cold])


def _closest(sizes: np.ndarray, wanted: float) -> int:
    """How many classes of items to take for the sum of their sizes, ascending, to be nearest to `wanted`."""
    return int(len(sizes) - np.abs(np.append(0, sizes) - wanted)[::-1].argmin())


def display_titles(titles: pa.ChunkedArray) -> pa.ChunkedArray:
    """Titles on one line, `UNTITLED` where nothing is left: large_string."""
    cleaned = pc.utf8_trim_whitespace(pc.replace_substring_regex(_large(titles), r"[\pZ\pC]+", " "))
    return pc.if_else(pc.equal(pc.fill_null(cleaned, ""), ""), UNTITLED, cleaned)


def count_untitled(storage: Storage) -> int:
    """How many items of the stored `items` table have no title."""
    columns = (display_titles(part.column("title")) for part in read_parts(storage, ["title"]))
    return sum(pc.sum(pc.equal(titles, UNTITLED)).as_py() or 0 for titles in columns)


def item_texts(titles: pa.ChunkedArray, descriptions: pa.ChunkedArray) -> pa.ChunkedArray:
    """What SBERT reads: "Title: t, Description: d" (paper equation 2); large_string."""
    before, between, nothing = (pa.scalar(text, pa.large_string()) for text in ("Title: ", ", Description: ", ""))
    described = pc.fill_null(_large(descriptions), "")
    return pc.binary_join_element_wise(before, display_titles(titles), between, described, nothing)


def _large(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts of a catalogue may be more than the 2^31 bytes that an array of `string` holds."""
    return texts.cast(pa.large_string())


def _padded(column: pa.ChunkedArray, padding: object) -> pa.Array:
    return pa.concat_arrays([pa.array([padding], column.type), *column.chunks])
