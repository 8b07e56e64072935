"""Exact top-N retrieval, and the rank of a held-out item in the whole catalogue; seen items are left out.

Works through tiles of users x items, so memory grows with neither. A tile's scores are made and looked at while they
are in the cache; the few that beat a user's N-th best so far are all that is ever sorted. Knows the teacher's contract
alone.

Dimensions: U users, B of a block, D = teacher.dim, I = n + 1 items (0 is padding), K of a tile, N items wanted, G
groups of W items in a tile, P scores found
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from allmrec.cf.teacher import Teacher
from allmrec.data.sequences import Sequences

Pairs = tuple[torch.Tensor, torch.Tensor]  # a user's row and an item: int64 (S,) each

_TILE = {"cpu": 1 << 11, "cuda": 1 << 19}  # items at once: a CPU's cache holds their scores, a GPU is kept busy
_LEAST = 16  # rows and items of a matrix product: for fewer than 12, BLAS has kernels that round otherwise
_GROUP = 64  # W: a pass over groups' maxima costs a fraction of one over the scores


@torch.inference_mode()
def retrieve(
    teacher: Teacher, x_UD: torch.Tensor, seen: Pairs, available_I: torch.Tensor, count: int, block: int = 256
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `count` items of each user by s(x^u, E_i): what a stable sort of all scores would put first.

    Args:
        x_UD: the users' representations.
        seen: pairs (row, item index), int64 (S,) each, that must not come back.
        available_I: bool (n + 1,); entry 0 is False.
        block: users at once.

    Returns:
        items (int32) and scores (float32), both (U, count), the best first and equal scores in index order. A
        row with fewer items left ends in item 0 with score -inf.
    """
    items = torch.zeros(len(x_UD), count, dtype=torch.int32, device=x_UD.device)
    scores = torch.full((len(x_UD), count), -torch.inf, device=x_UD.device)
    competing_I = available_I.nonzero()[:, 0]
    item_of = torch.cat([competing_I, competing_I.new_zeros(1)])  # the last one is for no place, -1
    for users, hidden in _blocks(len(x_UD), seen, competing_I, block):
        best = _Best(scores[users])
        for first, score_BK in _tiles(teacher, x_UD[users], competing_I, hidden):
            best.add(first, score_BK)
        place_BN, scores[users] = best.result()
        items[users] = item_of[place_BN].int()
    return items, scores


