"""What a user's favourite genre is: the categories that most of the history's items have.

Dimensions: U users, G categories, n items
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.data.catalogue import in_order
from allmrec.data.sequences import Sequences, offsets_of, ranges


@dataclass(frozen=True)
class Categories:
    """The catalogue's categories, and which item has which."""

    names: pa.Array  # string (G + 1,); entry 0 is none
    members: np.ndarray  # int64 (sum of items' categories,): 0 ... G - 1, by item
    offsets: np.ndarray  # int64 (n + 2,): item i has members[offsets[i] : offsets[i + 1]]

    @classmethod
    def from_table(cls, items: pa.Table, limit: int) -> "Categories":
        """The `limit` most frequent categories of the prepared `items`, by frequency, then name.

        One that more than half of the items have ("Movies" in a shop of movies) says nothing of a user and is left out.

        Raises:
            ValueError: no category is left.
        """
        lists = in_order(items).column("categories")
        trimmed = pc.utf8_trim_whitespace(pc.list_flatten(lists))
        names = pc.if_else(pc.equal(trimmed, ""), None, trimmed).dictionary_encode().combine_chunks()
        known = pc.is_valid(names).to_numpy(zero_copy_only=False)
        item, category = pc.list_parent_indices(lists).to_numpy()[known], names.indices.drop_null().to_numpy()
        count = max(len(names.dictionary), 1)
        item, category = np.divmod(np.unique(item.astype(np.int64) * count + category), count)  # each once
        frequency = np.bincount(category, minlength=len(names.dictionary))
        order = pc.sort_indices(
            pa.table({"name": names.dictionary, "frequency": frequency}),
            [("frequency", "descending"), ("name", "ascending")],
        ).to_numpy()
        kept = order[frequency[order] <= items.num_rows / 2][:limit]
        if not len(kept):
            raise ValueError(
                "the items have no categories that tell them apart, so no user has a favourite; "
                "map the catalogue's column in data.items.columns.categories"
            )
        number = np.full(len(frequency), -1)
        number[kept] = np.arange(len(kept))
        item, members = item[number[category] >= 0], number[category][number[category] >= 0]
        sizes = np.bincount(item + 1, minlength=items.num_rows + 1)
        kept_names = pa.concat_arrays([pa.array([""]), names.dictionary.take(pa.array(kept))])
        return cls(kept_names, members, offsets_of(sizes))

    @property
    def count(self) -> int:
        """G."""
        return len(self.names) - 1

    def favourites(self, histories: Sequences) -> np.ndarray:
        """bool (U, G): each user's most frequent categories, several in a tie and none where no item has any."""
        sizes = np.diff(self.offsets)[histories.items]
        category = self.members[ranges(self.offsets[histories.items], sizes)]
        user = np.repeat(histories.rows(), sizes)
        counts_UG = np.bincount(user * self.count + category, minlength=len(histories) * self.count)
        counts_UG = counts_UG.reshape(len(histories), self.count)
        return (counts_UG == counts_UG.max(axis=1, keepdims=True)) & (counts_UG > 0)
