"""Candidates for a shard of users: the teacher's top-N, another system's, checked and topped up, or popular items.

Items that the filter refuses or that the catalogue does not know never become candidates; those that a user has seen
only by `nightly.recommend_seen`.

Dimensions: U users, D = teacher.dim, N candidates
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from allmrec.cf.approximate import ApproximateIndex, ItemLists
from allmrec.cf.retrieval import Pairs, refuse_nonfinite, retrieve
from allmrec.cf.teacher import Teacher
from allmrec.core.hashing import Draw, draws, key64
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences
from allmrec.nightly.config import NightlyConfig
from allmrec.nightly.filters import ItemFilter

_SAMPLED = 64  # users of a shard that the index is compared for


@dataclass(frozen=True)
class Candidates:
    """int32 (U, N) item indices, the proposer's best first; zeros where a user's items ran out."""

    items: np.ndarray
    dropped: Mapping[str, int] = field(default_factory=dict)  # external candidates refused, by reason
    filled: int = 0  # users topped up from the teacher
    index: Mapping[str, int] = field(default_factory=dict)  # of the exact candidates of a sample, how many it found


class Retriever:
    """A teacher's best unseen, allowed items: exactly, or through an index where the catalogue is large."""

    def __init__(
        self,
        teacher: Teacher,
        catalogue: Catalogue,
        allowed_I: np.ndarray,
        config: NightlyConfig,
        seed: int,
        new_I: np.ndarray | None = None,
        lists: ItemLists | None = None,
    ):
        """
        Args:
            allowed_I: bool (n + 1,), the items that may be recommended.
            new_I: bool (n + 1,), those that are new since training; by default none.
            lists: of the teacher's items, for an index; by default they are made where they are needed.

        Raises:
            ValueError: an item's embedding is NaN or inf, or the index cannot be built; see `ItemLists.of`.
        """
        self.teacher, self.count, self.seed, self.config = teacher, config.num_candidates, seed, config
        refuse_nonfinite(teacher.item_embeddings, catalogue.item_ids, "embeds items")
        self.allowed_I = torch.from_numpy(allowed_I.copy()).to(teacher.item_embeddings.device)
        new_I = np.zeros_like(allowed_I) if new_I is None else new_I
        self.new_I = self.allowed_I & torch.from_numpy(new_I.copy()).to(self.allowed_I.device)
        self.index = None
        if config.approximate_above is not None and allowed_I.sum() > config.approximate_above:
            lists = lists or ItemLists.of(teacher, self.allowed_I, seed)
            self.index = ApproximateIndex(teacher, self.allowed_I, lists)

    def __call__(self, users: Sequences, x_UD: torch.Tensor | None = None) -> Candidates:
        """
        Args:
            x_UD: the users' representations; by default the teacher makes them.

        Raises:
            ValueError: they are NaN or inf; names users.
        """
        x_UD = self.teacher.represent(users) if x_UD is None else x_UD
        refuse_nonfinite(x_UD, users.user_ids, "represents users")
        if self.index is None:
            return Candidates(self._with_new(users, x_UD, self._exact(users, x_UD)))
        items_UN = self.index.retrieve(x_UD, self._seen(users), self.count)[0].cpu().numpy()
        return Candidates(self._with_new(users, x_UD, items_UN), index=self._compared(users, x_UD, items_UN))

    def _with_new(self, users: Sequences, x_UD: torch.Tensor, items_UN: np.ndarray) -> np.ndarray:
        """The candidates, of which the last make room for each user's best new items as far as those are missing."""
        count = min(self.config.new_item_candidates, self.count)
        if not count or not self.new_I.any():
            return items_UN
        new_UQ = retrieve(self.teacher, x_UD, self._seen(users), self.new_I, count)[0].cpu().numpy()
        return with_quota(items_UN, new_UQ)

    def _compared(self, users: Sequences, x_UD: torch.Tensor, items_UN: np.ndarray) -> dict[str, int]:
        sample = draws(users.hashes(), key64(self.seed, Draw.NIGHTLY_RECALL), 1)[:, 0].argsort()[:_SAMPLED]
        exact_SN = self._exact(users.take(sample), x_UD[torch.from_numpy(sample).to(x_UD.device)])
        found_SNN = (exact_SN[:, :, None] == items_UN[sample, None, :]) & (exact_SN > 0)[:, :, None]
        return {"index_compared": int((exact_SN > 0).sum()), "index_found": int(found_SNN.sum())}

    def _exact(self, users: Sequences, x_UD: torch.Tensor) -> np.ndarray:
        items_UN, _ = retrieve(self.teacher, x_UD, self._seen(users), self.allowed_I, self.count)
        return items_UN.cpu().numpy()

    def _seen(self, users: Sequences) -> Pairs:
        device = self.allowed_I.device
        users = hidden(users, self.config)
        return torch.from_numpy(users.rows()).to(device), torch.from_numpy(users.items.copy()).to(device)


