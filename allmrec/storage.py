"""Bytes on a local disk or on S3, behind the few operations that commits need.

Every write is one atomic put; `create` is put-if-absent, the only primitive that the publish protocol trusts
(`If-None-Match: *` on a plain PUT; never a multipart upload, never `If-Match`: stores differ on both).
Here: the interface, a local folder, and what is common; `allmrec.s3` has the S3 side. Knows nothing of tables or
models.
"""

import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from allmrec.config import Section


class S3Config(Section):
    """How to reach an S3-compatible store. Credentials come from the environment, as boto3 finds them."""

    endpoint_url: str | None = None
    region: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    # Stores other than AWS may refuse the newer default checksums.
    checksums: Literal["when_required", "when_supported"] = "when_required"
    encryption: Literal["AES256", "aws:kms"] | None = None  # of what is written; null: as the bucket is set up
    kms_key_id: str | None = None  # of aws:kms; null: the account's default key
    connect_timeout_s: float = Field(10, gt=0)
    read_timeout_s: float = Field(60, gt=0)
    max_attempts: int = Field(8, ge=1)  # at a request; waits grow and are random, longer where the store says SlowDown

    @model_validator(mode="after")
    def _key_has_its_use(self) -> "S3Config":
        if self.kms_key_id is not None and self.encryption != "aws:kms":
            raise ValueError("kms_key_id is a key of encryption aws:kms; set that, or leave the key out")
        return self


@dataclass(frozen=True)
class Entry:
    """An object of a listing: its key below the storage's root, and its size in bytes."""

    key: str
    size: int


class Storage(ABC):
    """A root (a folder or an S3 prefix) whose objects are named by `/`-separated keys."""

    uri: str

    @abstractmethod
    def at(self, key: str) -> "Storage":
        """The storage rooted at `key` below this one."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The object's bytes. Raises FileNotFoundError."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Put the object, replacing one that is there. Readers see the old bytes or the new, never a mixture."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Put the object if none is there. Of several writers exactly one gets True."""

    @abstractmethod
    def copy(self, source: str, target: str) -> None:
        """Copy within this storage, replacing `target`, without moving the bytes through this process on S3."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All objects whose key starts with `prefix`, at any depth, ordered by key."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; nothing happens if there is none."""

    @abstractmethod
    def exists(self, key: str) -> bool: ...

    @abstractmethod
    def arrow(self) -> tuple[Any, str]:
        """(pyarrow FileSystem, path of this root in it), for readers that stream."""

    def name(self, key: str) -> str:
        """The full URI of a key, for messages."""
        return f"{self.uri.rstrip('/')}/{key}"

    def probe_create(self) -> None:
        """Prove that `create` lets one writer win. Raises ValueError for a store that ignores the condition."""
        key = f"_probe/{secrets.token_hex(8)}"
        try:
            if not (self.create(key, b"first") and not self.create(key, b"second") and self.read(key) == b"first"):
                raise ValueError(
                    f"{self.uri}: the store does not honour put-if-absent (If-None-Match: *), so two runs could "
                    "overwrite each other; publish to a store that does (AWS S3, Ceph, MinIO)"
                )
        finally:
            self.delete(key)


def open_storage(uri: str, s3: S3Config | None = None) -> Storage:
    """Open a local folder (a path or `file://`) or an S3 prefix (`s3://bucket/prefix`).

    Paths and keys are taken as they stand: `#`, `?`, `%` and blanks are characters like any other.

    Raises:
        ValueError: no bucket, another scheme, or a prefix with an empty part, `.` or `..`, which many tools change.
    """
    if not uri.startswith("s3://"):
        return LocalStorage(local_path(uri))
    from allmrec.s3 import Connection, S3Storage

    bucket, prefix = s3_key(uri)
    if not is_plain_key(prefix):
        raise ValueError(f"{uri!r} has an empty part (//), '.' or '..'; name a prefix without them")
    return S3Storage(bucket, prefix, Connection(s3 or S3Config()))


def local_path(uri: str) -> Path:
    """Raises ValueError for a scheme other than `file:`."""
    if uri.startswith("file:/"):
        return Path("/" + uri.removeprefix("file:").lstrip("/"))
    scheme, separator, _ = uri.partition("://")
    if separator:
        raise ValueError(f"{uri!r}: unknown scheme {scheme!r}; use s3://, file:// or a path")
    return Path(uri)


def s3_key(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI, without the slash at its end."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise ValueError(f"{uri!r} names no bucket: write it as s3://bucket/prefix")
    return bucket, key.removesuffix("/")


def is_plain_key(key: str) -> bool:
    """Whether all clients take an S3 key as it stands."""
    return key == "" or not {"", ".", ".."} & set(key.split("/"))


class LocalStorage(Storage):
    """A folder. Atomicity by rename, put-if-absent by hard link."""

    def __init__(self, root: Path):
        self.root = root.absolute()
        self.uri = str(self.root)

    def at(self, key: str) -> "LocalStorage":
        return LocalStorage(self.root / key)

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        with self._draft(key) as draft:
            _put(draft, data)
            draft.replace(self.root / key)

    def create(self, key: str, data: bytes) -> bool:
        if self.exists(key):
            return False
        with self._draft(key) as draft:
            _put(draft, data)
            try:
                os.link(draft, self.root / key)
            except FileExistsError:
                return False
            return True

    def copy(self, source: str, target: str) -> None:
        with self._draft(target) as draft:
            shutil.copyfile(self.root / source, draft)
            draft.replace(self.root / target)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder = prefix.rpartition("/")[0]
        yield from sorted(
            (entry for entry in self._walk(folder) if entry.key.startswith(prefix)), key=lambda entry: entry.key
        )

    def delete(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def arrow(self) -> tuple[Any, str]:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), str(self.root)

    def _walk(self, folder: str) -> Iterator[Entry]:
        for parent, _, names in os.walk(self.root / folder):
            for name in names:
                path = Path(parent, name)
                try:
                    size = path.stat().st_size
                except FileNotFoundError:  # deleted since it was listed
                    continue
                if not name.startswith(_DRAFT):
                    yield Entry(path.relative_to(self.root).as_posix(), size)

    @contextmanager
    def _draft(self, key: str) -> Iterator[Path]:
        """A name beside the key's for bytes on their way; nothing stays there."""
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{_DRAFT}{secrets.token_hex(8)}")
        try:
            yield draft
        finally:
            draft.unlink(missing_ok=True)


_DRAFT = ".draft-"


def _put(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
