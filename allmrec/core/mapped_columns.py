"""Columns that workers read from an Arrow file: what is as long as the catalogue travels by its name, with no task.

A file on a disk is mapped itself, and one of a store as a copy in the machine's cache; its pages are in the
machine's page cache once, for all processes. Files are replaced and never written into.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from allmrec.core.artifacts import sha256
from allmrec.core.machine_cache import machine_file
from allmrec.core.storage import LocalStorage, Storage

_KEPT = 8  # tables that a process keeps open


@dataclass(frozen=True)
class MappedColumns:
    """A table in a file of the storage; equal to those of the same content."""

    storage: Storage = field(compare=False)
    name: str
    sha256: str
    rows: int

    @classmethod
    def write(cls, storage: Storage, name: str, table: pa.Table) -> "MappedColumns":
        """Write the table; columns come back in one chunk each."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:  # not compressed: it is to be mapped
            writer.write_table(table.combine_chunks())
        data = sink.getvalue().to_pybytes()
        storage.write(name, data)
        return cls(storage, name, sha256(data), len(table))

    def read(self) -> pa.Table:
        """The table, mapped. Its numbers cannot be written to."""
        return _mapped(self._path(), self.sha256)

    def _path(self) -> Path:
        if isinstance(self.storage, LocalStorage):
            return self.storage.root / self.name
        return machine_file(self.sha256, lambda path: path.write_bytes(self.storage.read(self.name)))


@lru_cache(_KEPT)
def _mapped(path: Path, sha256: str) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
