"""What becomes of published runs later: old dates expire, forgotten users and items are taken out.

Each date is changed under its lease, and in an order that never misleads a reader who follows the log, `latest.json`
or `_SUCCESS`: what names files is changed before the files go. Both may be killed anywhere and started again; a second
time there is nothing left to do. The newest log entry always names files that are there.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from allmrec.artifacts import describe, shard_name, to_parquet
from allmrec.data.sequences import offsets_of
from allmrec.journal import dump_json, find_json, newest_entry
from allmrec.nightly.lease import Lease
from allmrec.nightly.log import manifest_key, published_dates, republish, write_symlinks
from allmrec.recommendations import read_published
from allmrec.storage import Storage
from schemas.recommendations import ITEM, SCHEMA

TRIALS = "_trial"  # where trial runs lie below the others, in the same layout
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


def suppress(storage: Storage, run_date: date, user_ids: pa.Array, item_ids: pa.Array, lease: Lease) -> dict[str, int]:
    """Take users' rows and items' places out of a date; ranks are dense again. The lease must be this date's.

    A published file that names one of them is written anew under another name; the old ones and the run's work are
    deleted at the end. So is the work of a run that is not published and names one of them: it begins anew.

    Args:
        user_ids, item_ids: string; those that the run does not name do no harm.

    Returns:
        how many rows (users), places in lists (items) and files it was.

    Raises:
        ValueError: a published file is missing or damaged; names it.
        RunHeld: another process has taken the date over; what is published is whole.
    """
    manifest = find_json(storage, manifest_key(run_date))
    if manifest is None:
        return _suppress_work(storage, run_date, user_ids, item_ids)

    def rewrite(numbered: tuple[int, dict[str, Any]]) -> tuple[dict[str, Any], int, int]:
        shard, file = numbered
        table = read_published(storage, file)
        left, users, items = _without(table, user_ids, item_ids)
        if not users and not items:
            return file, 0, 0
        data = to_parquet(left)
        entry = describe(data, rows=left.num_rows)
        name = shard_name(shard).replace(".parquet", f"-{entry['sha256'][:16]}.parquet")
        key = f"run_date={run_date}/{name}"
        storage.write(key, data)
        return {"key": key, **{name: entry[name] for name in ("sha256", "size", "rows")}}, users, items

    with ThreadPoolExecutor(_PARALLEL) as pool:
        rewritten = list(pool.map(rewrite, enumerate(manifest["files"])))
    files = [file for file, _, _ in rewritten]
    found = {
        "users": sum(users for _, users, _ in rewritten),
        "items": sum(items for _, _, items in rewritten),
        "files": sum(old != new for old, new in zip(manifest["files"], files, strict=True)),
    }
    if found["files"]:
        manifest = manifest | {"files": files, "rows": sum(file["rows"] for file in files)}
        lease.check()
        storage.write(manifest_key(run_date), dump_json(manifest))
    write_symlinks(storage, manifest)
    republish(storage, manifest)
    kept = {manifest_key(run_date), *(file["key"] for file in files)}
    _delete(storage, (entry.key for entry in storage.list(f"run_date={run_date}/") if entry.key not in kept))
    _delete_work(storage, run_date)
    return found


def _suppress_work(storage: Storage, run_date: date, user_ids: pa.Array, item_ids: pa.Array) -> dict[str, int]:
    """Of a run that is not published: its attempts, and copies of them that no manifest names yet."""
    found = {"users": 0, "items": 0, "files": 0}
    copies = [entry.key for entry in storage.list(f"run_date={run_date}/")]
    for key in [*copies, *(entry.key for entry in storage.list(f"_runs/run_date={run_date}/attempts/"))]:
        _, users, items = _without(pq.read_table(pa.BufferReader(storage.read(key))), user_ids, item_ids)
        for name, count in (("users", users), ("items", items), ("files", bool(users or items))):
            found[name] += count
    if found["files"]:
        _delete(storage, copies)
        _delete_work(storage, run_date)
    return found


def _without(table: pa.Table, user_ids: pa.Array, item_ids: pa.Array) -> tuple[pa.Table, int, int]:
    """The rows of other users with the places of other items; how many rows and places were taken out."""
    left = table.filter(pc.invert(pc.is_in(table.column("user_id"), value_set=user_ids))).combine_chunks()
    if not left.num_rows:
        return left, table.num_rows, 0
    lists = left.column("items").chunk(0)
    entries = lists.flatten()
    kept = ~pc.is_in(entries.field("item_id"), value_set=item_ids).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy())[kept]
    lengths = np.bincount(rows, minlength=len(lists))
    ranks = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
    entries = entries.filter(pa.array(kept))
    columns = [entries.field("item_id"), pa.array(ranks, pa.int16()), entries.field("score")]
    lists = pa.ListArray.from_arrays(
        pa.array(offsets_of(lengths), pa.int32()), pa.StructArray.from_arrays(columns, fields=list(ITEM))
    )
    index = left.schema.get_field_index("items")
    left = left.set_column(index, SCHEMA.field("items"), lists)
    return left, table.num_rows - left.num_rows, int((~kept).sum())


def _delete_work(storage: Storage, run_date: date) -> None:
    """Everything of a run under `_runs/` but its leases: no entry of a shard outlives the attempt that it names."""
    work = f"_runs/run_date={run_date}/"
    keys = [entry.key.removeprefix(work) for entry in storage.list(work)]
    for wanted in ("shards/", "attempts/", "identity.json"):
        _delete(storage, (work + key for key in keys if key.startswith(wanted)))


def _delete(storage: Storage, keys: Iterable[str]) -> None:
    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(storage.delete, keys))
