"""Negative items for training and evaluation: drawn by counter, uniformly from a set of items (paper section 5.1).

Which items there are to draw is `Catalogue.drawable`; negatives as popular as their target are another matter
(`allmrec.evaluation.matched`).
"""

import numpy as np

from allmrec.hashing import draws


def draw_negatives(
    user_hashes: np.ndarray,
    seen_rows: np.ndarray,
    seen_items: np.ndarray,
    items: np.ndarray,
    count: int,
    key: np.uint64,
) -> np.ndarray:
    """Distinct items that a user has not seen, a function of the user and the key alone.

    Args:
        user_hashes: uint64 (B,), `hash_strings` of the user ids.
        seen_rows, seen_items: (S,) pairs of row and item index that must not be drawn (the target among them).
        items: int32 (M,), ascending: the items that may be drawn.
        count: negatives for each user.
        key: `key64` of the seed, the epoch and the purpose.

    Returns:
        int32 (B, count). A row whose unseen items run out is filled with 0, which is no item.
    """
    out = np.zeros((len(user_hashes), count), dtype=np.int32)
    if not len(user_hashes) or not len(items):
        return out
    base = max(int(items[-1]), int(seen_items.max(initial=0))) + 1
    forbidden = np.unique(seen_rows.astype(np.int64) * base + seen_items)
    rows, taken, first = np.arange(len(out)), np.zeros(len(out), dtype=np.int64), 0
    # A draw repeats or hits a seen item seldom; rows still short after `patience` rounds are enumerated.
    patience, batch = 8, 2 * count + 8
    for _ in range(patience):
        drawn = items[(draws(user_hashes[rows], key, batch, first) % np.uint64(len(items))).astype(np.int64)]
        _take(out, taken, rows, drawn, forbidden, base)
        first += batch
        rows = np.flatnonzero(taken < count)
        if not len(rows):
            return out
    for row in rows:  # Tiny catalogues only: every item in the row's own pseudo-random order.
        order = np.argsort(draws(user_hashes[row : row + 1], key, len(items), first)[0], kind="stable")
        _take(out, taken, np.array([row]), items[order][None, :], forbidden, base)
    return out


def _take(
    out: np.ndarray,
    taken: np.ndarray,
    rows: np.ndarray,
    drawn: np.ndarray,
    forbidden: np.ndarray,
    base: int,
) -> None:
    """Append each row's new, unseen, distinct draws to `out`, in the order drawn."""
    count, width = out.shape[1], drawn.shape[1]
    items = np.concatenate([out[rows], drawn], axis=1)
    keys = rows[:, None].astype(np.int64) * base + items
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    repeat = np.zeros_like(items, dtype=bool)
    np.put_along_axis(repeat, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    good = (~repeat & (items > 0))[:, count:] & ~np.isin(keys[:, count:], forbidden)
    place = np.cumsum(good, axis=1) - 1 + taken[rows][:, None]
    good &= place < count
    at_row, at_col = np.nonzero(good)
    out[rows[at_row], place[at_row, at_col]] = drawn[at_row, at_col]
    taken[rows] = np.minimum(taken[rows] + np.cumsum(good, axis=1)[:, width - 1], count)
