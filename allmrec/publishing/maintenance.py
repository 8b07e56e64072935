"""What becomes of published runs later: old dates expire, excluded users and items are taken out.

Each date is changed under its lease, and in an order that never misleads a reader who follows the log, `latest.json`
or `_SUCCESS`: what names files is changed before the files go. Both may be killed anywhere and started again; a second
time there is nothing left to do. The newest log entry always names files that exist.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from allmrec.core.artifacts import file_entry, shard_name, to_parquet
from allmrec.core.commit_log import dump_json, find_json, newest_entry
from allmrec.core.storage import Storage
from allmrec.publishing.lease import Lease
from allmrec.publishing.log import manifest_key, published_dates, republish, write_symlinks
from allmrec.publishing.reader import read_published
from schemas.recommendations import ITEM, SCHEMA

TRIALS = "_trial"  # the folder of trial runs, with the same layout
_BESIDE = ("_symlink_format_manifest", "_inputs", "_reports")  # what else a run leaves, by date
_PARALLEL = 8  # files at a time


def dates(storage: Storage) -> list[date]:
    """Dates with a published run, or with work in progress or what is left of it; oldest first."""
    work = {entry.key.split("/")[1] for entry in storage.list("_runs/run_date=") if "/lease/" not in entry.key}
    files = {entry.key.split("/")[0] for entry in storage.list("run_date=")}
    return sorted(date.fromisoformat(folder.removeprefix("run_date=")) for folder in work | files)


def expired(storage: Storage, keep: int) -> list[date]:
    """The dates before the `keep` newest published ones, and before the current run's; oldest first."""
    newest = newest_entry(storage)
    if newest is None:
        return []
    first_kept = min([*published_dates(storage)[-keep:], date.fromisoformat(newest["run_date"])])
    return [run_date for run_date in dates(storage) if run_date < first_kept]


def expire(storage: Storage, run_date: date, lease: Lease) -> None:
    """Delete a date: first what names its files. The lease must be this date's."""
    newest = newest_entry(storage)
    if newest is not None and newest["run_date"] == str(run_date):
        raise ValueError(f"{storage.uri}: the run of {run_date} is the current one; roll back to another date first")
    lease.check()
    storage.delete(manifest_key(run_date))
    for folder in (*(f"{name}/" for name in _BESIDE), ""):
        _delete(storage, (entry.key for entry in storage.list(f"{folder}run_date={run_date}/")))
    _delete_work(storage, run_date)


@dataclass
class Suppressed:
    """What was taken out: rows (users), places in lists (items), of how many files, and the users they named."""

    users: int = 0
    items: int = 0
    files: int = 0
    named_users: set[str] = field(default_factory=set)
    named_items: set[str] = field(default_factory=set)

    @property
    def counts(self) -> dict[str, int]:
        return {"users": self.users, "items": self.items, "files": self.files}

    def add(self, other: "Suppressed") -> None:
        self.users += other.users
        self.items += other.items
        self.files += other.files
        self.named_users |= other.named_users
        self.named_items |= other.named_items


def users_page(run_date: date) -> str:
    """The key of the only page of a date's report that shows single users; `allmrec.nightly.samples` makes it."""
    return f"_reports/run_date={run_date}/users.html"


