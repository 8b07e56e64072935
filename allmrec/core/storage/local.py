"""The storage operations on a local folder."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from allmrec.core.storage.base import Entry, Storage

_DRAFT = ".draft-"


class LocalStorage(Storage):
    """A folder. Atomicity by rename, put-if-absent by hard link."""

    def __init__(self, root: Path):
        self.root = root.absolute()
        self.uri = str(self.root)

    def at(self, key: str) -> "LocalStorage":
        return type(self)(self.root / key)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        with (self.root / key).open("rb") as file:
            file.seek(start)
            return file.read(-1 if stop is None else stop - start)

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


class VerifiedFolder(LocalStorage):
    """A folder whose files were compared with their digests, and do not change."""

    is_verified = True


def _put(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
