"""Bytes on a local disk or on S3. `open_storage` takes either; what both do is in `base`."""

from allmrec.core.storage.base import Entry, S3Config, Storage, is_plain_key, local_path, s3_key
from allmrec.core.storage.local import LocalStorage

__all__ = ["Entry", "LocalStorage", "S3Config", "Storage", "is_plain_key", "local_path", "open_storage", "s3_key"]


def open_storage(uri: str, s3: S3Config | None = None) -> Storage:
    """Open a local folder (a path or `file://`) or an S3 prefix (`s3://bucket/prefix`).

    Paths and keys are taken literally: `#`, `?`, `%` and blanks are characters like any other.

    Raises:
        ValueError: no bucket, another scheme, or a prefix with an empty part, `.` or `..`, which many tools change.
    """
    if not uri.startswith("s3://"):
        return LocalStorage(local_path(uri))
    from allmrec.core.storage.s3 import Connection, S3Storage

    bucket, prefix = s3_key(uri)
    if not is_plain_key(prefix):
        raise ValueError(f"{uri!r} has an empty part (//), '.' or '..'; name a prefix without them")
    return S3Storage(bucket, prefix, Connection(s3 or S3Config()))
