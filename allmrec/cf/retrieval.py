"""Exact top-N retrieval: every item of the catalogue is scored, seen and unavailable ones left out.

Works through blocks of users, so memory is `block` x catalogue floats. Knows the teacher's contract alone.

Dimensions: B users of a block, T positions, I = n + 1 items (0 is padding), N items wanted
"""

import torch

from allmrec.cf.teacher import Teacher


@torch.inference_mode()
def retrieve(
    teacher: Teacher,
    history_BT: torch.Tensor,
    seen: tuple[torch.Tensor, torch.Tensor],
    available_I: torch.Tensor,
    count: int,
    block: int = 512,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `count` items of each user by s(x^u, E_i).

    Args:
        history_BT: int64, left-padded histories, at most `teacher.max_history` wide.
        seen: pairs (row, item index), int64 (S,) each, that must not come back.
        available_I: bool (n + 1,); entry 0 is False.

    Returns:
        items (int32) and scores (float32), both (users, count), the best first and equal scores in index order. A
        row with fewer items left ends in item 0 with score -inf.
    """
    items_ID = teacher.item_embeddings
    kept = min(count, len(available_I))
    items = torch.zeros(len(history_BT), count, dtype=torch.int32, device=history_BT.device)
    scores = torch.full((len(history_BT), count), -torch.inf, device=history_BT.device)
    row, item = seen[0].long(), seen[1].long()
    order = row.argsort(stable=True)
    row, item = row[order], item[order]
    for first in range(0, len(history_BT), block):
        x_BD = teacher.user_representations(history_BT[first : first + block])
        score_BI = (x_BD @ items_ID.T).masked_fill_(~available_I, -torch.inf)
        inside = slice(*torch.searchsorted(row, torch.tensor([first, first + block], device=row.device)).tolist())
        score_BI[row[inside] - first, item[inside]] = -torch.inf
        # `topk` promises nothing about ties: a stable sort of all items that reach the N-th best score does.
        edge_B1 = score_BI.topk(kept, dim=1).values[:, -1:]
        at_row, at_item = ((score_BI >= edge_B1) & (score_BI > -torch.inf)).nonzero(as_tuple=True)
        value = score_BI[at_row, at_item]
        by_score = value.argsort(descending=True, stable=True)  # nonzero came in index order
        by_row = by_score[at_row[by_score].argsort(stable=True)]
        at_row, at_item, value = at_row[by_row], at_item[by_row], value[by_row]
        starts_B = torch.searchsorted(at_row, torch.arange(len(x_BD), device=row.device))
        place = torch.arange(len(at_row), device=row.device) - starts_B[at_row]
        wanted = place < kept
        items[at_row[wanted] + first, place[wanted]] = at_item[wanted].int()
        scores[at_row[wanted] + first, place[wanted]] = value[wanted]
    return items, scores