def with_quota(items_UN: np.ndarray, wanted_UQ: np.ndarray) -> np.ndarray:
    """The first N - Q items, then the wanted ones that are not among these, then what there is room for of the rest.

    Args:
        items_UN: item indices, each once in a row; zeros are none, here and below.
        wanted_UQ: likewise, Q <= N.
    """
    head = items_UN.shape[1] - wanted_UQ.shape[1]
    head_UH, tail_UQ = items_UN[:, :head], items_UN[:, head:]
    wanted_UQ = np.where((wanted_UQ[:, :, None] == head_UH[:, None, :]).any(2), 0, wanted_UQ)
    tail_UQ = np.where((tail_UQ[:, :, None] == wanted_UQ[:, None, :]).any(2), 0, tail_UQ)
    all_UM = np.concatenate([head_UH, wanted_UQ, tail_UQ], axis=1)
    order_UM = np.argsort(all_UM == 0, axis=1, kind="stable")
    return np.take_along_axis(all_UM, order_UM, axis=1)[:, : items_UN.shape[1]]


def hidden(users: Sequences, config: NightlyConfig) -> Sequences:
    """The users with the items that they must not be recommended: those that they have seen, or none."""
    return users.shortened(np.zeros(len(users), dtype=np.int64)) if config.recommend_seen else users


def external_candidates(
    table: pa.Table, proposals: Candidates, catalogue: Catalogue, filter: ItemFilter, users: Sequences
) -> Candidates:
    """Another system's candidates, in its order; users left with too few are filled from `proposals`.

    Args:
        table: rows of the `candidates` table; users that are not in `users` are ignored.
        proposals: the teacher's, (U, N); N is how many candidates every user gets.
        users: with what must not come back, see `hidden`.
    """
    row = pc.index_in(table.column("user_id"), users.user_ids)
    lists = table.column("item_ids").combine_chunks()
    rows = pc.fill_null(row, -1).to_numpy()[pc.list_parent_indices(lists).to_numpy()]
    items = pc.fill_null(pc.index_in(pc.list_flatten(lists), catalogue.item_ids), 0).to_numpy().astype(np.int64)
    mine = rows >= 0
    rows, items = rows[mine].astype(np.int64), items[mine]

    base = catalogue.num_items + 1
    pairs = rows * base + items
    known = items > 0
    seen = known & np.isin(pairs, users.rows() * base + users.items)
    refused = known & ~seen & ~filter.allowed_I[items]
    good = known & ~seen & ~refused
    first = np.sort(np.unique(pairs[good], return_index=True)[1])
    dropped = {
        "unknown": int((~known).sum()),
        "seen": int(seen.sum()),
        **filter.reasons(items[refused]),
        "repeated": int(good.sum()) - len(first),
    }

    rows, items = rows[good][first], items[good][first]
    num_users, count = proposals.items.shape
    counts = np.bincount(rows, minlength=num_users)
    dropped["surplus"] = int((counts - count).clip(0).sum())
    at_row, at_column = np.nonzero(proposals.items)
    rows = np.concatenate([rows, at_row])
    items = np.concatenate([items, proposals.items[at_row, at_column]])
    # The first mention of an item counts: external ones come before the teacher's, each in its own order.
    first = np.sort(np.unique(rows * base + items, return_index=True)[1])
    rows, items = rows[first], items[first]
    order = np.argsort(rows, kind="stable")
    rows, items = rows[order], items[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    out = np.zeros((num_users, count), dtype=np.int32)
    kept = place < count
    out[rows[kept], place[kept]] = items[kept]
    return replace(proposals, items=out, dropped=dropped, filled=int((counts < count).sum()))


def most_popular(popularity_I: np.ndarray, allowed_I: np.ndarray, count: int) -> np.ndarray:
    """The items that may be recommended with the most interactions, int32 (count,); equal ones in index order."""
    allowed = np.flatnonzero(allowed_I)
    best = allowed[np.argsort(-popularity_I[allowed], kind="stable")][:count]
    return np.pad(best, (0, count - len(best))).astype(np.int32)
