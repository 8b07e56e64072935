"""The catalogue's ids by item_index, and the lookup of them, as the passes over the log read them."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.hashing import hash_strings
from allmrec.core.mapped_columns import MappedColumns
from allmrec.core.storage import Storage
from allmrec.data.sources.cells import as_encoded_ids


@dataclass(frozen=True)
class ItemLookup:
    """Item ids → item_index, made once for all batches. By sorted hashes, which are confirmed by the ids."""

    item_ids: pa.Array  # string (n,), the catalogue's by item_index - 1, each once
    hashes: np.ndarray  # uint64 (n,), ascending
    order: np.ndarray  # int32 (n,): item_index - 1 of each

    @classmethod
    def of(cls, item_ids: pa.Array) -> "ItemLookup":
        hashes = hash_strings(item_ids)
        order = hashes.argsort()
        hashes = hashes[order]
        assert (hashes[1:] != hashes[:-1]).all(), "two ids of one hash are not found in this universe"
        return cls(item_ids, hashes, order.astype(np.int32))

    def find(self, ids: pa.ChunkedArray) -> pa.ChunkedArray:
        """The item_index of each id, int32; null where it is none of the catalogue."""
        return pa.chunked_array([self._find(chunk) for chunk in as_encoded_ids(ids).chunks], pa.int32())

    def _find(self, ids: pa.DictionaryArray) -> pa.Array:
        values = ids.dictionary.fill_null("")
        at = np.searchsorted(self.hashes, hash_strings(values)).clip(max=len(self.hashes) - 1)
        index = pa.array(self.order[at])
        known = pc.equal(self.item_ids.take(index), values)
        return pc.if_else(known, pc.add(index, 1), None).cast(pa.int32()).take(ids.indices)


@dataclass(frozen=True)
class ItemIds:
    """The ids of n items in a draft, with their lookup: tasks carry its name, and workers map it."""

    columns: MappedColumns

    @classmethod
    def write(cls, drafts: Storage, lookup: ItemLookup) -> "ItemIds":
        columns = {"item_id": lookup.item_ids, "hash": lookup.hashes, "order": lookup.order}
        return cls(MappedColumns.write(drafts, "ids.arrow", pa.table(columns)))

    def __len__(self) -> int:
        return self.columns.rows

    def read(self) -> pa.Array:
        """string (n,), by item_index - 1."""
        return self.columns.read().column("item_id").chunk(0)

    def lookup(self) -> ItemLookup:
        table = self.columns.read()
        return ItemLookup(self.read(), *(table.column(name).to_numpy() for name in ("hash", "order")))
