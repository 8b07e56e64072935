"""Bytes on a local disk or on S3, behind the few operations that commits need.

Every write is one atomic put; `create` is put-if-absent, the only primitive that the publish protocol trusts
(`If-None-Match: *` on a plain PUT; never a multipart upload, never `If-Match`: stores differ on both).
Knows nothing of tables or models.
"""

import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from allmrec.config import Section


class S3Config(Section):
    """How to reach an S3-compatible store. Credentials come from the environment, as boto3 finds them."""

    endpoint_url: str | None = None
    region: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    # Stores other than AWS may refuse the newer default checksums.
    checksums: Literal["when_required", "when_supported"] = "when_required"
    connect_timeout_s: float = 10
    read_timeout_s: float = 60
    max_attempts: int = 8


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
    """Open a local folder (a path or `file://`) or an S3 prefix (`s3://bucket/prefix`)."""
    parsed = urlparse(uri)
    if parsed.scheme == "s3":
        if not parsed.netloc:
            raise ValueError(f"{uri!r} names no bucket: write it as s3://bucket/prefix")
        return S3Storage(parsed.netloc, parsed.path.strip("/"), s3 or S3Config())
    if parsed.scheme in ("", "file"):
        return LocalStorage(Path(parsed.path if parsed.scheme else uri))
    raise ValueError(f"{uri!r}: unknown scheme {parsed.scheme!r}; use s3://, file:// or a path")


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
        draft = self._draft(key, data)
        draft.replace(self.root / key)

    def create(self, key: str, data: bytes) -> bool:
        if self.exists(key):
            return False
        draft = self._draft(key, data)
        try:
            os.link(draft, self.root / key)
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def copy(self, source: str, target: str) -> None:
        draft = self._draft(target, b"")
        shutil.copyfile(self.root / source, draft)
        draft.replace(self.root / target)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder = self.root / prefix.rpartition("/")[0]
        found = (path for path in folder.rglob("*") if path.is_file() and ".draft-" not in path.name)
        entries = (Entry(path.relative_to(self.root).as_posix(), path.stat().st_size) for path in found)
        yield from sorted((e for e in entries if e.key.startswith(prefix)), key=lambda entry: entry.key)

    def delete(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def arrow(self) -> tuple[Any, str]:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), str(self.root)

    def _draft(self, key: str, data: bytes) -> Path:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".draft-{secrets.token_hex(8)}")
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return draft


class S3Storage(Storage):
    """An S3 prefix, by boto3. A client is made per process: clients do not survive pickling."""

    def __init__(self, bucket: str, prefix: str, s3: S3Config):
        self.bucket, self.prefix, self.s3 = bucket, prefix, s3
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._client: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}

    @property
    def client(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            self._client = boto3.client(
                "s3",
                endpoint_url=self.s3.endpoint_url,
                region_name=self.s3.region,
                config=Config(
                    s3={"addressing_style": self.s3.addressing_style},
                    retries={"mode": "adaptive", "max_attempts": self.s3.max_attempts},
                    connect_timeout=self.s3.connect_timeout_s,
                    read_timeout=self.s3.read_timeout_s,
                    request_checksum_calculation=self.s3.checksums,
                    response_checksum_validation=self.s3.checksums,
                ),
            )
        return self._client

    def at(self, key: str) -> "S3Storage":
        return S3Storage(self.bucket, self._full(key.strip("/")), self.s3)

    def read(self, key: str) -> bytes:
        from botocore.exceptions import ClientError

        try:
            return self.client.get_object(Bucket=self.bucket, Key=self._full(key))["Body"].read()
        except ClientError as error:
            if _code(error) in ("NoSuchKey", "404"):
                raise FileNotFoundError(self.name(key)) from None
            raise

    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=self._full(key), Body=data)

    def create(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        # A retry after a lost answer would find our own object and report a loss; the marker tells it apart.
        marker = secrets.token_hex(16)
        try:
            self.client.put_object(
                Bucket=self.bucket,
                Key=self._full(key),
                Body=data,
                IfNoneMatch="*",
                Metadata={"writer": marker},
            )
            return True
        except ClientError as error:
            if _code(error) not in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                raise
            head = self.client.head_object(Bucket=self.bucket, Key=self._full(key))
            return head["Metadata"].get("writer") == marker

    def copy(self, source: str, target: str) -> None:
        self.client.copy_object(
            Bucket=self.bucket,
            Key=self._full(target),
            CopySource={"Bucket": self.bucket, "Key": self._full(source)},
        )

    def list(self, prefix: str = "") -> Iterator[Entry]:
        pages = self.client.get_paginator("list_objects_v2")
        skip = len(self._full(""))
        for page in pages.paginate(Bucket=self.bucket, Prefix=self._full(prefix)):
            for item in page.get("Contents", ()):
                yield Entry(item["Key"][skip:], item["Size"])

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=self._full(key))

    def exists(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            self.client.head_object(Bucket=self.bucket, Key=self._full(key))
            return True
        except ClientError as error:
            if _code(error) in ("NoSuchKey", "404"):
                return False
            raise

    def arrow(self) -> tuple[Any, str]:
        from pyarrow.fs import S3FileSystem

        endpoint = urlparse(self.s3.endpoint_url) if self.s3.endpoint_url else None
        filesystem = S3FileSystem(
            region=self.s3.region,
            endpoint_override=endpoint.netloc if endpoint else None,
            scheme=endpoint.scheme if endpoint else None,
            force_virtual_addressing=self.s3.addressing_style == "virtual",
        )
        return filesystem, f"{self.bucket}/{self.prefix}".rstrip("/")

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key


def _code(error: Any) -> str:
    return str(error.response["Error"]["Code"])
