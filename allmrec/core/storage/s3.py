"""The storage operations on S3 and what speaks its protocol, by boto3's core, botocore.

Knows how a store's answers become the errors that `allmrec.core.storage` promises; leaves what is stored to others.
"""

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from allmrec.core.errors import StoreUnavailable
from allmrec.core.storage.base import Entry, S3Config, Storage


class Connection:
    """One client for a storage and all below it, made when first needed: clients do not survive pickling."""

    def __init__(self, s3: S3Config):
        self.s3 = s3
        self._client: Any = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Connection, (self.s3,)

    @property
    def client(self) -> Any:
        with self._lock:
            if self._client is None:
                from botocore.config import Config

                # Without boto3's session, which would add a folder to the shared loader's for every client.
                self._client = _session().create_client(
                    "s3",
                    endpoint_url=self.s3.endpoint_url,
                    region_name=self.s3.region,
                    config=Config(
                        s3={"addressing_style": self.s3.addressing_style},
                        retries={"mode": "adaptive", "total_max_attempts": self.s3.max_attempts},
                        max_pool_connections=32,
                        connect_timeout=self.s3.connect_timeout_s,
                        read_timeout=self.s3.read_timeout_s,
                        request_checksum_calculation=self.s3.checksums,
                        response_checksum_validation=self.s3.checksums,
                    ),
                )
            return self._client


def _session() -> Any:
    """A session of botocore's, by the process's environment."""
    from botocore.session import get_session

    session = get_session()
    session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    return session


@cache
def _loader(path: str | None) -> Any:
    """What botocore knows of AWS, read once a process: it takes 0.1 s, and every task makes clients of its own."""
    from botocore.loaders import create_loader

    return create_loader(path)


class S3Storage(Storage):
    """An S3 prefix, by botocore. An object is one plain PUT, so at most 5 GB."""

    def __init__(self, bucket: str, prefix: str, connection: Connection):
        self.bucket, self.prefix, self.connection = bucket, prefix, connection
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")

    @property
    def client(self) -> Any:
        return self.connection.client

    def at(self, key: str) -> "S3Storage":
        return S3Storage(self.bucket, self._full(key.strip("/")), self.connection)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

        # botocore tries a request again, but not the reading of its answer's body.
        part = {} if stop is None else {"Range": f"bytes={start}-{stop - 1}"}
        with self._errors(key):
            for attempts_left in reversed(range(self.connection.s3.max_attempts)):
                try:
                    return self.client.get_object(**self._object(key), **part)["Body"].read()
                except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                    if not attempts_left:
                        raise
        raise AssertionError("max_attempts is at least 1")

    def write(self, key: str, data: bytes) -> None:
        with self._errors(key):
            self.client.put_object(**self._object(key), **self._encryption, Body=data)

    def create(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        # A retry after a lost answer finds our own object there; the marker tells it from another writer's.
        marker = secrets.token_hex(16)
        with self._errors(key):
            while True:
                try:
                    condition = {"IfNoneMatch": "*", "Metadata": {"writer": marker}}
                    self.client.put_object(**self._object(key), **self._encryption, **condition, Body=data)
                    return True
                except ClientError as error:
                    if _code(error) in ("PreconditionFailed", "412"):
                        return self._writer(key) == marker
                    if _code(error) not in ("ConditionalRequestConflict", "409"):  # a conflict decides nothing
                        raise

    def copy(self, source: str, target: str) -> None:
        with self._errors(source):
            self.client.copy_object(**self._object(target), **self._encryption, CopySource=self._object(source))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        skip = len(self._full(""))
        for item in self.items(prefix):
            yield Entry(item["Key"][skip:], item["Size"])

    def items(self, prefix: str) -> Iterator[dict[str, Any]]:
        """What the store says of all objects whose key starts with `prefix`, ordered by key."""
        pages = self.client.get_paginator("list_objects_v2")
        with self._errors(prefix):
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._full(prefix)):
                yield from page.get("Contents", ())

    def delete(self, key: str) -> None:
        with self._errors(key):
            self.client.delete_object(**self._object(key))

    def exists(self, key: str) -> bool:
        return self.head(key) is not None

    def arrow(self) -> tuple[Any, str]:
        from pyarrow.fs import S3FileSystem

        for name, value in checksum_environment(self.connection.s3).items():
            os.environ.setdefault(name, value)
        # Left to find it itself, pyarrow puts the bucket into the host's name.
        url = (
            self.connection.s3.endpoint_url
            or os.environ.get("AWS_ENDPOINT_URL_S3")
            or os.environ.get("AWS_ENDPOINT_URL")
        )
        filesystem = S3FileSystem(
            region=self.connection.s3.region,
            endpoint_override=url,  # whole: it may have a path
            scheme=urlsplit(url).scheme if url else None,
            force_virtual_addressing=self.connection.s3.addressing_style == "virtual",
        )
        return filesystem, f"{self.bucket}/{self.prefix}".rstrip("/")

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._full(key)}

    @property
    def _encryption(self) -> dict[str, str]:
        s3 = self.connection.s3
        wanted = {"ServerSideEncryption": s3.encryption, "SSEKMSKeyId": s3.kms_key_id}
        return {name: value for name, value in wanted.items() if value is not None}

    def _writer(self, key: str) -> str | None:
        head = self.head(key)
        return head["Metadata"].get("writer") if head else None

    def head(self, key: str) -> dict[str, Any] | None:
        """What the store says of an object; None if there is none."""
        try:
            with self._errors(key):
                return self.client.head_object(**self._object(key))
        except FileNotFoundError:
            return None

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """What users can get wrong, as one line naming the URI; a missing object as FileNotFoundError."""
        from botocore import exceptions

        try:
            yield
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
            raise ValueError(
                f"{self.name(key)}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from None
        except (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError) as error:
            raise StoreUnavailable(f"{self.name(key)}: {error}; check storage.endpoint_url") from None
        except exceptions.ParamValidationError as error:
            raise ValueError(f"{self.name(key)}: {error}") from None
        except exceptions.ClientError as error:
            code = _code(error)
            if code in ("NoSuchKey", "404"):
                raise FileNotFoundError(self.name(key)) from None
            if code == "NoSuchBucket":
                raise ValueError(f"{self.name(key)}: there is no bucket {self.bucket!r}; create it first") from None
            if code in _REFUSED:
                raise ValueError(f"{self.name(key)}: the store refuses these credentials ({code})") from None
            if code in ("NotImplemented", "501"):
                raise ValueError(f"{self.name(key)}: the store does not support this operation ({error})") from None
            if error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500:
                raise StoreUnavailable(f"{self.name(key)}: the store fails: {error}") from None
            raise


_REFUSED = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")


def _code(error: Any) -> str:
    return str(error.response["Error"]["Code"])


def checksum_environment(s3: S3Config) -> dict[str, str]:
    """`storage.checksums` for pyarrow, which takes it from the environment of its process only."""
    return {"AWS_REQUEST_CHECKSUM_CALCULATION": s3.checksums, "AWS_RESPONSE_CHECKSUM_VALIDATION": s3.checksums}


def store_environment(s3: S3Config) -> dict[str, str]:
    """The section `storage` for what opens an s3:// URI by that alone, as models are opened."""
    environment = checksum_environment(s3)
    if s3.endpoint_url:
        environment["AWS_ENDPOINT_URL"] = s3.endpoint_url
    if s3.region:
        environment["AWS_DEFAULT_REGION"] = s3.region
    return environment
