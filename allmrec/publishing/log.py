"""The publish log: which run is the current one, and which were before it.

    _log/00000007.json                                   the run that is current from then on, and its files
    latest.json                                          a copy of the newest entry, for readers who want a fixed name
    _symlink_format_manifest/run_date=D/manifest         the URIs of a date's files, for engines that read such lists

A commit log (`allmrec.core.commit_log`), so a rollback is one more entry. Knows nothing of how a run's files are made.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from allmrec.core.commit_log import (
    Entry,
    append,
    append_next,
    entries_after,
    entry_key,
    find_json,
    last_number,
    load_json,
)
from allmrec.core.storage import Storage
from allmrec.publishing.vectors import named_files

LATEST = "latest.json"


def manifest_key(run_date: date | str) -> str:
    """The manifest of a date's published files: its presence says that they are all there."""
    return f"run_date={run_date}/_SUCCESS"


def symlinks_key(run_date: date | str) -> str:
    """The same as lines of URIs, under the name that Delta Lake gave it; Athena, Trino and Spark read such lists."""
    return f"_symlink_format_manifest/run_date={run_date}/manifest"


def work_folder(run_date: date | str) -> str:
    """The folder of a date's runs in progress, and of its leases."""
    return f"_runs/run_date={run_date}"


def run_key(run_date: date | str) -> str:
    """The run that has a date, from its beginning on."""
    return f"{work_folder(run_date)}/identity.json"


def published_dates(storage: Storage) -> list[date]:
    """The dates that have a run, oldest first."""
    keys = (entry.key for entry in storage.list("run_date="))
    return sorted(date.fromisoformat(key[9:19]) for key in keys if key == manifest_key(key[9:19]))


def publish_entry(storage: Storage, manifest: Mapping[str, Any], number: int) -> Entry | None:
    """Make a run the current one by entry `number`; None when another writer has that number."""
    return append(storage, _entry(manifest), number)


def announce(storage: Storage, manifest: Mapping[str, Any]) -> Entry:
    """All that comes behind `_SUCCESS`: the list of the files, the log entry, `latest.json`. Returns the entry.

    Doing it again changes nothing.
    """
    write_symlinks(storage, manifest)
    entry = None
    while entry is None:  # no writer can append between the last number that was read and the one that is tried
        number = last_number(storage)
        entry = entry_of(storage, manifest) or publish_entry(storage, manifest, number + 1)
    refresh_latest(storage)
    return entry


def entry_of(storage: Storage, manifest: Mapping[str, Any]) -> Entry | None:
    """The entry that made a published run visible; None when it was killed before that."""
    entries = entries_after(storage, manifest["log"])
    return next((entry for entry in entries if entry["run_id"] == manifest["run_id"]), None)


def republish(storage: Storage, manifest: Mapping[str, Any]) -> Entry | None:
    """If the run of this date is the current one, one more entry, unless the newest names these very files."""

    def is_current(newest: Entry | None) -> bool:
        if newest is None or newest["run_id"] != manifest["run_id"]:
            return True
        return named_files(newest) == named_files(manifest)

    entry = append_next(storage, _entry(manifest), is_current)
    refresh_latest(storage)
    return entry


def roll_back(storage: Storage, run_date: date) -> Entry:
    """Make the run of an earlier date the current one again; returns its new entry.

    Raises:
        ValueError: nothing was published for that date.
    """
    manifest = find_json(storage, manifest_key(run_date))
    if manifest is None:
        raise ValueError(f"{storage.uri}: nothing was published for {run_date}; choose a date that was")
    entry = append_next(storage, {**_entry(manifest), "rollback": True})
    assert entry is not None
    refresh_latest(storage)
    return entry


def was_rolled_back(storage: Storage, manifest: Mapping[str, Any]) -> bool:
    """Whether a rollback to an earlier date came behind a published run, and none to that run came later."""
    result = False
    for entry in entries_after(storage, manifest["log"]):
        if entry["run_id"] == manifest["run_id"]:
            result = False
        elif entry.get("rollback") and entry["run_date"] < manifest["run_date"]:
            result = True
    return result


def restore_later(storage: Storage, entry: Entry) -> None:
    """Behind the entry of a backfilled date, make the run of the later date the current one again.

    Doing it again changes nothing.
    """
    number = entry["n"]
    if number == 1 or number != last_number(storage) or entry.get("rollback"):
        return
    before = load_json(storage, entry_key(number - 1))
    if before["run_date"] > entry["run_date"]:
        append(storage, _entry(load_json(storage, manifest_key(before["run_date"]))), number + 1)
        refresh_latest(storage)


def write_symlinks(storage: Storage, manifest: Mapping[str, Any]) -> None:
    """Put the list of a published date's files. Comes behind `_SUCCESS`."""
    lines = [storage.name(file["key"]) for file in manifest["files"]]
    storage.write(symlinks_key(manifest["run_date"]), "".join(f"{line}\n" for line in lines).encode())


def refresh_latest(storage: Storage) -> None:
    """Copy the newest entry, and again if there is a newer one by then: an older copy never stays."""
    copied, newest = 0, last_number(storage)
    while copied < newest:
        copied = newest
        storage.write(LATEST, storage.read(entry_key(copied)))
        newest = last_number(storage)


def _entry(manifest: Mapping[str, Any]) -> Entry:
    return {
        "run_date": manifest["run_date"],
        "run_id": manifest["run_id"],
        "manifest": manifest_key(manifest["run_date"]),
        "rows": manifest["rows"],
        "files": manifest["files"],
        **({"vectors": manifest["vectors"]} if "vectors" in manifest else {}),
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
