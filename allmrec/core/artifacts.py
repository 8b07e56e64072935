"""Artifacts: a table or a model is a set of files plus `manifest.json`, written last.

The manifest names every file with its sha256, so a reader sees a whole artifact or none, damage is refused by
name, and a step knows by `fingerprint` that its work is already done. `writing` is how one is written. Files are
Parquet, safetensors (`tensor_files`) and JSON; nothing is unpickled. Knows the table schemas.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from allmrec.core.file_digests import file_sha256
from allmrec.core.hashing import fingerprint
from allmrec.core.storage import LocalStorage, Storage
from schemas import check

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What an artifact consists of, and what it was made from."""

    kind: str
    fingerprint: str  # of the algorithm, config and inputs of the step that wrote it
    files: dict[str, dict[str, Any]]  # name → sha256, size, rows
    config: dict[str, Any] = field(default_factory=dict)  # resolved
    stats: dict[str, Any] = field(default_factory=dict)  # numbers worth keeping: counts, metrics, model names
    format: int = 1

    @property
    def digest(self) -> str:
        """Identity of the content: sha256 over the files' hashes."""
        return fingerprint({name: file["sha256"] for name, file in self.files.items()})

    @property
    def rows(self) -> int:
        return sum(file.get("rows", 0) for file in self.files.values())

    def to_json(self) -> bytes:
        """The bytes of MANIFEST."""
        return json.dumps(vars(self), indent=1, default=str).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_entry(data: bytes, **more: Any) -> dict[str, Any]:
    """A file's entry for the manifest."""
    return {"sha256": sha256(data), "size": len(data), **more}


def commit(
    storage: Storage,
    kind: str,
    fingerprint: str,
    files: dict[str, dict[str, Any]],
    config: dict[str, Any] | None = None,
    stats: dict[str, Any] | None = None,
) -> Manifest:
    """Write the manifest of files that already exist, and so make the artifact visible."""
    manifest = Manifest(kind, fingerprint, dict(sorted(files.items())), config or {}, stats or {})
    storage.write(MANIFEST, manifest.to_json())
    return manifest


def invalidate(storage: Storage) -> None:
    """Take the manifest away before the files change under it."""
    storage.delete(MANIFEST)


@dataclass
class ArtifactWriter:
    """What an artifact is to consist of, while it is written; see `writing`."""

    storage: Storage
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # entries, by name
    stats: dict[str, Any] = field(default_factory=dict)

    def table(self, shard: int | str, schema: pa.Schema, table: pa.Table) -> None:
        """Write a shard of a table: its number, or the name of its file."""
        name = shard_name(shard) if isinstance(shard, int) else shard
        self.files[name] = write_shard(self.storage, schema, name, table)

    def file(self, name: str, data: bytes) -> None:
        self.storage.write(name, data)
        self.files[name] = file_entry(data)

    def add(self, entries: Mapping[str, dict[str, Any]]) -> None:
        """Files that are written already, by workers or by a copy."""
        self.files.update(entries)


@contextmanager
def writing(
    storage: Storage,
    kind: str,
    fingerprint: str,
    config: Mapping[str, Any] | None = None,
    keep_previous: bool = False,
) -> Iterator[ArtifactWriter]:
    """Write an artifact: invalid from here on, committed when the block ends, invalid still when the block raises.

    Files in the folder that the manifest does not name are deleted after the commit.

    Args:
        config: the resolved config that it is made by.
        keep_previous: the existing artifact stays valid until the commit; the block writes under new names.
    """
    if not keep_previous:
        invalidate(storage)
    out = ArtifactWriter(storage)
    yield out
    commit(storage, kind, fingerprint, out.files, dict(config or {}), out.stats)
    for entry in list(storage.list()):
        if entry.key not in {MANIFEST, *out.files}:
            storage.delete(entry.key)


def find_manifest(storage: Storage) -> Manifest | None:
    """The manifest, or None where there is no finished artifact. Raises ValueError for a damaged one."""
    return read_manifest(storage) if storage.exists(MANIFEST) else None


