"""The nightly run's numbers for Prometheus, through Ray's own exporter: set as the shards come in.

Ray prefixes the names with `ray_`. Where Ray runs without its metrics agent they are not collected.
"""

import datetime
from typing import Any

from ray.util.metrics import Counter, Gauge

from allmrec.core.shard_tasks import Report

_COUNTED = ("users", "reused", "scored_by_llm", "tokens", "padding")
_SECONDS = {"worker_seconds": "worker", "seconds_rank": "rank"}  # the series' name → the phase


class NightlyMetrics:
    """Counters of what was done, gauges of the run's state. Every series carries the run's date."""

    def __init__(self, run_date: datetime.date):
        self.tags = {"run_date": str(run_date)}
        self.counters = {
            name: Counter(f"allmrec_nightly_{name}_total", f"{name} of the nightly run", ("run_date",))
            for name in (*_COUNTED, *_SECONDS)
        }
        self.shards = Gauge("allmrec_nightly_shards", "Shards by state", ("run_date", "state"))
        self.figures = Gauge(
            "allmrec_nightly_figure", "Figures of the report that have a quality gate", ("run_date", "figure")
        )
        self.gates = Gauge("allmrec_nightly_gate_failed", "1 for a quality gate that failed", ("run_date", "gate"))

    def shard_done(self, report: Report, done: int, total: int) -> None:
        values: dict[str, float] = {name: report.counts[name] for name in _COUNTED}
        values |= {name: report.seconds.get(phase, 0) for name, phase in _SECONDS.items()}
        for name, value in values.items():
            if value:
                self.counters[name].inc(value, self.tags)
        self.shards.set(done, {**self.tags, "state": "done"})
        self.shards.set(total - done, {**self.tags, "state": "pending"})

    def reported(self, quality_gates: list[dict[str, Any]]) -> None:
        for gate in quality_gates:
            if gate["value"] is not None:
                self.figures.set(gate["value"], {**self.tags, "figure": gate["figure"]})
            self.gates.set(0 if gate["holds"] else 1, {**self.tags, "gate": gate["name"]})
