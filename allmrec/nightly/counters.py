"""What the shards of a nightly run counted: as it is stored beside each, and as one line for people.

A shard's counters are committed with it, so that a run that was resumed is reported whole.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from allmrec.core.shard_tasks import COUNTERS, Report

_NOT_SHOWN = {"padding", "index_compared", "index_found"}  # they are shown as ratios


def counters_of(report: Report) -> dict[str, dict[str, float]]:
    """The counters and seconds of a report by kind, JSON-able; kinds without any are missing."""
    kinds = {kind: dict(getattr(report, kind)) for kind in (*COUNTERS, "seconds")}
    return {kind: counts for kind, counts in kinds.items() if counts}


def report_of_counters(stored: Mapping[str, Mapping[str, float]]) -> Report:
    """The report that `counters_of` was told of."""
    counters: dict[str, Any] = {kind: Counter(stored.get(kind, {})) for kind in COUNTERS}
    return Report(**counters, seconds=dict(stored.get("seconds", {})))


def shown_stats(total: Report) -> dict[str, float]:
    """All counters under one name each, and speeds per second of a worker's work."""
    counts, seconds = total.counts, total.seconds
    named = {name: count for name, count in counts.items() if name not in _NOT_SHOWN}
    named |= {f"dropped_{reason}": count for reason, count in total.dropped.items()}
    named |= {f"source_{source}": count for source, count in total.sources.items()}
    stats: dict[str, float] = dict(sorted(named.items()))
    if seconds.get("worker"):
        stats["users/s of a worker"] = round(counts["users"] / seconds["worker"], 1)
    if counts["tokens"]:
        stats["tokens/s of a worker"] = round(counts["tokens"] / seconds["rank"])
        stats["padding %"] = round(100 * counts["padding"] / (counts["tokens"] + counts["padding"]), 2)
    if counts["index_compared"]:
        stats["recall of the index"] = round(counts["index_found"] / counts["index_compared"], 4)
    return stats
