"""Embeddings by text: what an encoder made of a text is kept, whichever items have it in this run.

A cache holds immutable Parquet files of one encoder, each named by its own sha256 and written whole or not at all, so
whatever a killed run had finished counts in the next one. Files may be deleted: that costs encoding their texts again.
Knows hashes of texts and vectors; neither items nor encoders.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from allmrec.core.artifacts import from_parquet, sha256, to_parquet
from allmrec.core.hashing import fingerprint, hash_strings
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace

_READERS = 16  # files whose hashes are read at once


@dataclass(frozen=True)
class Index:
    """Which texts a cache holds, T of them, and where. Texts are found by 64-bit keys of their hashes."""

    files: tuple[str, ...]
    keys: np.ndarray  # uint64 (T,), ascending
    file: np.ndarray  # int32 (T,): position in `files`; of several that hold a text the first one comes first
    row: np.ndarray  # int32 (T,): of that file

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """File and row of each text, int32 (N,) twice; file -1: it is not there.

        Args:
            keys: uint64 (N,), `hash_strings` of the texts' hashes.
        """
        at = np.searchsorted(self.keys, keys)
        found = np.append(self.keys, np.uint64(0))[at] == keys
        found &= at < len(self.keys)
        # One entry behind the last, which is what -1 reads.
        at = np.where(found, at, -1)
        return np.append(self.file, np.int32(-1))[at], np.append(self.row, np.int32(-1))[at]


@dataclass(frozen=True)
class TextCache:
    storage: Storage

    @classmethod
    def of(cls, root: Storage, encoder: str) -> "TextCache":
        """The cache of one encoder, by its identity."""
        return cls(Workspace(root).text_cache.at(fingerprint(encoder)[:16]))

    def write(self, hashes: pa.Array | pa.ChunkedArray, embeddings: pa.Array) -> str:
        """Keep the embeddings (lists of a fixed size) of texts; returns the file's name."""
        data = to_parquet(pa.table({"text_hash": hashes, "embedding": embeddings}))
        name = f"{sha256(data)}.parquet"
        self.storage.write(name, data)
        return name

    def clear(self) -> None:
        for entry in list(self.storage.list()):
            self.storage.delete(entry.key)

    def read(self, name: str) -> pa.Table:
        """A file's text_hash and embedding. Raises ValueError if it is damaged."""
        data = self.storage.read(name)
        if not _is_sound(name, data):
            raise ValueError(f"{self.storage.name(name)} is damaged; delete it, and its texts are encoded again")
        return from_parquet(data)

    def index(self, names: Sequence[str] | None = None) -> Index:
        """Of the named files, or all; those that are not Parquet are left out. Reads no embedding."""
        if names is None:
            names = [entry.key for entry in self.storage.list()]
        with ThreadPoolExecutor(_READERS) as pool:
            read = zip(names, pool.map(self._keys, names), strict=True)
            found = [(name, keys) for name, keys in read if keys is not None]
        lengths = [len(keys) for _, keys in found]
        keys = np.concatenate([np.zeros(0, np.uint64), *(keys for _, keys in found)])
        row = np.concatenate([np.zeros(0, np.int32), *(np.arange(length, dtype=np.int32) for length in lengths)])
        order, file = np.argsort(keys, kind="stable"), np.repeat(np.arange(len(found), dtype=np.int32), lengths)
        return Index(tuple(name for name, _ in found), keys[order], file[order], row[order])

    def _keys(self, name: str) -> np.ndarray | None:
        filesystem, root = self.storage.arrow()
        try:
            table = pq.read_table(f"{root}/{name}", columns=["text_hash"], filesystem=filesystem)
            return hash_strings(table.column("text_hash"))
        except (pa.ArrowException, OSError):
            if _is_sound(name, self.storage.read(name)):
                raise
            return None  # as if it were not there


def _is_sound(name: str, data: bytes) -> bool:
    return name == f"{sha256(data)}.parquet"