def read_manifest(storage: Storage) -> Manifest:
    """Raises ValueError when there is no finished artifact here."""
    try:
        content = json.loads(storage.read(MANIFEST))
    except FileNotFoundError:
        raise ValueError(f"{storage.uri}: nothing here yet; run the step that writes it first") from None
    except ValueError:
        raise ValueError(f"{storage.name(MANIFEST)} is damaged (not JSON); run its step again") from None
    if content.get("format") != 1:
        raise ValueError(f"{storage.name(MANIFEST)}: format {content.get('format')} is not known to this version")
    return Manifest(**content)


def read_file(storage: Storage, manifest: Manifest, name: str) -> bytes:
    """A file's bytes, verified here or before. Raises ValueError naming a damaged or missing file."""
    try:
        data = storage.read(name)
    except FileNotFoundError:
        raise _missing(storage, name) from None
    if not storage.is_verified and sha256(data) != manifest.files[name]["sha256"]:
        raise _damaged(storage, name)
    return data


def check_file(storage: LocalStorage, manifest: Manifest, name: str) -> Path:
    """The path of a file on a disk, verified here or before without reading it into memory. Raises as `read_file`."""
    path = storage.root / name
    if not path.is_file():
        raise _missing(storage, name)
    if not storage.is_verified and file_sha256(path) != manifest.files[name]["sha256"]:
        raise _damaged(storage, name)
    return path


def _missing(storage: Storage, name: str) -> ValueError:
    return ValueError(f"{storage.name(name)} is missing; run the step that writes it again")


def _damaged(storage: Storage, name: str) -> ValueError:
    return ValueError(f"{storage.name(name)} is damaged: its sha256 is not the manifest's")


def is_intact(storage: Storage, name: str, entry: dict[str, Any]) -> bool:
    """Whether a file exists with the content that its entry says."""
    try:
        return sha256(storage.read(name)) == entry["sha256"]
    except FileNotFoundError:
        return False


def to_parquet(table: pa.Table, dictionary: bool = True) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=dictionary)
    return buffer.getvalue()


def from_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a Parquet file, or some columns of it in that order.

    In the calling thread alone: threads of Arrow's let go of Python's bytes some time later, and one that does so while
    Python ends aborts the process.
    """
    table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(columns and [*columns], use_threads=False)
    return table if columns is None else table.select([*columns])


def write_shard(
    storage: Storage,
    schema: pa.Schema,
    name: str,
    table: pa.Table,
    before: dict[str, Any] | None = None,
    dictionary: bool = True,
) -> dict[str, Any]:
    """Write one Parquet file of a table; returns its entry for the manifest. Rewriting it is idempotent.

    Args:
        before: the entry of the existing file; one of the same content, undamaged, is kept.
        dictionary: whether values repeat so much that dictionaries of them are worth building.
    """
    data = to_parquet(check(table, schema), dictionary)
    entry = file_entry(data, rows=table.num_rows)
    if entry != before or not is_intact(storage, name, entry):
        storage.write(name, data)
    return entry


def shard_name(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def read_table(storage: Storage, shards: Sequence[int] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """A table, or the given shards or columns of it. Raises ValueError naming what is missing or damaged."""
    manifest = read_manifest(storage)
    names = manifest.files if shards is None else [shard_name(shard) for shard in shards]
    return pa.concat_tables([read_part(storage, manifest, name, columns) for name in names])


def read_parts(storage: Storage, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The files of a table one after the other, for what needs no two at once."""
    manifest = read_manifest(storage)
    return (read_part(storage, manifest, name, columns) for name in manifest.files)


def read_rows(storage: Storage, manifest: Manifest, rows: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
    """Some rows of a table, ascending, counted over its files: reads those that have some, one at a time."""
    first, found = 0, list[pa.Table]()
    for name, entry in manifest.files.items():
        here = rows[slice(*np.searchsorted(rows, (first, first + entry["rows"])))]
        if len(here) or not found:
            found.append(read_part(storage, manifest, name, columns).take(pa.array(here - first)))
        first += entry["rows"]
    return pa.concat_tables(found)


def read_part(storage: Storage, manifest: Manifest, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One Parquet file of an artifact, verified. Raises ValueError naming a damaged or missing file."""
    return from_parquet(read_file(storage, manifest, name), columns)
