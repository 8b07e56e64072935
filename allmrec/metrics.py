"""Hit@k, NDCG@k, MRR and Recall@N of one held-out item (paper section 5.1), their errors and paired differences.

A tie says nothing, so it is worth what a coin would make of it: a metric of a tied target is its mean over all
orders of the tied candidates. A model that gives every candidate the same score gets exactly chance.

Two systems are scored on the same users, so what counts is each user's difference: where both find the same targets,
its interval is far narrower than either mean's error says. Everything is streamed as sums over cases.

Knows numbers alone; whose they are (system, protocol, subset) are columns that it carries along.

Dimensions: B cases, C candidates (the target first), M metrics
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

METRICS = ("hit@1", "hit@5", "ndcg@10", "mrr")
KEYS = ("system", "protocol", "subset", "metric")
_NUMBERS = ("count", "sum", "squares", "pairs", "difference", "difference_squares", "tied", "candidates", "by_text")


def gain_table(width: int) -> np.ndarray:
    """What each rank 1 ... width is worth, float64 (M, width). One item is relevant, so the ideal DCG is 1."""
    rank = np.arange(1, width + 1, dtype=np.float64)
    return np.stack([rank <= 1, rank <= 5, np.where(rank <= 10, 1 / np.log2(rank + 1), 0), 1 / rank])


def evaluate_scores(scores_BC: np.ndarray, candidates_BC: np.ndarray) -> np.ndarray:
    """Every metric of every case, float64 (B, M).

    Args:
        scores_BC: higher is better; column 0 is the target's.
        candidates_BC: item indices; zeros are no candidates and lose to every other.
    """
    return expected_metrics(*standing(scores_BC, candidates_BC), scores_BC.shape[1])


def standing(scores_BC: np.ndarray, candidates_BC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many candidates score above the target and how many are tied with it, int64 (B,) twice."""
    real = candidates_BC[:, 1:] > 0
    target, others = scores_BC[:, :1], scores_BC[:, 1:]
    return ((others > target) & real).sum(axis=1), ((others == target) & real).sum(axis=1)


def expected_metrics(better_B: np.ndarray, tied_B: np.ndarray, width: int) -> np.ndarray:
    """Every metric of every case, float64 (B, M).

    Args:
        better_B, tied_B: how many of the `width - 1` others score above the target, and as much as it.
    """
    # The target takes the ranks better + 1 ... better + tied + 1 with equal probability.
    up_to = np.concatenate([np.zeros((len(METRICS), 1)), gain_table(width).cumsum(axis=1)], axis=1).T
    return (up_to[better_B + tied_B + 1] - up_to[better_B]) / (tied_B + 1)[:, None]


def recall(better_B: np.ndarray, tied_B: np.ndarray, count: int) -> np.ndarray:
    """Whether the target is among the first `count`, float64 (B,); a tied one with the chance that it is."""
    return ((count - better_B) / (tied_B + 1)).clip(0, 1)


def sums(
    system: str,
    protocol: str,
    values_BM: np.ndarray,
    subsets: Mapping[str, np.ndarray],
    metrics: Sequence[str] = METRICS,
    differences_BM: np.ndarray | None = None,
    baseline: str | None = None,
    tallies: Mapping[str, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """All that the driver needs of a shard's cases: one row for each subset (bool (B,)) and metric.

    Args:
        differences_BM: to `baseline` on the same case; NaN where the baseline has no such case or metric.
        tallies: counts (B,) to carry along: whether the target is "tied", "candidates" with a soft token, and how many
            of these are made "by_text".
    """
    if differences_BM is None:
        differences_BM = np.full(values_BM.shape, np.nan)
    rows = []
    for subset, chosen in subsets.items():
        counts = {name: int(tally_B[chosen].sum()) for name, tally_B in (tallies or {}).items()}
        for metric, value_B, difference_B in zip(metrics, values_BM[chosen].T, differences_BM[chosen].T, strict=True):
            paired = difference_B[~np.isnan(difference_B)]
            numbers = {
                "count": len(value_B),
                "sum": float(value_B.sum()),
                "squares": float((value_B**2).sum()),
                "pairs": len(paired),
                "difference": float(paired.sum()),
                "difference_squares": float((paired**2).sum()),
            }
            keys = dict(zip(KEYS, (system, protocol, subset, metric), strict=True))
            rows.append({**keys, "baseline": baseline, **dict.fromkeys(_NUMBERS, 0), **numbers, **counts})
    return rows


def summarise(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means, standard errors and paired differences over all cases, from the shards' sums, in their first order.

    The standard error of a single case is unknown: None. So is what hangs on pairs where there are none, and the share
    of candidates by text where none has a soft token. A subset without cases is left out.
    """
    totals: dict[tuple[str, ...], np.ndarray] = {}
    baselines: dict[tuple[str, ...], str | None] = {}
    for row in rows:
        key = tuple(row[name] for name in KEYS)
        totals[key] = totals.get(key, np.zeros(len(_NUMBERS))) + np.array([row[name] for name in _NUMBERS])
        baselines[key] = row["baseline"]
    out = []
    for key, numbers in totals.items():
        total = dict(zip(_NUMBERS, numbers.tolist(), strict=True))
        if not total["count"]:
            continue
        mean, stderr = _mean(total["count"], total["sum"], total["squares"])
        difference, low, high = interval(int(total["pairs"]), total["difference"], total["difference_squares"])
        out.append(
            {
                **dict(zip(KEYS, key, strict=True)),
                "value": mean,
                "stderr": stderr,
                "count": int(total["count"]),
                "tied": int(total["tied"]),
                "by_text": total["by_text"] / total["candidates"] if total["candidates"] else None,
                "baseline": baselines[key] if total["pairs"] else None,
                "difference": difference,
                "low": low,
                "high": high,
                "pairs": int(total["pairs"]),
            }
        )
    return out


def interval(pairs: int, total: float, squares: float) -> tuple[float | None, float | None, float | None]:
    """The mean of paired differences and its 95 % interval (Student's t), from their sum and sum of squares.

    A single pair has no interval; no pairs have no mean.
    """
    if not pairs:
        return None, None, None
    mean, stderr = _mean(pairs, total, squares)
    if stderr is None:
        return mean, None, None
    reach = student(pairs - 1) * stderr
    return mean, mean - reach, mean + reach


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, to three digits from 3 degrees of freedom on.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    x = NormalDist().inv_cdf(0.975)
    terms = (
        x,
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def _mean(count: float, total: float, squares: float) -> tuple[float, float | None]:
    """And its standard error, None for a single value."""
    mean = total / count
    variance = max(squares / count - mean**2, 0.0)
    return mean, float(np.sqrt(variance / (count - 1))) if count > 1 else None
