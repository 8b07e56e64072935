"""Hit@k, NDCG@k, MRR and Recall@N of one held-out item (paper section 5.1), and their standard errors.

A tie says nothing, so it is worth what a coin would make of it: a metric of a tied target is its mean over all
orders of the tied candidates. A scorer that gives every candidate the same score gets exactly chance.

Knows numbers alone; whose they are (system, protocol, subset) are columns that it carries along.

Dimensions: B cases, C candidates (the target first), M metrics
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

METRICS = ("hit@1", "hit@5", "ndcg@10", "mrr")
KEYS = ("system", "protocol", "subset", "metric")


def gains(width: int) -> np.ndarray:
    """What each rank 1 ... width is worth, float64 (M, width). One item is relevant, so the ideal DCG is 1."""
    rank = np.arange(1, width + 1, dtype=np.float64)
    return np.stack([rank <= 1, rank <= 5, np.where(rank <= 10, 1 / np.log2(rank + 1), 0), 1 / rank])


def measure(scores_BC: np.ndarray, candidates_BC: np.ndarray) -> np.ndarray:
    """Every metric of every case, float64 (B, M).

    Args:
        scores_BC: higher is better; column 0 is the target's.
        candidates_BC: item indices; zeros are no candidates and lose to every other.
    """
    real = candidates_BC[:, 1:] > 0
    target, others = scores_BC[:, :1], scores_BC[:, 1:]
    return worth(((others > target) & real).sum(axis=1), ((others == target) & real).sum(axis=1), scores_BC.shape[1])


def worth(better_B: np.ndarray, tied_B: np.ndarray, width: int) -> np.ndarray:
    """Every metric of every case, float64 (B, M).

    Args:
        better_B, tied_B: how many of the `width - 1` others score above the target, and as much as it.
    """
    # The target takes the ranks better + 1 ... better + tied + 1 with equal probability.
    up_to = np.concatenate([np.zeros((len(METRICS), 1)), gains(width).cumsum(axis=1)], axis=1).T
    return (up_to[better_B + tied_B + 1] - up_to[better_B]) / (tied_B + 1)[:, None]


def recall(better_B: np.ndarray, tied_B: np.ndarray, count: int) -> np.ndarray:
    """Whether the target is among the first `count`, float64 (B,); a tied one with the chance that it is."""
    return ((count - better_B) / (tied_B + 1)).clip(0, 1)


def sums(
    system: str,
    protocol: str,
    values_BM: np.ndarray,
    subsets: dict[str, np.ndarray],
    metrics: Sequence[str] = METRICS,
) -> list[dict[str, Any]]:
    """All that the driver needs of a shard's cases: one row for each subset (bool (B,)) and metric."""
    rows = []
    for subset, chosen in subsets.items():
        values = values_BM[chosen]
        totals = zip(metrics, values.sum(axis=0).tolist(), (values**2).sum(axis=0).tolist(), strict=True)
        for metric, total, squares in totals:
            keys = dict(zip(KEYS, (system, protocol, subset, metric), strict=True))
            rows.append({**keys, "count": len(values), "sum": total, "squares": squares})
    return rows


def summarise(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means and standard errors over all cases, from the shards' sums, in the order in which these come first.

    The standard error of a single case is unknown: None. A subset without cases is left out.
    """
    totals: dict[tuple[str, ...], np.ndarray] = {}
    for row in rows:
        key = tuple(row[name] for name in KEYS)
        totals[key] = totals.get(key, np.zeros(3)) + np.array([row["count"], row["sum"], row["squares"]])
    out = []
    for key, (count, total, squares) in totals.items():
        if not count:
            continue
        mean = total / count
        variance = max(squares / count - mean**2, 0.0)
        stderr = float(np.sqrt(variance / (count - 1))) if count > 1 else None
        out.append({**dict(zip(KEYS, key, strict=True)), "value": float(mean), "stderr": stderr, "count": int(count)})
    return out
