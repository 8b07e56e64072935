"""A commit log: `_log/00000007.json`, entries numbered from 1, put if absent, so that one writer wins each number.

Entries are never changed or removed; undoing one is one more. The newest says what is current: which run is current
(`allmrec.publishing.log`), which bundle is promoted (`allmrec.bundle.versions`). Knows nothing of what entries say.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from allmrec.core.storage import Storage

Entry = dict[str, Any]


def last_number(storage: Storage) -> int:
    """The newest entry's number; 0 when there is none yet."""
    return max((int(entry.key[-13:-5]) for entry in storage.list("_log/")), default=0)


def newest_entry(storage: Storage) -> Entry | None:
    number = last_number(storage)
    return load_json(storage, entry_key(number)) if number else None


def entries_after(storage: Storage, number: int) -> Iterator[Entry]:
    """The entries behind number `number`, oldest first."""
    for n in range(number + 1, last_number(storage) + 1):
        yield load_json(storage, entry_key(n))


def append(storage: Storage, entry: Mapping[str, Any], number: int) -> Entry | None:
    """Put an entry under its number, as its `n`; None when another writer has that number."""
    numbered = {"n": number, **entry}
    return numbered if storage.create(entry_key(number), dump_json(numbered)) else None


def append_next(
    storage: Storage, entry: Mapping[str, Any], unless: Callable[[Entry | None], bool] = lambda newest: False
) -> Entry | None:
    """Append an entry behind the newest one, unless that one says what is wanted already; then None.

    `unless` is asked again whenever another writer was quicker.
    """
    while True:
        number = last_number(storage)
        if unless(load_json(storage, entry_key(number)) if number else None):
            return None
        if appended := append(storage, entry, number + 1):
            return appended


def entry_key(number: int) -> str:
    return f"_log/{number:08d}.json"


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
