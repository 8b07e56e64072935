"""What running jobs export to Prometheus through Ray's metrics agent, which prefixes the names with `ray_`.

Series end with their job; where Ray runs without the agent they are not collected. What must outlive the job is in
`allmrec.nightly.metrics`.
"""

import datetime
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from allmrec.core.shard_tasks import Report

# Counter → what a shard's report calls it, and the help text.
_COUNTED = {
    "users": ("users", "Users that have a row"),
    "users_reused": ("reused", "Users whose row is the previous run's"),
    "users_scored_by_llm": ("scored_by_llm", "Users ranked by the LLM"),
    "tokens": ("tokens", "Tokens of prompts"),
    "padding_tokens": ("padding", "Tokens of padding"),
}
_SECONDS = {
    "worker_seconds": ("worker", "Time of all workers"),
    "rank_seconds": ("rank", "Time of all workers with the LLM"),
}
# What a training loop reports → gauge and help text.
_SPEEDS = {
    "prompts_per_s": ("prompts_per_second", "Prompts trained on"),
    "tokens_per_s": ("tokens_per_second", "Tokens read"),
    "users_per_s": ("users_per_second", "Users trained on"),
    "interactions_per_s": ("interactions_per_second", "Interactions trained on"),
}
# What it reports as losses: the only one, or the parts of equation 6.
_LOSSES = {"loss": "all", "matching": "matching", "item_recon": "item_recon", "text_recon": "text_recon", "rec": "rec"}


class NightlyMetrics:
    """Counters of what was done, a gauge of how many shards are. Every series carries the run's date."""

    def __init__(self, run_date: datetime.date):
        self.tags = {"run_date": str(run_date)}
        self.counters = {
            name: Counter(f"allmrec_nightly_{name}_total", text, ("run_date",))
            for name, (_, text) in (_COUNTED | _SECONDS).items()
        }
        self.shards = Gauge("allmrec_nightly_shards", "Shards by state", ("run_date", "state"))

    def shard_done(self, report: Report, done: int, total: int) -> None:
        values: dict[str, float] = {name: report.counts[key] for name, (key, _) in _COUNTED.items()}
        values |= {name: report.seconds.get(phase, 0) for name, (phase, _) in _SECONDS.items()}
        for name, value in values.items():
            if value:
                self.counters[name].inc(value, self.tags)
        self.shards.set(done, {**self.tags, "state": "done"})
        self.shards.set(total - done, {**self.tags, "state": "pending"})


class TrainingMetrics:
    """Gauges of what a training verb last reported."""

    def __init__(self, verb: str):
        self.tags = {"verb": verb}
        self.speeds = {key: Gauge(f"allmrec_training_{name}", text, ("verb",)) for key, (name, text) in _SPEEDS.items()}
        self.loss = Gauge("allmrec_training_loss", "Mean loss since the last report", ("verb", "part"))
        self.progress = Gauge("allmrec_training_progress_ratio", "Share of the training that is done", ("verb",))

    def reported(self, progress: float, numbers: Mapping[str, Any]) -> None:
        self.progress.set(progress, self.tags)
        for key in self.speeds.keys() & numbers.keys():
            self.speeds[key].set(numbers[key], self.tags)
        for key in _LOSSES.keys() & numbers.keys():
            self.loss.set(numbers[key], {**self.tags, "part": _LOSSES[key]})


class PrepareMetrics:
    """Rows of the input tables, used and rejected."""

    def __init__(self) -> None:
        self.used = Counter("allmrec_prepare_used_rows_total", "Rows that are used", ("table",))
        self.rejected = Counter("allmrec_prepare_rejected_rows_total", "Rows that are rejected", ("table", "reason"))

    def read(self, table: str, used: int, reasons: Mapping[str, int]) -> None:
        """Count a table's rows; `reasons` says why how many were rejected."""
        if used:
            self.used.inc(used, {"table": table})
        for reason, count in reasons.items():
            self.rejected.inc(count, {"table": table, "reason": reason})
