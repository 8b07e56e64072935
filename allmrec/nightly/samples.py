"""Some users of a run as people read them: what they have had, are recommended, and were recommended before, by title.

Drawn by a hash of user and date, from those who get a row. They are told apart from the report's figures, in a page of
their own (`users.html`) that can be deleted when one of them is to be: nothing else in a report is of a single user.
"""

from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.hashing import Draw, draws, hash_strings, key64
from allmrec.core.shard_tasks import Report
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences

_HISTORY = 10  # newest items that are shown of a history
Sample = dict[str, Any]  # JSON-able: draw, user_id, source, history and items (and their previous ones)


def sample_users(
    count: int,
    key: np.uint64,
    users: Sequences,
    rows: pa.Table,
    previous: pa.Table | None,
    catalogue: Catalogue,
    new_I: np.ndarray,
) -> list[Sample]:
    """The users of a shard with the smallest draws.

    Args:
        count: of the whole run: no shard has more among its smallest.
        key: of `sample_key`.
        users: histories, in the catalogue's indices.
        rows: the shard's `recommendations`, of the same users.
        previous: those of the previous run.
        new_I: bool (I,), items that are new since training.
    """
    draw_U = draws(users.hashes(), key, 1)[:, 0]
    chosen = np.argsort(draw_U, kind="stable")[:count]
    return [
        _sample(users.take(np.array([user])), int(draw_U[user]), rows, previous, catalogue, new_I) for user in chosen
    ]


def sample_key(seed: int, run_date: date) -> np.uint64:
    """Of the users' draws: each run shows other users."""
    return key64(seed, run_date.toordinal(), Draw.NIGHTLY_SAMPLE)


def keep_samples(total: Report, report: Report, count: int) -> None:
    """Keep the smallest draws of all shards so far in the details of the sum."""
    found = total.details.get("samples", []) + report.details["samples"]
    total.details["samples"] = sorted(found, key=lambda sample: sample["draw"])[:count]


def sample_new_items(
    count: int, key: np.uint64, new_I: np.ndarray, users_I: np.ndarray, catalogue: Catalogue
) -> list[dict[str, Any]]:
    """Some items that are new since training, drawn likewise, and to how many users each is recommended.

    Args:
        new_I: bool (I,), those that may be recommended.
        users_I: (I,), by item.
    """
    items = np.flatnonzero(new_I)
    drawn = draws(hash_strings(catalogue.item_ids.take(pa.array(items))), key, 1)[:, 0].argsort(kind="stable")
    titles = _titles(items[drawn[:count]], catalogue)
    return [
        {"item_id": catalogue.item_ids[int(item)].as_py(), "title": title, "users": int(users_I[item])}
        for item, title in zip(items[drawn[:count]], titles, strict=True)
    ]


def _sample(
    user: Sequences, draw: int, rows: pa.Table, previous: pa.Table | None, catalogue: Catalogue, new_I: np.ndarray
) -> Sample:
    """Of one user."""
    user_id = user.user_ids[0].as_py()
    row, before = _row(rows, user_id), None if previous is None else _row(previous, user_id)
    assert row is not None, "every user of the shard has a row"
    return {
        "draw": draw,
        "user_id": user_id,
        "history": _titles(user.last(_HISTORY).items[::-1], catalogue),
        "length": len(user.items),
        "source": row["source"],
        "items": _listed(row, catalogue, new_I),
        "previous": before and _listed(before, catalogue, new_I),
    }


def _row(rows: pa.Table, user_id: str) -> dict[str, Any] | None:
    found = rows.filter(pc.equal(rows.column("user_id"), user_id)).select(["source", "items"]).to_pylist()
    return found[0] if found else None


def _listed(row: dict[str, Any], catalogue: Catalogue, new_I: np.ndarray) -> list[dict[str, Any]]:
    """The items of a row with their titles; one that the catalogue does not have by its id."""
    ids = pa.array([item["item_id"] for item in row["items"]], pa.string())
    items = pc.fill_null(pc.index_in(ids, catalogue.item_ids), 0).to_numpy()
    return [
        {**entry, "title": title or entry["item_id"], "new": bool(new_I[item])}
        for entry, title, item in zip(row["items"], _titles(items, catalogue), items, strict=True)
    ]


def _titles(items: np.ndarray, catalogue: Catalogue) -> list[str]:
    titles: list[str] = catalogue.titles.take(pa.array(items)).to_pylist()
    return titles
