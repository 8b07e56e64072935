"""Candidates for a shard of users: the teacher's exact top-N, or another system's, checked and topped up.

Items that a user has seen, that are unavailable or that the catalogue does not know never become candidates.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from allmrec.cf.retrieval import retrieve
from allmrec.cf.teacher import Teacher
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences


@dataclass(frozen=True)
class Candidates:
    """int32 (U, N) item indices, best first by whoever proposed them; zeros where a user's items ran out."""

    items: np.ndarray
    dropped: dict[str, int] = field(default_factory=dict)  # given candidates left out, by reason
    filled: int = 0  # users topped up from the teacher


def retrieved(teacher: Teacher, catalogue: Catalogue, users: Sequences, count: int) -> Candidates:
    """The teacher's best `count` unseen, available items of each user."""
    device = teacher.item_embeddings.device
    items_UN, _ = retrieve(
        teacher,
        teacher.represent(users),
        (torch.from_numpy(users.rows()).to(device), torch.from_numpy(users.items).to(device)),
        torch.from_numpy(catalogue.available.copy()).to(device),
        count,
    )
    return Candidates(items_UN.cpu().numpy())


def given(table: pa.Table, proposals: Candidates, catalogue: Catalogue, users: Sequences) -> Candidates:
    """Another system's candidates, in its order; users left with too few are filled from `proposals`.

    Args:
        table: rows of the `candidates` table; users that are not in `users` are ignored.
        proposals: the teacher's, (U, N); N is how many candidates every user gets.
    """
    row = pc.index_in(table.column("user_id"), users.user_ids)
    lists = table.column("item_ids").combine_chunks()
    rows = pc.fill_null(row, -1).to_numpy()[pc.list_parent_indices(lists).to_numpy()]
    items = pc.fill_null(pc.index_in(pc.list_flatten(lists), catalogue.item_ids), 0).to_numpy().astype(np.int64)
    mine = rows >= 0
    rows, items = rows[mine].astype(np.int64), items[mine]

    base = catalogue.num_items + 1
    unknown = items == 0
    seen = ~unknown & np.isin(rows * base + items, users.rows() * base + users.items)
    unavailable = ~unknown & ~seen & ~catalogue.available[items]
    good = ~(unknown | seen | unavailable)
    dropped = {"unknown": int(unknown.sum()), "seen": int(seen.sum()), "unavailable": int(unavailable.sum())}

    rows, items = rows[good], items[good]
    num_users, count = proposals.items.shape
    enough = np.bincount(np.unique(rows * base + items) // base, minlength=num_users) >= count
    at_row, at_column = np.nonzero(proposals.items)
    rows = np.concatenate([rows, at_row])
    items = np.concatenate([items, proposals.items[at_row, at_column]])
    # The first mention of an item counts: given ones stand before the teacher's, each in its own order.
    first = np.sort(np.unique(rows * base + items, return_index=True)[1])
    rows, items = rows[first], items[first]
    order = np.argsort(rows, kind="stable")
    rows, items = rows[order], items[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    out = np.zeros((num_users, count), dtype=np.int32)
    kept = place < count
    out[rows[kept], place[kept]] = items[kept]
    return Candidates(out, dropped, int((~enough).sum()))
