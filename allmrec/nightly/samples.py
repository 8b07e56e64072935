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
    user_ids = users.user_ids.take(pa.array(chosen))
    now, before = _rows_of(user_ids, rows), {} if previous is None else _rows_of(user_ids, previous)
    assert len(now) == len(chosen), "every user of the shard has a row"
    listed = _Listed([*now.values(), *before.values()], catalogue, new_I)
    samples = []
    for place, user_id in zip(chosen, user_ids.to_pylist(), strict=True):
        user = users.take(np.array([place]))
        samples.append(
            {
                "draw": int(draw_U[place]),
                "user_id": user_id,
                "history": _titles(user.last(_HISTORY).items[::-1], catalogue),
                "length": len(user.items),
                "source": now[user_id]["source"],
                "items": listed.items(now[user_id]),
                "previous": listed.items(before[user_id]) if user_id in before else None,
            }
        )
    return samples


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


def _rows_of(user_ids: pa.Array, rows: pa.Table) -> dict[str, dict[str, Any]]:
    """Some users' rows, by user; of those who have one."""
    found = rows.filter(pc.is_in(rows.column("user_id"), user_ids.cast(rows.schema.field("user_id").type)))
    return {row["user_id"]: row for row in found.select(["user_id", "source", "items"]).to_pylist()}


class _Listed:
    """What rows list. Their items are found in the catalogue at once: each search goes through all of it."""

    def __init__(self, rows: list[dict[str, Any]], catalogue: Catalogue, new_I: np.ndarray):
        ids = sorted({entry["item_id"] for row in rows for entry in row["items"]})
        index = pc.fill_null(pc.index_in(pa.array(ids, pa.string()), catalogue.item_ids), 0).to_numpy()
        about = zip(ids, _titles(index, catalogue), new_I[index].tolist(), strict=True)
        self.about = {item_id: {"title": title or item_id, "new": new} for item_id, title, new in about}

    def items(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """The items of a row with their titles; one that the catalogue does not have by its id."""
        return [entry | self.about[entry["item_id"]] for entry in row["items"]]


def _titles(items: np.ndarray, catalogue: Catalogue) -> list[str]:
    titles: list[str] = catalogue.titles.take(pa.array(items)).to_pylist()
    return titles
