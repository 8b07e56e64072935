"""Manage what the nightly runs published: show, list, verify, roll back, discard, suppress.

    allmrec recommendations show --config jobs/configs/demo.yaml --user u42
    allmrec recommendations rollback --config jobs/configs/demo.yaml --date 2026-11-20

Plain store operations, without Ray. Those that change a date wait for its lease, as a nightly run does.
"""

import datetime
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client import generate_latest, start_http_server

from allmrec.core.storage import Storage
from allmrec.data.config import LINES, ListConfig, by_suffix
from allmrec.data.known import Known
from allmrec.data.sources.lists import IdList, read_list
from allmrec.nightly.lists import ListCount, check_lists
from allmrec.nightly.metrics import runs_registry
from allmrec.publishing import maintenance, suppression
from allmrec.publishing.iceberg import mirror
from allmrec.publishing.lease import Lease, hold_lease
from allmrec.publishing.log import roll_back
from allmrec.publishing.reader import published_runs, read_user, verify_run
from jobs.config import Config
from jobs.runtime.command import main
from jobs.runtime.console import Console


def published(config: Config) -> Storage:
    """Where this deployment publishes."""
    return config.workspace.recommendations


def mirror_of(config: Config) -> Callable[[], None]:
    """Brings the configured Iceberg table up to date with what is published."""
    return partial(mirror, config.nightly.iceberg, published(config), config.storage)


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
    storage = published(config)
    if begun := [day for day in maintenance.dates(storage) if maintenance.unfinished(storage, day)]:
        console.event("begun and not published", dates=", ".join(map(str, begun)))


def verify(config: Config, console: Console, run_date: datetime.date | None) -> None:
    console.event("verified", **verify_run(published(config), run_date))


def metrics(config: Config, console: Console, port: int | None) -> None:
    """Print the state of the nightly runs as Prometheus metrics, or serve it at `/metrics` until stopped."""
    registry = runs_registry(published(config), config.nightly.timezone)
    if port is None:
        print(generate_latest(registry).decode(), end="")
        return
    _, thread = start_http_server(port, registry=registry)
    console.event("serving", port=port, output=published(config).uri)
    thread.join()


def rollback(config: Config, console: Console, run_date: datetime.date) -> None:
    """Make the run of an earlier date the current one, by one more entry of the log."""
    storage = published(config)
    with hold_date(config, console, storage, run_date):
        entry = roll_back(storage, run_date)
        mirror_of(config)()
    console.event("rolled back", current=entry["run_date"], run=entry["run_id"], log_entry=entry["n"])


def discard(config: Config, console: Console, run_date: datetime.date) -> None:
    """Delete what was begun for a date and never published."""
    storage = published(config)
    with hold_date(config, console, storage, run_date) as lease:
        maintenance.discard(storage, run_date, lease)
    console.event("discarded", run_date=run_date)


def suppress(
    config: Config,
    console: Console,
    users: str | None,
    items: str | None,
    least: float | None,
    run_date: datetime.date | None,
) -> None:
    """Take users and items out of every date, or of one; out of trials too.

    Args:
        users, items: lists of ids; without either, the config's excluded and suppressed users and items.
        least: takes the place of the lists' `min_known_fraction`.

    Raises:
        ValueError: there is no list or no run; or, once all is taken out, that too little of a list is known.
    """
    user_lists, item_lists = _lists(config, users, items)
    storages = published(config), published(config).at(maintenance.TRIALS)
    runs = [(storage, one) for storage in storages for one in maintenance.dates(storage) if run_date in (None, one)]
    if not runs:
        raise ValueError(
            f"{storages[0].uri}: there is no run{f' of {run_date}' if run_date else ''} to take anything from"
        )
    user_ids, item_ids = (_spellings(found) for found in (user_lists, item_lists))
    taken_out = suppression.Suppressed()
    for storage, one in runs:
        with hold_date(config, console, storage, one) as lease:
            found = suppression.suppress(storage, one, user_ids, item_ids, lease, mirror_of(config))
        taken_out.add(found)
        console.event("suppressed", run_date=one, output=storage.uri, **found.counts)
    known = Known(config.workspace)
    counts = [_count(found, "users", taken_out.named_users, known.users, least) for found in user_lists]
    counts += [_count(found, "items", taken_out.named_items, known.items, least) for found in item_lists]
    for count in counts:
        console.event("list", **count.stats)
    check_lists(counts)


def _count(
    found: IdList, of: str, named: set[str], known: Callable[[pa.Array], np.ndarray], least: float | None
) -> ListCount:
    """What is known of a list: by the runs that it was taken out of, or by the log and the catalogue."""
    is_known = pc.is_in(found.spellings, pa.array(named, pa.string())).to_numpy(zero_copy_only=False).copy()
    rest = np.flatnonzero(~is_known)
    is_known[rest] = known(found.spellings.take(pa.array(rest)))
    return ListCount(found.name, of, len(found), found.known(is_known), found.least if least is None else least)


def _lists(config: Config, users: str | None, items: str | None) -> tuple[list[IdList], list[IdList]]:
    """Of users and of items: those of the two files, or those of the config."""
    if users or items:
        user_lists = [_list_at("--users", users, "user_id", config)] if users else []
        item_lists = [_list_at("--items", items, "item_id", config)] if items else []
    else:
        user_lists = _configured(config, "user_id", "data.excluded_users", "nightly.suppressed_users")
        item_lists = _configured(config, "item_id", "data.excluded_items", "nightly.suppressed_items")
    if not user_lists and not item_lists:
        raise ValueError(
            "nothing to suppress: give --users or --items, or set data.excluded_users, nightly.suppressed_users, "
            "data.excluded_items or nightly.suppressed_items"
        )
    return user_lists, item_lists


def _list_at(name: str, uri: str, column: str, config: Config) -> IdList:
    return read_list(name, ListConfig(**by_suffix([uri], LINES)), column, config.storage, name)


def _configured(config: Config, column: str, *names: str) -> list[IdList]:
    found = []
    for name in names:
        section, key = name.split(".")
        listed = getattr(getattr(config, section), key)
        ids = getattr(listed, "ids", [])
        if listed is not None and (listed.paths or ids):
            found.append(read_list(key, listed, column, config.storage, name, ids))
    return found


def _spellings(lists: list[IdList]) -> pa.Array:
    return pc.unique(pa.chunked_array([found.spellings for found in lists], pa.string()))


def hold_date(
    config: Config, console: Console, storage: Storage, run_date: datetime.date
) -> AbstractContextManager[Lease]:
    return hold_lease(storage, run_date, config.nightly.lease_s, console.event)


if __name__ == "__main__":
    main("recommendations")
