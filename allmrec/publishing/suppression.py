"""Excluded users and items are taken out of published runs, and out of those in progress.

A date is changed under its lease, and in an order that never misleads a reader: what names files is changed before the
files go. It may be killed anywhere and started again; a second time there is nothing left to do.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import file_entry, from_parquet, shard_name, to_parquet
from allmrec.core.commit_log import dump_json, find_json
from allmrec.core.storage import Storage
from allmrec.publishing.lease import Lease
from allmrec.publishing.log import manifest_key, republish, work_folder, write_symlinks
from allmrec.publishing.maintenance import INPUTS, delete_rest, unfinished
from allmrec.publishing.reader import read_published
from allmrec.publishing.vectors import folder

_PARALLEL = 8  # files at a time


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


def suppress(
    storage: Storage,
    run_date: date,
    user_ids: pa.Array,
    item_ids: pa.Array,
    lease: Lease,
    mirror: Callable[[], None] = lambda: None,
) -> Suppressed:
    """Take users' rows and items' places out of a date; ranks are dense again. The lease must be this date's.

    A published file that names one of them is rewritten under another name; the old ones and the run's work are
    deleted at the end. So is the work of a run that is not published and names one of them: it starts again. Vectors
    go as well, those that were published and those of users that were kept for the next run.

    Args:
        user_ids, item_ids: string; those that the run does not name do no harm.
        mirror: as in `maintenance.expire`.

    Raises:
        ValueError: a published file is missing or damaged; names it.
        RunHeld: another process has taken the date over; what is published is whole.
    """
    manifest = find_json(storage, manifest_key(run_date))
    if manifest is None:
        found = _suppress_work(storage, run_date, user_ids, item_ids)
        _suppress_kept(storage, run_date, user_ids)
        return found
    found = Suppressed()

    def rewritten(files: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
        def rewrite(numbered: tuple[int, dict[str, Any]]) -> tuple[dict[str, Any], Suppressed]:
            shard, file = numbered
            left, taken_out = _without(read_published(storage, file), user_ids, item_ids)
            if not taken_out.files:
                return file, taken_out
            data = to_parquet(left)
            entry = file_entry(data, rows=left.num_rows)
            key = where + shard_name(shard).replace(".parquet", f"-{entry['sha256'][:16]}.parquet")
            storage.write(key, data)
            return {"key": key, **{name: entry[name] for name in ("sha256", "size", "rows")}}, taken_out

        with ThreadPoolExecutor(_PARALLEL) as pool:
            pairs = list(pool.map(rewrite, enumerate(files)))
        for _, taken_out in pairs:
            found.add(taken_out)
        return [file for file, _ in pairs]

    files = rewritten(manifest["files"], f"run_date={run_date}/")
    vectors = {
        kind: rewritten(parts, f"{folder(run_date, kind)}/") for kind, parts in manifest.get("vectors", {}).items()
    }
    if found.files or unfinished(storage, run_date):  # the page may be of a run that is to replace this one
        storage.delete(users_page(run_date))
    if found.files:
        manifest = manifest | {"files": files, "rows": sum(file["rows"] for file in files)}
        manifest |= {"vectors": vectors} if vectors else {}
        lease.check()
        storage.write(manifest_key(run_date), dump_json(manifest))
    write_symlinks(storage, manifest)
    republish(storage, manifest)
    mirror()
    delete_rest(storage, run_date, manifest)
    _suppress_kept(storage, run_date, user_ids)
    return found


def _suppress_work(storage: Storage, run_date: date, user_ids: pa.Array, item_ids: pa.Array) -> Suppressed:
    """Of a run that is not published: its attempts, and copies of them that no manifest names yet."""
    found = Suppressed()
    for prefix in (f"run_date={run_date}/", f"{work_folder(run_date)}/"):
        for key in [entry.key for entry in storage.list(prefix) if entry.key.endswith(".parquet")]:
            found.add(_without(from_parquet(storage.read(key)), user_ids, item_ids)[1])
    if found.files:
        delete_rest(storage, run_date, None)
    return found


def _suppress_kept(storage: Storage, run_date: date, user_ids: pa.Array) -> None:
    """The users' vectors that the next run may take."""

    def rewrite(key: str) -> None:
        left, found = _rows_without(from_parquet(storage.read(key)), "user_id", user_ids)
        if len(found):
            storage.write(key, to_parquet(left, dictionary=False))

    kept = [entry.key for entry in storage.list(f"{INPUTS}run_date={run_date}/") if "/users/" in entry.key]
    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(rewrite, kept if len(user_ids) else []))


def _without(table: pa.Table, user_ids: pa.Array, item_ids: pa.Array) -> tuple[pa.Table, Suppressed]:
    """One file without them."""
    if "items" in table.column_names:
        return _lists_without(table, user_ids, item_ids)
    if "user_id" in table.column_names:
        left, gone = _rows_without(table, "user_id", user_ids)
        return left, Suppressed(files=int(len(gone) > 0), named_users={*gone.to_pylist()})
    left, gone = _rows_without(table, "item_id", item_ids)
    return left, Suppressed(files=int(len(gone) > 0), named_items={*gone.to_pylist()})


def _rows_without(table: pa.Table, column: str, ids: pa.Array) -> tuple[pa.Table, pa.ChunkedArray]:
    """The other rows, and the ids of those that go."""
    gone = pc.is_in(table.column(column), value_set=ids)
    return table.filter(pc.invert(gone)), table.column(column).filter(gone)


def _lists_without(table: pa.Table, user_ids: pa.Array, item_ids: pa.Array) -> tuple[pa.Table, Suppressed]:
    """The rows of other users with the places of other items."""
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
    # A file keeps the columns of the release that wrote it.
    fields, index = list(entries.type), left.schema.get_field_index("items")
    own = {"rank": pa.array(ranks, pa.int16())}
    entries = pa.StructArray.from_arrays(
        [own.get(field.name, entries.field(field.name)) for field in fields], fields=fields
    )
    offsets = pa.array(np.append(0, lengths.cumsum()), pa.int32())
    found.items = int((~kept).sum())
    return left.set_column(
        index, left.schema.field(index), pa.ListArray.from_arrays(offsets, entries, type=lists.type)
    ), found
