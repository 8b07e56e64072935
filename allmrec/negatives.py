"""Negative items for training and evaluation, drawn by counter: a function of (seed, epoch, user) alone.

Two kinds: uniform over the catalogue, as in paper section 5.1, and matched to the popularity of the target, since
uniform negatives reward a model that knows popularity only.
"""

import numpy as np

from allmrec.hashing import draws, key64


def draw_negatives(
    user_hashes: np.ndarray,
    seen_rows: np.ndarray,
    seen_items: np.ndarray,
    num_items: int,
    count: int,
    seed: int,
    epoch: int = 0,
    pool: np.ndarray | None = None,
) -> np.ndarray:
    """Distinct items that a user has not seen.

    Args:
        user_hashes: uint64 (B,), `hash_strings` of the user ids.
        seen_rows, seen_items: (S,) pairs of row and item index that must not be drawn (the target among them).
        num_items: n; items are 1 ... n.
        count: negatives for each user.
        pool: int32 (B, W), draws come from the row's own pool instead of 1 ... n; zeros are skipped.

    Returns:
        int32 (B, count). A row whose unseen items run out is filled with 0, which is no item.
    """
    num_rows, key = len(user_hashes), key64(seed, epoch, 0x4E45)
    width = num_items if pool is None else pool.shape[1]
    out = np.zeros((num_rows, count), dtype=np.int32)
    if num_rows == 0 or width == 0:
        return out
    forbidden = np.unique(seen_rows.astype(np.int64) * (num_items + 1) + seen_items)
    rows, taken, first = np.arange(num_rows), np.zeros(num_rows, dtype=np.int64), 0
    # A draw repeats or hits a seen item seldom; rows still short after `patience` rounds are enumerated.
    patience, batch = 8, 2 * count + 8
    for _ in range(patience):
        number = (draws(user_hashes[rows], key, batch, first) % np.uint64(width)).astype(np.int64)
        drawn = number + 1 if pool is None else pool[rows[:, None], number].astype(np.int64)
        _take(out, taken, rows, drawn, forbidden, num_items)
        first += batch
        rows = np.flatnonzero(taken < count)
        if not len(rows):
            return out
    for row in rows:  # Tiny catalogues and pools only: every item in the row's own pseudo-random order.
        items = np.arange(1, num_items + 1) if pool is None else pool[row].astype(np.int64)
        order = np.argsort(draws(user_hashes[row : row + 1], key, len(items), first)[0], kind="stable")
        _take(out, taken, np.array([row]), items[order][None, :], forbidden, num_items)
    return out


def _take(
    out: np.ndarray,
    taken: np.ndarray,
    rows: np.ndarray,
    drawn: np.ndarray,
    forbidden: np.ndarray,
    num_items: int,
) -> None:
    """Append each row's new, unseen, distinct draws to `out`, in the order drawn."""
    count, width = out.shape[1], drawn.shape[1]
    items = np.concatenate([out[rows].astype(np.int64), drawn], axis=1)
    keys = rows[:, None].astype(np.int64) * (num_items + 1) + items
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    repeat = np.zeros_like(items, dtype=bool)
    np.put_along_axis(repeat[:, :], order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    good = (~repeat & (items > 0))[:, count:] & ~np.isin(keys[:, count:], forbidden)
    place = np.cumsum(good, axis=1) - 1 + taken[rows][:, None]
    good &= place < count
    at_row, at_col = np.nonzero(good)
    out[rows[at_row], place[at_row, at_col]] = drawn[at_row, at_col]
    taken[rows] = np.minimum(taken[rows] + np.cumsum(good, axis=1)[:, width - 1], count)


def popularity_pools(targets: np.ndarray, popularity: np.ndarray, window: int) -> np.ndarray:
    """For each target its neighbours by popularity.

    Args:
        targets: int32 (B,) item indices.
        popularity: int64 (n + 1,), by item index; entry 0 is padding.
        window: neighbours on each side of the target's rank.

    Returns:
        int32 (B, 2 * window + 1) item indices, 0 beyond the ends of the ranking. Equal popularities are
        neighbours in index order.
    """
    ranking = np.argsort(-popularity[1:], kind="stable").astype(np.int32) + 1
    rank_of = np.zeros(len(popularity), dtype=np.int64)
    rank_of[ranking] = np.arange(len(ranking))
    near = rank_of[targets][:, None] + np.arange(-window, window + 1)
    inside = (near >= 0) & (near < len(ranking))
    return np.where(inside, ranking[np.clip(near, 0, len(ranking) - 1)], 0).astype(np.int32)
