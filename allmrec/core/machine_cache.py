"""Local copies of stored content: one process fills a folder, and all processes of the machine read it.

    ~/.cache/allmrec/<kind>/<key>/         complete, or absent
    ~/.cache/allmrec/<kind>/<key>.draft/   being filled; the next process deletes what a killed one left
    ~/.cache/allmrec/<kind>/<key>.lock     held while filling; its modification time is the folder's last use

Knows nothing about the content. A key is derived from the content, so a folder is never out of date.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allmrec.core.file_digests import file_sha256

CACHE = Path("~/.cache/allmrec")
TABLES, _FILE = "tables", "data"  # the kind of `machine_file`, and the file in a folder of it
_KEPT_DAYS = 7  # such a file that no process has asked for since
_DAY = 86_400


def filled_folder(kind: str, key: str, fill: Callable[[Path], Any], kept_days: float | None = None) -> Path:
    """The folder of a key. `fill` writes its files unless they exist; other processes that need it wait.

    Args:
        kept_days: folders of the kind that were not used for so long are deleted when another one is filled.
    """
    folder = CACHE.expanduser() / kind / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _with_suffix(folder, ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(lock.fileno())
        if not folder.exists():
            draft = _with_suffix(folder, ".draft")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            fill(draft)
            if kept_days is not None:
                for unused in unused_folders(kind, kept_days):
                    delete_unused(unused, kept_days)
            draft.rename(folder)
    return folder


def machine_file(sha256: str, fill: Callable[[Path], Any]) -> Path:
    """The machine's file of that content, which the first process writes by `fill(path)`.

    Raises:
        ValueError: it is damaged.
    """
    path = filled_folder(TABLES, sha256, lambda draft: fill(draft / _FILE), _KEPT_DAYS) / _FILE
    if file_sha256(path) != sha256:
        raise ValueError(f"{path} is damaged: its sha256 is not its folder's name; delete the folder and start again")
    return path


def unused_folders(kind: str, days: float) -> list[Path]:
    """Folders of a kind that were last used more than `days` days ago."""
    folders = (lock.with_suffix("") for lock in (CACHE.expanduser() / kind).glob("*.lock"))
    return sorted(folder for folder in folders if folder.exists() and _is_unused(folder, days))


def delete_unused(folder: Path, days: float) -> None:
    """Delete a folder, unless a process has used it since it was listed. Processes with its files open keep them."""
    with _with_suffix(folder, ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists() and _is_unused(folder, days):  # another process may have deleted it
            shutil.rmtree(folder)


def _is_unused(folder: Path, days: float) -> bool:
    return _with_suffix(folder, ".lock").stat().st_mtime < time.time() - days * _DAY


def _with_suffix(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)
