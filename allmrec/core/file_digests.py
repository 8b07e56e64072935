"""sha256 of large local files, computed once as long as a file does not change.

A digest is kept by path, size and times of the last change, in the process and in a small JSON file of the user. That
file only saves time: without it, or where it cannot be read or written, the files are read again. Knows nothing of
what the files hold.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

_CACHE = Path("~/.cache/allmrec/file_digests.json")
_SMALL_BYTES = 2**20  # read again at once
_SETTLED_NS = 2 * 10**9  # a later change gets another time on every file system

_known: dict[str, list[int | str]] = {}  # path → size, times of change, sha256


def file_sha256(path: Path) -> str:
    """sha256 of a local file, in hexadecimal; memory is bounded whatever the file's size."""
    stamp = _stamp(path)
    if stamp[0] < _SMALL_BYTES:
        return _read(path)
    key = str(path.resolve())
    if _known.get(key, [])[:-1] != stamp:
        _known.update(_stored())
    if _known.get(key, [])[:-1] == stamp:
        return str(_known[key][-1])
    digest = _read(path)
    if _stamp(path) == stamp and time.time_ns() - max(stamp[1:]) >= _SETTLED_NS:
        _known[key] = [*stamp, digest]
        _store(key)
    return digest


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> list[int]:
    """Size, and times of the last change of the content and of the inode, which no copy takes along."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _stored() -> dict[str, list[int | str]]:
    try:
        found = json.loads(_CACHE.expanduser().read_bytes())
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a user without a home
        return {}
    return found if isinstance(found, dict) and all(_is_entry(entry) for entry in found.values()) else {}


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and [type(value) for value in entry] == [int, int, int, str]


def _store(key: str) -> None:
    """Add an entry to the file, and drop those of files that are gone. Of two writers at once, one may lose its own."""
    kept = {path: entry for path, entry in _stored().items() if os.path.exists(path)} | {key: _known[key]}
    with suppress(OSError, RuntimeError):
        target = _CACHE.expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=target.parent, delete=False) as draft:
            json.dump(kept, draft)
        os.replace(draft.name, target)
