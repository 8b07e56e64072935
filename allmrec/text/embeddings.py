"""The table `item_text_embeddings` as what models train on.

Dimensions: N = n + 1 items (0 is padding), M rows, S of the text encoder
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import torch

from allmrec.core.artifacts import read_manifest, read_part, read_parts, read_table
from allmrec.core.hashing import hash_strings
from allmrec.core.rows import from_blocks, is_large
from allmrec.core.storage import Storage
from allmrec.data.catalogue import parts_in_order

_KEY = ["item_id", "text_hash"]


def read_texts(storage: Storage) -> torch.Tensor:
    """Q_NS of the `item_text_embeddings` table, which is ordered by item_index; row 0, padding, is zeros.

    A large one is decoded into a file that the machine's processes share (`core.rows`).
    """
    manifest = read_manifest(storage)
    if not is_large(sum(entry["size"] for entry in manifest.files.values())):
        column = read_table(storage).column("embedding")
        return torch.cat([torch.zeros(1, column.type.list_size), to_tensor(column)])

    def blocks() -> Iterator[torch.Tensor]:
        for number, name in enumerate(manifest.files):
            texts_MS = to_tensor(read_part(storage, manifest, name, ["embedding"]).column("embedding"))
            if not number:
                yield texts_MS.new_zeros(1, texts_MS.shape[1])
            yield texts_MS

    return from_blocks(blocks)


def to_tensor(column: pa.ChunkedArray) -> torch.Tensor:
    """Lists of a fixed size as (M, S), chunk by chunk: pyarrow cannot combine more than 2^31 numbers."""
    width = column.type.list_size
    parts = [torch.tensor(chunk.flatten().to_numpy()).view(len(chunk), width) for chunk in column.chunks]
    return torch.cat([torch.zeros(0, width), *parts])


def check_embedded(storage: Storage, items: Storage) -> None:
    """Raises ValueError unless the embeddings are of the prepared `items` table's texts. Holds one file at a time."""
    if _keys_digest(read_parts(storage, _KEY)) != _keys_digest(parts_in_order(items, _KEY)):
        raise ValueError(f"{storage.uri} does not hold the texts of the items that are prepared; run embed first")


def _keys_digest(parts: Iterable[pa.Table]) -> str:
    """Of which text which item has, in order; however they are divided into files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.stack([hash_strings(part.column(name)) for name in _KEY], axis=1).data)
    return digest.hexdigest()
