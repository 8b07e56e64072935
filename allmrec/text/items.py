"""The texts of items as workers read them from the stored `items`, by row (item_index - 1).

Dimensions: N items, R rows
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import Manifest, read_part, read_parts
from allmrec.core.hashing import hash_strings
from allmrec.core.storage import Storage
from allmrec.data.catalogue import UNTITLED, display_titles, item_texts

_WORDS = ("item_id", "text_hash", "title", "description")


def text_keys(items: Storage) -> np.ndarray:
    """What the cache finds the texts of the stored `items` by: uint64 (N,); holds one file."""
    parts = (part.column("text_hash") for part in read_parts(items, ["text_hash"]))
    return np.concatenate([np.zeros(0, np.uint64), *map(hash_strings, parts)])


@dataclass
class ItemTexts:
    """Reads rows from the files that have them, and keeps the last file that it read: most rows come in its order."""

    storage: Storage
    manifest: Manifest
    _last: tuple[str, pa.Table] | None = field(default=None, init=False, repr=False)

    def keys(self, rows: np.ndarray) -> pa.Table:
        """item_id and text_hash of rows, in their order."""
        return self._rows(rows).select(["item_id", "text_hash"])

    def texts(self, rows: np.ndarray) -> pa.Table:
        """item_id, text_hash and text, which the encoder reads, of rows, in their order."""
        table = self._rows(rows)
        text = item_texts(table.column("title"), table.column("description"))
        return table.select(["item_id", "text_hash"]).append_column("text", text)

    def numbers(self, file: int) -> pa.Table:
        """What embedding is planned by, of every row of a file: `key` of the text, its `length`, and what it lacks."""
        table = self._file([*self.manifest.files][file])
        title, description = table.column("title"), table.column("description")
        return pa.table(
            {
                "key": hash_strings(table.column("text_hash")),
                "length": pc.utf8_length(item_texts(title, description)).cast(pa.int32()),
                "untitled": pc.equal(display_titles(title), UNTITLED),
                "undescribed": pc.is_null(description),
            }
        )

    def _rows(self, rows: np.ndarray) -> pa.Table:
        order, first, found = np.argsort(rows, kind="stable"), 0, list[pa.Table]()
        for name, entry in self.manifest.files.items():
            here = slice(*np.searchsorted(rows[order], (first, first + entry["rows"])))
            if here.start < here.stop:
                found.append(self._file(name).take(pa.array(rows[order][here] - first)))
            first += entry["rows"]
        return pa.concat_tables(found).take(pa.array(np.argsort(order)))

    def _file(self, name: str) -> pa.Table:
        if self._last is None or self._last[0] != name:
            self._last = name, read_part(self.storage, self.manifest, name, _WORDS)
        return self._last[1]
