"""The prepared items table as arrays by item index."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import read_table
from allmrec.core.storage import Storage

UNTITLED = "untitled item"


@dataclass(frozen=True)
class Catalogue:
    """n items; arrays have n + 1 entries, entry 0 is padding."""

    item_ids: pa.Array  # string
    titles: pa.Array  # string, never null: UNTITLED where the catalogue has none
    texts: pa.Array  # string: what the text encoder reads (paper equation 2)
    text_hashes: pa.Array  # string
    popularity: np.ndarray  # int64, training interactions
    available: np.ndarray  # bool; entry 0 is False
    drawable: np.ndarray  # int32 (M,), not by index: see `drawable_items`

    @property
    def num_items(self) -> int:
        return len(self.item_ids) - 1

    @classmethod
    def read(cls, storage: Storage) -> "Catalogue":
        return cls.from_table(read_table(storage))

    @classmethod
    def from_table(cls, table: pa.Table) -> "Catalogue":
        """From the prepared `items` table, which is ordered by item_index."""
        table = table.sort_by("item_index")
        assert table.column("item_index").to_pylist() == list(range(1, table.num_rows + 1)), "item_index is dense"
        titles = table.column("title")
        available = pc.fill_null(table.column("available"), True)
        return cls(
            item_ids=_padded(table.column("item_id"), ""),
            titles=_padded(display_titles(titles), ""),
            texts=_padded(item_texts(titles, table.column("description")), ""),
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
    """Titles on one line, `UNTITLED` where nothing is left."""
    cleaned = pc.utf8_trim_whitespace(pc.replace_substring_regex(titles, r"[\pZ\pC]+", " "))
    return pc.if_else(pc.equal(pc.fill_null(cleaned, ""), ""), UNTITLED, cleaned)


def item_texts(titles: pa.ChunkedArray, descriptions: pa.ChunkedArray) -> pa.ChunkedArray:
    """What SBERT reads: "Title: t, Description: d" (paper equation 2)."""
    return pc.binary_join_element_wise(
        "Title: ", display_titles(titles), ", Description: ", pc.fill_null(descriptions, ""), ""
    )


def _padded(column: pa.ChunkedArray, padding: object) -> pa.Array:
    return pa.concat_arrays([pa.array([padding], column.type), *column.chunks])
