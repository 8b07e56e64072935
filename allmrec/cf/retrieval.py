"""Exact top-N retrieval, and the rank of a held-out item in the whole catalogue; seen items are left out.

Works through blocks of users, so memory is `block` x catalogue floats. Knows the teacher's contract alone.

Dimensions: U users, B of a block, D = teacher.dim, I = n + 1 items (0 is padding), N items wanted
"""

from collections.abc import Iterator

import torch

from allmrec.cf.teacher import Teacher


@torch.inference_mode()
def retrieve(
    teacher: Teacher,
    x_UD: torch.Tensor,
    seen: tuple[torch.Tensor, torch.Tensor],
    available_I: torch.Tensor,
    count: int,
    block: int = 512,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `count` items of each user by s(x^u, E_i).

    Args:
        x_UD: the users' representations.
        seen: pairs (row, item index), int64 (S,) each, that must not come back.
        available_I: bool (n + 1,); entry 0 is False.

    Returns:
        items (int32) and scores (float32), both (U, count), the best first and equal scores in index order. A
        row with fewer items left ends in item 0 with score -inf.
    """
    kept = min(count, len(available_I))
    items = torch.zeros(len(x_UD), count, dtype=torch.int32, device=x_UD.device)
    scores = torch.full((len(x_UD), count), -torch.inf, device=x_UD.device)
    for first, score_BI, seen_here in _scored(teacher, x_UD, seen, block):
        score_BI.masked_fill_(~available_I, -torch.inf)
        score_BI[seen_here] = -torch.inf
        # `topk` promises nothing about ties: a stable sort of all items that reach the N-th best score does.
        edge_B1 = score_BI.topk(kept, dim=1).values[:, -1:]
        at_row, at_item = ((score_BI >= edge_B1) & (score_BI > -torch.inf)).nonzero(as_tuple=True)
        value = score_BI[at_row, at_item]
        by_score = value.argsort(descending=True, stable=True)  # nonzero came in index order
        by_row = by_score[at_row[by_score].argsort(stable=True)]
        at_row, at_item, value = at_row[by_row], at_item[by_row], value[by_row]
        starts_B = torch.searchsorted(at_row, torch.arange(len(score_BI), device=x_UD.device))
        place = torch.arange(len(at_row), device=x_UD.device) - starts_B[at_row]
        wanted = place < kept
        items[at_row[wanted] + first, place[wanted]] = at_item[wanted].int()
        scores[at_row[wanted] + first, place[wanted]] = value[wanted]
    return items, scores


@torch.inference_mode()
def catalogue_ranks(
    teacher: Teacher,
    x_UD: torch.Tensor,
    target_U: torch.Tensor,
    seen: tuple[torch.Tensor, torch.Tensor],
    block: int = 512,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many unseen items of the whole catalogue score above each user's target, and how many as much as it.

    Args:
        target_U: int64; a target competes even where it was seen before.
        seen: pairs (row, item index) that do not compete.

    Returns:
        int64 (U,) twice.
    """
    better_U, tied_U = torch.empty_like(target_U), torch.empty_like(target_U)
    for first, score_BI, seen_here in _scored(teacher, x_UD, seen, block):
        mine = slice(first, first + block)
        own_B1 = score_BI.gather(1, target_U[mine, None])
        score_BI.scatter_(1, target_U[mine, None], -torch.inf)
        score_BI[seen_here] = -torch.inf
        score_BI[:, 0] = -torch.inf
        better_U[mine] = (score_BI > own_B1).sum(1)
        tied_U[mine] = (score_BI == own_B1).sum(1)
    return better_U, tied_U


def _scored(
    teacher: Teacher, x_UD: torch.Tensor, seen: tuple[torch.Tensor, torch.Tensor], block: int
) -> Iterator[tuple[int, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]]:
    """Blocks of users: the first user's row, the scores of the whole catalogue (B, I), and where seen items stand."""
    row, item = seen[0].long(), seen[1].long()
    order = row.argsort(stable=True)
    row, item = row[order], item[order]
    for first in range(0, len(x_UD), block):
        score_BI = teacher.shared_scores(x_UD[first : first + block])
        inside = slice(*torch.searchsorted(row, torch.tensor([first, first + block], device=row.device)).tolist())
        yield first, score_BI, (row[inside] - first, item[inside])
