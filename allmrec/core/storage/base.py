"""What a storage does: bytes under keys, behind the few operations that commits need.

Every write is one atomic put; `create` is put-if-absent, the only primitive that the publish protocol trusts
(`If-None-Match: *` on a plain PUT; never a multipart upload, never `If-Match`: stores differ on both).
Knows nothing of tables or models, nor where bytes go: `local` and `s3` do.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from allmrec.core.settings import Section


class S3Config(Section):
    """How to reach an S3-compatible store. Credentials come from the environment, as boto3 finds them."""

    endpoint_url: str | None = None  # of a store other than AWS, perhaps with a path; null: AWS
    region: str | None = None  # null: the environment's
    addressing_style: Literal["auto", "path", "virtual"] = "auto"  # bucket in the path or in the host name
    # when_supported adds AWS's newer checksums, which other stores may refuse.
    checksums: Literal["when_required", "when_supported"] = "when_required"
    encryption: Literal["AES256", "aws:kms"] | None = None  # of written objects; null: the bucket's default
    kms_key_id: str | None = None  # of encryption aws:kms; null: the account's default key
    connect_timeout_s: float = Field(10, gt=0)  # of one attempt
    read_timeout_s: float = Field(60, gt=0)  # of one attempt
    max_attempts: int = Field(8, ge=1)  # per request, with growing random waits; longer ones after SlowDown

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
    is_verified = False  # its files were compared with their digests: who reads one need not do it again

    @abstractmethod
    def at(self, key: str) -> "Storage":
        """The storage rooted at `key` below this one."""

    @abstractmethod
    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """The object's bytes, or those at `start ... stop - 1` of them. Raises FileNotFoundError."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Put the object, replacing an existing one. Readers see the old bytes or the new, never a mixture."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Put the object if it does not exist. Of several writers exactly one gets True."""

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
    if "@" in bucket:
        raise ValueError(f"{uri!r}: credentials come from the environment; write it as s3://bucket/prefix")
    return bucket, key.removesuffix("/")


def is_plain_key(key: str) -> bool:
    """Whether all clients take an S3 key unchanged."""
    return key == "" or not {"", ".", ".."} & set(key.split("/"))