def suppress(storage: Storage, run_date: date, user_ids: pa.Array, item_ids: pa.Array, lease: Lease) -> Suppressed:
    """Take users' rows and items' places out of a date; ranks are dense again. The lease must be this date's.

    A published file that names one of them is rewritten under another name; the old ones and the run's work are
    deleted at the end. So is the work of a run that is not published and names one of them: it starts again.

    Args:
        user_ids, item_ids: string; those that the run does not name do no harm.

    Raises:
        ValueError: a published file is missing or damaged; names it.
        RunHeld: another process has taken the date over; what is published is whole.
    """
    manifest = find_json(storage, manifest_key(run_date))
    if manifest is None:
        return _suppress_work(storage, run_date, user_ids, item_ids)

    def rewrite(numbered: tuple[int, dict[str, Any]]) -> tuple[dict[str, Any], Suppressed]:
        shard, file = numbered
        table = read_published(storage, file)
        left, found = _without(table, user_ids, item_ids)
        if not found.files:
            return file, found
        data = to_parquet(left)
        entry = file_entry(data, rows=left.num_rows)
        name = shard_name(shard).replace(".parquet", f"-{entry['sha256'][:16]}.parquet")
        key = f"run_date={run_date}/{name}"
        storage.write(key, data)
        return {"key": key, **{name: entry[name] for name in ("sha256", "size", "rows")}}, found

    with ThreadPoolExecutor(_PARALLEL) as pool:
        rewritten = list(pool.map(rewrite, enumerate(manifest["files"])))
    files, found = [file for file, _ in rewritten], Suppressed()
    for _, part in rewritten:
        found.add(part)
    if found.files:
        storage.delete(users_page(run_date))
        manifest = manifest | {"files": files, "rows": sum(file["rows"] for file in files)}
        lease.check()
        storage.write(manifest_key(run_date), dump_json(manifest))
    write_symlinks(storage, manifest)
    republish(storage, manifest)
    kept = {manifest_key(run_date), *(file["key"] for file in files)}
    _delete(storage, (entry.key for entry in storage.list(f"run_date={run_date}/") if entry.key not in kept))
    _delete_work(storage, run_date)
    return found


def _suppress_work(storage: Storage, run_date: date, user_ids: pa.Array, item_ids: pa.Array) -> Suppressed:
    """Of a run that is not published: its attempts, and copies of them that no manifest names yet."""
    found = Suppressed()
    copies = [entry.key for entry in storage.list(f"run_date={run_date}/")]
    for key in [*copies, *(entry.key for entry in storage.list(f"_runs/run_date={run_date}/attempts/"))]:
        found.add(_without(pq.read_table(pa.BufferReader(storage.read(key))), user_ids, item_ids)[1])
    if found.files:
        storage.delete(users_page(run_date))
        _delete(storage, copies)
        _delete_work(storage, run_date)
    return found


def _without(table: pa.Table, user_ids: pa.Array, item_ids: pa.Array) -> tuple[pa.Table, Suppressed]:
    """The rows of other users with the places of other items, of one file."""
    gone = pc.is_in(table.column("user_id"), value_set=user_ids)
    left, users = table.filter(pc.invert(gone)).combine_chunks(), table.column("user_id").filter(gone)
    # Also rows that go may name a listed item, which is known then.
    named = pc.unique(pc.list_flatten(table.column("items")).combine_chunks().field("item_id"))
    items = named.filter(pc.is_in(named, value_set=item_ids)).to_pylist()
    found = Suppressed(len(users), 0, int(len(users) > 0 or len(items) > 0), {*users.to_pylist()}, {*items})
    if not left.num_rows:
        return left, found
    lists = left.column("items").chunk(0)
    entries = lists.flatten()
    kept = ~pc.is_in(entries.field("item_id"), value_set=item_ids).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy())[kept]
    lengths = np.bincount(rows, minlength=len(lists))
    ranks = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
    entries = entries.filter(pa.array(kept))
    columns = [entries.field("item_id"), pa.array(ranks, pa.int16()), entries.field("score")]
    lists = pa.ListArray.from_arrays(
        pa.array(np.append(0, lengths.cumsum()), pa.int32()), pa.StructArray.from_arrays(columns, fields=list(ITEM))
    )
    index = left.schema.get_field_index("items")
    found.items = int((~kept).sum())
    return left.set_column(index, SCHEMA.field("items"), lists), found


def _delete_work(storage: Storage, run_date: date) -> None:
    """Everything of a run under `_runs/` but its leases: no entry of a shard outlives the attempt that it names."""
    work = f"_runs/run_date={run_date}/"
    keys = [entry.key.removeprefix(work) for entry in storage.list(work)]
    for wanted in ("shards/", "attempts/", "identity.json"):
        _delete(storage, (work + key for key in keys if key.startswith(wanted)))


def _delete(storage: Storage, keys: Iterable[str]) -> None:
    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(storage.delete, keys))
