"""Which items a model was trained on, and how its rows are found again when the catalogue has changed.

`prepare` keeps the indices of known items where it can, and numbers all of them again where it must (a file of the log
was replaced). Nothing that outlives a preparation may rely on that: items are found by their ids.

Dimensions: I = n + 1 items of a table, entry 0 is padding
"""

import hashlib
from collections.abc import Iterable, Sequence
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import read_manifest, read_part, read_parts, read_table, write_shard
from allmrec.core.columns import take
from allmrec.core.hashing import hash_strings
from allmrec.core.storage import Storage
from allmrec.data.catalogue import in_order, parts_in_order
from schemas import trained_items

NAME = "items.parquet"  # in the artifact of a model
_BLOCK_BYTES = 1 << 20  # hashed at once


def write_trained_items(model: Storage, items: Storage) -> dict[str, dict[str, Any]]:
    """Write into a model's folder which items it was trained on: those of the prepared `items` table.

    Comes after the weights, whose writing makes the artifact invalid.

    Returns:
        the file's entry for the manifest.
    """
    table = in_order(read_table(items, columns=["item_index", *trained_items.SCHEMA.names]))
    return {NAME: write_shard(model, trained_items.SCHEMA, NAME, table)}


def read_trained_items(model: Storage, columns: Sequence[str] | None = None) -> pa.Table:
    """All columns by default. Raises ValueError where the model does not say, or its file is missing or damaged."""
    manifest = read_manifest(model)
    if NAME not in manifest.files:
        raise ValueError(f"{model.uri} does not say which items it was trained on; run the step that writes it again")
    return read_part(model, manifest, NAME, columns)


def check_trained_on(model: Storage, items: Storage) -> None:
    """Raises ValueError unless the model was trained on the items of the prepared table, under the same indices."""
    if ids_digest(read_trained_items(model, ["item_id"])) != stored_ids_digest(items):
        raise ValueError(f"{model.uri} was trained on other items than those that are prepared; train it again first")


def indices_in(ids: pa.ChunkedArray, table: pa.Table) -> np.ndarray:
    """The index that each of the ids has in a table ordered by item_index: int64 (I,); 0 for padding and no index."""
    return np.append(0, _rows(ids, table) + 1)


def column_of(ids: pa.ChunkedArray, table: pa.Table, name: str) -> pa.ChunkedArray:
    """What a table says of each of the ids; null where it does not have it."""
    return take(table.column(name), _rows(ids, table))


def with_counts(own: pa.Table, items: pa.Table) -> pa.Table:
    """Columns of one `items` table, with another's availability, categories and counts by id.

    What `items` does not have is not available.
    """
    ids = own.column("item_id")
    known = pc.is_in(ids, value_set=items.column("item_id"))
    available = pc.if_else(known, column_of(ids, items, "available"), False)  # null counts as available
    return pa.table(
        {
            **{name: own.column(name) for name in own.column_names},
            **counts_of(ids, items),
            "categories": column_of(ids, items, "categories"),
            "available": available,
        }
    )


def counts_of(ids: pa.ChunkedArray, table: pa.Table) -> dict[str, pa.ChunkedArray]:
    """The columns popularity and interactions of the ids; 0 where the table does not have one."""
    return {name: pc.fill_null(column_of(ids, table, name), 0) for name in ("popularity", "interactions")}


def ids_digest(items: pa.Table) -> str:
    """Identity of the indices: which id has which, in a table ordered by item_index."""
    return _ids_digest([items])


def stored_ids_digest(items: Storage) -> str:
    """As `ids_digest`, of the prepared `items` table; holds the ids of one file."""
    return _ids_digest(parts_in_order(items, ["item_id"]))


def words_digest(items: Storage) -> str:
    """Identity of a stored catalogue: ids by index, titles and texts; neither counts nor what is available.

    Holds the words of one file, which is read once: hashes are in the digest column by column, and until their turn
    comes on the disk.
    """
    digest = hashlib.sha256()
    with TemporaryFile() as titles, TemporaryFile() as texts:
        for part in read_parts(items, ["item_id", "title", "text_hash"]):
            hashes = [hash_strings(pc.fill_null(column, "")) for column in part.columns]
            for write, column in zip((digest.update, titles.write, texts.write), hashes, strict=True):
                write(column.data)
        for held in (titles, texts):
            held.seek(0)
            while block := held.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _ids_digest(tables: Iterable[pa.Table]) -> str:
    digest = hashlib.sha256()
    for table in tables:
        digest.update(hash_strings(table.column("item_id")).data)
    return digest.hexdigest()


def _rows(ids: pa.ChunkedArray, table: pa.Table) -> np.ndarray:
    """The row of each id in a table, int64 (N,); -1 where it has none."""
    return pc.fill_null(pc.index_in(ids, value_set=table.column("item_id")), -1).to_numpy().astype(np.int64)
