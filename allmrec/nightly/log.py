"""The publish log: which run is the current one, and which were before it.

    _log/00000007.json    put-if-absent, so one writer wins each number: the run that is current from then on
    latest.json           a copy of the newest entry, for readers who want a fixed name

A rollback is one more entry. Knows nothing of how a run's files came about.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any

from allmrec.storage import Storage

LATEST = "latest.json"


def manifest_key(run_date: date | str) -> str:
    """The manifest of a date's published files: its presence says that they are all there."""
    return f"run_date={run_date}/_SUCCESS"


def last_number(storage: Storage) -> int:
    """The newest entry's number; 0 when nothing was published yet."""
    return max((int(entry.key[-13:-5]) for entry in storage.list("_log/")), default=0)


def entries_after(storage: Storage, number: int) -> Iterator[dict[str, Any]]:
    """The entries behind number `number`, oldest first."""
    for n in range(number + 1, last_number(storage) + 1):
        yield load_json(storage, _key(n))


def publish_entry(storage: Storage, manifest: Mapping[str, Any], number: int) -> dict[str, Any] | None:
    """Make a run the current one by entry `number`; None when another writer has that number."""
    entry = {
        "n": number,
        "run_date": manifest["run_date"],
        "run_id": manifest["run_id"],
        "manifest": manifest_key(manifest["run_date"]),
        "rows": manifest["rows"],
        "files": manifest["files"],
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return entry if storage.create(_key(number), dump_json(entry)) else None


def roll_back(storage: Storage, run_date: date) -> dict[str, Any]:
    """Make the run of an earlier date the current one again; returns its new entry.

    Raises:
        ValueError: nothing was published for that date.
    """
    manifest = find_json(storage, manifest_key(run_date))
    if manifest is None:
        raise ValueError(f"{storage.uri}: nothing was published for {run_date}; choose a date that was")
    entry = None
    while entry is None:
        entry = publish_entry(storage, manifest, last_number(storage) + 1)
    refresh_latest(storage)
    return entry


def refresh_latest(storage: Storage) -> None:
    """Copy the newest entry, and again if there is a newer one by then: an older copy never stays."""
    copied, newest = 0, last_number(storage)
    while copied < newest:
        copied = newest
        storage.write(LATEST, storage.read(_key(copied)))
        newest = last_number(storage)


def dump_json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode()


def load_json(storage: Storage, key: str) -> dict[str, Any]:
    """Raises FileNotFoundError, or ValueError naming a file that is not JSON."""
    try:
        return json.loads(storage.read(key))
    except json.JSONDecodeError:
        raise ValueError(f"{storage.name(key)} is damaged: it is not JSON") from None


def find_json(storage: Storage, key: str) -> dict[str, Any] | None:
    """As `load_json`, or None when there is no such file."""
    try:
        return load_json(storage, key)
    except FileNotFoundError:
        return None


def _key(number: int) -> str:
    return f"_log/{number:08d}.json"
