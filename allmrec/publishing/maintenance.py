"""What becomes of runs later: old dates expire, what was never published is discarded, what was replaced is deleted.

Each date is changed under its lease, and in an order that never misleads a reader who follows the log, `latest.json`
or `_SUCCESS`: what names files is changed before the files go. All may be killed anywhere and started again; a second
time there is nothing left to do. The newest log entry always names files that exist.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

from allmrec.core.commit_log import find_json, newest_entry
from allmrec.core.storage import Storage
from allmrec.publishing.lease import Lease
from allmrec.publishing.log import (
    manifest_key,
    published_dates,
    run_key,
    symlinks_key,
    work_folder,
)
from allmrec.publishing.vectors import named_files

TRIALS = "_trial"  # the folder of trial runs, with the same layout
INPUTS = "_inputs/"  # what rows and vectors were made of, by run below the date
_BESIDE = ("_symlink_format_manifest/", INPUTS, "_reports/")  # what else a run leaves, by date
_PARALLEL = 8  # files at a time


def dates(storage: Storage) -> list[date]:
    """Dates with a published run, or with work in progress or what is left of it; oldest first."""
    return [
        found for found, keys in _by_date(storage, "_runs/", "").items() if not all("/lease/" in key for key in keys)
    ]


def expired(storage: Storage, keep: int) -> list[date]:
    """The dates before the `keep` newest published ones, and before the current run's; oldest first.

    Every date of which anything is left counts, also if it was never published.
    """
    newest = newest_entry(storage)
    if newest is None:
        return []
    first_kept = min([*published_dates(storage)[-keep:], date.fromisoformat(newest["run_date"])])
    return [run_date for run_date in _by_date(storage, "_runs/", "", *_BESIDE) if run_date < first_kept]


def expire(storage: Storage, run_date: date, lease: Lease, mirror: Callable[[], None] = lambda: None) -> None:
    """Delete a date: first what names its files, at last its lease, which must be this date's.

    Args:
        mirror: brings a table up to date that names the files as well (`allmrec.publishing.iceberg`).
    """
    newest = newest_entry(storage)
    if newest is not None and newest["run_date"] == str(run_date):
        raise ValueError(f"{storage.uri}: the run of {run_date} is the current one; roll back to another date first")
    lease.check()
    storage.delete(manifest_key(run_date))
    mirror()
    delete_rest(storage, run_date, None)
    lease.erase()


def unfinished(storage: Storage, run_date: date) -> bool:
    """Whether a run of the date was begun and not published; perhaps beside a published one, which it replaces."""
    manifest, begun = find_json(storage, manifest_key(run_date)), find_json(storage, run_key(run_date))
    if manifest is None:
        return run_date in dates(storage)
    return begun is not None and begun["run_id"] != manifest["run_id"]


def discard(storage: Storage, run_date: date, lease: Lease) -> None:
    """Delete what was begun for a date and never published. The lease must be this date's.

    Raises:
        ValueError: there is nothing to discard.
    """
    manifest = find_json(storage, manifest_key(run_date))
    if not unfinished(storage, run_date):
        if manifest is not None:
            raise ValueError(
                f"{storage.uri}: {run_date} is published, as run {manifest['run_id']}; `allmrec nightly --replace` "
                "makes it again, and `allmrec recommendations rollback` returns to an earlier date"
            )
        lease.erase()
        raise ValueError(f"{storage.uri}: no run of {run_date} was begun")
    tidy(storage, run_date, lease)
    if manifest is None:
        lease.erase()


def untidy(storage: Storage, run_date: date) -> bool:
    """Whether `tidy` would delete something of a published date, whose run is not being replaced."""
    manifest = find_json(storage, manifest_key(run_date))
    if manifest is None or unfinished(storage, run_date):
        return False
    return bool(_rest(storage, run_date, manifest))


def tidy(storage: Storage, run_date: date, lease: Lease) -> None:
    """Delete all of a date that its published manifest does not name: work, and the files of a replaced run."""
    manifest = find_json(storage, manifest_key(run_date))
    lease.check()
    delete_rest(storage, run_date, manifest)


def _rest(storage: Storage, run_date: date, manifest: Mapping[str, Any] | None) -> list[str]:
    """Keys of a date that its manifest does not name, but for leases; without a manifest all of them."""
    day = f"run_date={run_date}/"
    beside = [key for folder in _BESIDE for key in _keys(storage, folder + day)]
    kept = set[str]()
    if manifest is not None:
        digests = f"{INPUTS}{day}"
        beside = [key for key in beside if key.startswith(digests) and f"/{manifest['run_id']}/" not in key]
        kept = {manifest_key(run_date), *(file["key"] for file in named_files(manifest))}
    files = [key for key in _keys(storage, day) if key not in kept]
    work = [key for key in _keys(storage, f"{work_folder(run_date)}/") if "/lease/" not in key]
    return [*beside, *files, *work]


def delete_rest(storage: Storage, run_date: date, manifest: Mapping[str, Any] | None) -> None:
    """Delete it: lists of files and entries of shards before the files that they name."""
    keys = _rest(storage, run_date, manifest)
    first = {key for key in keys if key == symlinks_key(run_date) or "/shards/" in key}
    for some in (first, set(keys) - first):
        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(storage.delete, sorted(some)))


def _keys(storage: Storage, prefix: str) -> list[str]:
    return [entry.key for entry in storage.list(prefix)]


def _by_date(storage: Storage, *folders: str) -> dict[date, list[str]]:
    """The keys below some folders by date, oldest first."""
    found: dict[date, list[str]] = {}
    for folder in folders:
        start = len(folder) + len("run_date=")
        for key in _keys(storage, f"{folder}run_date="):
            found.setdefault(date.fromisoformat(key[start : start + 10]), []).append(key)
    return dict(sorted(found.items()))
