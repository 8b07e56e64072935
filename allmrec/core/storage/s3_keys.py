"""S3 objects of any key to read as pyarrow's files: its own file system takes no key with an empty part, `.` or `..`.

Knows keys and bytes; `allmrec.data.sources.files` says which keys come here. Nothing is written.
"""

import io
from functools import lru_cache
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystemHandler, FileType, PyFileSystem

from allmrec.core.storage.base import S3Config
from allmrec.core.storage.s3 import Connection, S3Storage

_BLOCK = 8 << 20  # bytes asked for at once


@lru_cache
def any_keys(bucket: str, s3: S3Config) -> PyFileSystem:
    """A file system of paths `bucket/key`, with keys as they are."""
    return PyFileSystem(_Keys(S3Storage(bucket, "", Connection(s3))))


class _Keys(FileSystemHandler):
    def __init__(self, bucket: S3Storage):
        self.bucket = bucket

    def get_type_name(self) -> str:
        return "s3-keys"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        found: dict[str, FileInfo] = {}
        for item in self._below(selector.base_dir):
            path = f"{self.bucket.bucket}/{item['Key']}"
            parts = path[len(selector.base_dir) + 1 :].split("/")
            for depth in range(1, len(parts) if selector.recursive else min(len(parts), 2)):
                folder = f"{selector.base_dir}/{'/'.join(parts[:depth])}"
                found.setdefault(folder, FileInfo(folder, FileType.Directory))
            if parts[-1] and (selector.recursive or len(parts) == 1):
                found[path] = _file(path, item["Size"], item["LastModified"])
        return list(found.values())

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(io.BufferedReader(_Object(self.bucket, self._key(path)), _BLOCK), mode="r")

    open_input_stream = open_input_file

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("input is only read")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = open_output_stream = open_append_stream = _refuse

    def _key(self, path: str) -> str:
        return path.removeprefix(f"{self.bucket.bucket}/")

    def _info(self, path: str) -> FileInfo:
        head = self.bucket.head(self._key(path))
        if head is not None:
            return _file(path, head["ContentLength"], head["LastModified"])
        return FileInfo(path, FileType.Directory if any(self._below(path)) else FileType.NotFound)

    def _below(self, path: str) -> Any:
        return self.bucket.items(f"{self._key(path)}/")


class _Object(io.RawIOBase):
    """An object's bytes, by ranges."""

    def __init__(self, bucket: S3Storage, key: str):
        head = bucket.head(key)
        if head is None:
            raise FileNotFoundError(bucket.name(key))
        self.bucket, self.key, self.size, self.at = bucket, key, head["ContentLength"], 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        stop = min(self.at + len(buffer), self.size)
        if stop <= self.at:
            return 0
        data = self.bucket.read(self.key, self.at, stop)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def _file(path: str, size: int, modified: Any) -> FileInfo:
    return FileInfo(path, FileType.File, size=size, mtime=modified)
