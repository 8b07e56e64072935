"""Look after what the nightly runs published: show, list, verify, roll back, expire, suppress.

    allmrec recommendations show --config jobs/configs/demo.yaml --user u42
    allmrec recommendations rollback --config jobs/configs/demo.yaml --date 2026-11-20

Plain store operations, without Ray. Those that change a date wait for its lease, as a nightly run does.
"""

import datetime
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa

from allmrec.nightly import upkeep
from allmrec.nightly.lease import Lease, hold_lease
from allmrec.nightly.log import roll_back
from allmrec.recommendations import published_runs, read_user, verify_run
from allmrec.storage import Storage, open_storage
from jobs.config import Config
from jobs.console import Console


def published(config: Config) -> Storage:
    """Where this deployment publishes."""
    return open_storage(config.nightly.output or f"{config.run_uri}/recommendations", config.storage)


def show(config: Config, console: Console, user_id: str, run_date: datetime.date | None) -> None:
    row = read_user(published(config), user_id, run_date)
    title = f"user {user_id}, {row['run_date']}, run {row['run_id']}, bundle {row['bundle']}, by {row['source']}"
    rows = [[item["item_id"], item["rank"], item["score"]] for item in row["items"]]
    console.table(title, ["item_id", "rank", "score"], rows)


def list_runs(config: Config, console: Console) -> None:
    runs = published_runs(published(config))
    if not runs:
        raise ValueError(f"{published(config).uri}: nothing is published there yet")
    console.table("published runs, newest first", list(runs[0]), [list(run.values()) for run in runs])


def verify(config: Config, console: Console, run_date: datetime.date | None) -> None:
    console.event("verified", **verify_run(published(config), run_date))


def rollback(config: Config, console: Console, run_date: datetime.date) -> None:
    """Make the run of an earlier date the current one, by one more entry of the log."""
    storage = published(config)
    with _date(config, console, storage, run_date):
        entry = roll_back(storage, run_date)
    console.event("rolled back", current=entry["run_date"], run=entry["run_id"], log_entry=entry["n"])


def expire(config: Config, console: Console, keep: int, dry_run: bool) -> None:
    """Delete the dates before the `keep` newest ones, never the current one or what is newer than it."""
    storage = published(config)
    old = upkeep.expired(storage, keep)
    if dry_run:
        console.plan("expire", {"dates": len(old), "which": ", ".join(map(str, old)) or "none"})
        return
    for run_date in old:
        with _date(config, console, storage, run_date) as lease:
            upkeep.expire(storage, run_date, lease)
        console.event("expired", run_date=run_date)
    console.event("expire", dates=len(old))


def suppress(
    config: Config, console: Console, users: Path | None, items: Path | None, run_date: datetime.date | None
) -> None:
    """Take users and items out of every date, or of one; out of trials too.

    Args:
        users, items: files of ids, one a line; without either, the config's forgotten and suppressed users and items.
    """
    user_ids, item_ids = _ids(config, users, items)
    storages = published(config), published(config).at(upkeep.TRIALS)
    runs = [(storage, one) for storage in storages for one in upkeep.dates(storage) if run_date in (None, one)]
    if not runs:
        raise ValueError(
            f"{storages[0].uri}: there is no run{f' of {run_date}' if run_date else ''} to take anything from"
        )
    for storage, one in runs:
        with _date(config, console, storage, one) as lease:
            found = upkeep.suppress(storage, one, user_ids, item_ids, lease)
        console.event("suppressed", run_date=one, where=storage.uri, **found)


def _ids(config: Config, users: Path | None, items: Path | None) -> tuple[pa.Array, pa.Array]:
    if users or items:
        ids = [_lines(path) if path else [] for path in (users, items)]
    else:
        from jobs.nightly_inputs import read_ids
        from jobs.prepare import forgotten_ids

        users_forgotten, items_forgotten = forgotten_ids(config)
        ids = [
            [*users_forgotten, *read_ids(config, "suppressed_users", "user_id")],
            [*items_forgotten, *read_ids(config, "suppressed_items", "item_id")],
        ]
    if not any(ids):
        raise ValueError(
            "nobody to suppress: give --users or --items, or set data.forgotten_users or nightly.suppressed_users, or "
            "the same of items"
        )
    return pa.array(ids[0], pa.string()), pa.array(ids[1], pa.string())


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text().splitlines() if line]
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None


def _date(config: Config, console: Console, storage: Storage, run_date: datetime.date) -> AbstractContextManager[Lease]:
    return hold_lease(storage, run_date, config.nightly.lease_s, console.event)