@torch.inference_mode()
def catalogue_ranks(
    teacher: Teacher,
    x_UD: torch.Tensor,
    target_U: torch.Tensor,
    seen: Pairs,
    block: int = 256,
    competing_K: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many unseen items score above each user's target, and how many as much as it.

    Args:
        target_U: int64; a target competes even where it was seen before.
        seen: pairs (row, item index) that do not compete.
        competing_K: int64, ascending: the items that compete; by default all.

    Returns:
        int64 (U,) twice.
    """
    better_U, tied_U = torch.zeros_like(target_U), torch.zeros_like(target_U)
    if competing_K is None:
        competing_K = torch.arange(1, len(teacher.item_embeddings), device=x_UD.device)
    row_U = torch.arange(len(x_UD), device=x_UD.device)
    others = torch.cat([seen[0], row_U]), torch.cat([seen[1], target_U])  # a target does not compete with itself
    for users, hidden in _blocks(len(x_UD), others, competing_K, block):
        own_B1 = _shared_scores(teacher, x_UD[users], target_U[users]).diagonal()[:, None]
        for _, score_BK in _tiles(teacher, x_UD[users], competing_K, hidden):
            # Comparisons that come out as float32 are made and summed several times faster than bools.
            better_U[users] += torch.gt(score_BK, own_B1, out=torch.empty_like(score_BK)).sum(1).long()
            tied_U[users] += score_BK.eq_(own_B1).sum(1).long()
    return better_U, tied_U


def held_out_ranks(
    teacher: Teacher, x_BD: torch.Tensor, histories: Sequences, targets: np.ndarray, drawable: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`catalogue_ranks` of held-out items among all that the users' own histories have not.

    Args:
        targets: item indices (B,).
        drawable: `Catalogue.drawable`, the items that compete; by default all.
    """
    if drawable is None:
        drawable = np.arange(1, len(teacher.item_embeddings))
    target_B, row_S, item_S, competing_K = (
        torch.from_numpy(index.astype(np.int64)).to(x_BD.device)
        for index in (targets, histories.rows(), histories.items, drawable)
    )
    better_B, tied_B = catalogue_ranks(teacher, x_BD, target_B, (row_S, item_S), competing_K=competing_K)
    return better_B.cpu().numpy(), tied_B.cpu().numpy()


def refuse_nonfinite(vectors_ND: torch.Tensor, ids: pa.Array, what: str, who: str = "the teacher") -> None:
    """Raises ValueError for vectors with NaN or inf, whose scores would be nowhere in an order; names five of them."""
    # In blocks, for a mapped table is not to be looked at through copies of it.
    wrong_N = ~torch.cat([block.isfinite().all(1) for block in vectors_ND.split(_TILE["cpu"])]).cpu().numpy()
    if wrong_N.any():
        some = ids.filter(pa.array(wrong_N))[:5].to_pylist()
        raise ValueError(f"{who} {what} {some} … as NaN or inf; check its training")


class _Best:
    """The N best of the items that came by so far, of each user of a block."""

    def __init__(self, scores_BN: torch.Tensor):
        self.num_users, self.count = scores_BN.shape
        self.scores_BN = scores_BN  # the best first; -inf where there is none yet
        self.positions_BN = torch.full_like(scores_BN, -1, dtype=torch.int64)
        self.waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # found, but not sorted in yet

    def add(self, first: int, score_BK: torch.Tensor) -> None:
        """Items at `first`, `first + 1`, ... come by; those before them win ties, so only a better score counts."""
        edge_B1 = self.scores_BN[:, -1:]
        if ragged := -score_BK.shape[1] % _GROUP:
            score_BK = F.pad(score_BK, (0, ragged), value=-torch.inf)
        score_BGW = score_BK.unflatten(1, (-1, _GROUP))
        row_P, group_P = (score_BGW.amax(2) > edge_B1).nonzero(as_tuple=True)
        near_PW = score_BGW[row_P, group_P]
        at, column = (near_PW > edge_B1[row_P]).nonzero(as_tuple=True)
        self.waiting.append((row_P[at], first + group_P[at] * _GROUP + column, near_PW[at, column]))
        if sum(len(row) for row, _, _ in self.waiting) >= self.num_users * self.count:
            self._sort_in()

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Places (-1 for none) and scores, (B, N) each."""
        self._sort_in()
        return self.positions_BN, self.scores_BN

    def _sort_in(self) -> None:
        there = (self.positions_BN >= 0).nonzero(as_tuple=True)
        found = [(there[0], self.positions_BN[there], self.scores_BN[there]), *self.waiting]
        row, place, score = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = score.argsort(descending=True, stable=True)
        order = order[row[order].argsort(stable=True)]
        row = row[order]
        rank = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
        kept = rank < self.count
        at = row[kept], rank[kept]
        self.positions_BN[at], self.scores_BN[at] = place[order][kept], score[order][kept]
        self.waiting = []


def _blocks(num_users: int, hidden: Pairs, items_I: torch.Tensor, block: int) -> Iterator[tuple[slice, Pairs]]:
    """Blocks of users, and the hidden pairs of each: rows of the block, and places in `items_I`, in that order."""
    row, item = hidden[0].long(), hidden[1].long()
    place = torch.searchsorted(items_I, item)
    there = (place < len(items_I)).nonzero()[:, 0]
    there = there[items_I[place[there]] == item[there]]
    row, place = row[there], place[there]
    order = place.argsort()
    order = order[(row[order] // block).argsort(stable=True)]
    row, place = row[order], place[order]
    firsts = torch.arange(0, num_users + block, block, device=row.device)
    edges = torch.searchsorted(row // block, firsts // block).tolist()
    for number, first in enumerate(range(0, num_users, block)):
        inside = slice(edges[number], edges[number + 1])
        yield slice(first, min(first + block, num_users)), (row[inside] - first, place[inside])


def _tiles(
    teacher: Teacher, x_BD: torch.Tensor, items_I: torch.Tensor, hidden: Pairs
) -> Iterator[tuple[int, torch.Tensor]]:
    """Scores of a block with all items, tile by tile: the place of the first item and (B, K). Hidden pairs have -inf.

    Tiles begin narrow and double, so that few scores are among the best so far when the wide ones come.
    """
    edges = [0]
    while edges[-1] < len(items_I):
        width = min(max(edges[-1], _GROUP), _TILE[x_BD.device.type])
        edges.append(min(edges[-1] + width, len(items_I)))
    row, place = hidden
    inside = torch.searchsorted(place, torch.tensor(edges, device=place.device)).tolist()
    for number, (first, end) in enumerate(pairwise(edges)):
        score_BK = _shared_scores(teacher, x_BD, items_I[first:end])
        mine = slice(inside[number], inside[number + 1])
        score_BK[row[mine], place[mine] - first] = -torch.inf
        yield first, score_BK


def _shared_scores(teacher: Teacher, x_BD: torch.Tensor, items_K: torch.Tensor) -> torch.Tensor:
    """The teacher's, (B, K), rounded alike whatever the shape: equal items of two tiles must be tied."""
    rows, items = (max(_LEAST - len(part), 0) for part in (x_BD, items_K))
    padded = teacher.shared_scores(F.pad(x_BD, (0, 0, 0, rows)), F.pad(items_K, (0, items)))
    return padded[: len(x_BD), : len(items_K)]
