"""The state of the nightly runs as Prometheus metrics, read from the store: available while no job runs, too.

What a job counts while it runs is exported by Ray (`jobs.runtime.prometheus`).
"""

from collections.abc import Iterator
from datetime import date, datetime, time
from zoneinfo import ZoneInfo

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from allmrec.core.commit_log import newest_entry
from allmrec.core.storage import Storage
from allmrec.nightly.status import STATES, last_status
from allmrec.publishing.log import published_dates

# Name → what it says, and its label.
METRICS = {
    "allmrec_published_run_date_timestamp_seconds": ("Start of the newest date that is published", None),
    "allmrec_current_run_date_timestamp_seconds": ("Start of the date that readers get", None),
    "allmrec_current_published_timestamp_seconds": ("When readers began to get it", None),
    "allmrec_current_rows": ("Users that readers get", None),
    "allmrec_last_run_date_timestamp_seconds": ("Start of the newest date that was attempted", None),
    "allmrec_last_run_end_timestamp_seconds": ("When the last attempt at it ended", None),
    "allmrec_last_run_duration_seconds": ("How long that attempt took", None),
    "allmrec_last_run_state": ("1 for how it ended, 0 for the other states", "state"),
    "allmrec_last_run_users": ("Users by what made their list", "source"),
    "allmrec_last_run_gate_failed": ("1 for a quality gate that failed", "gate"),
    "allmrec_last_run_figure": ("Figures that have a quality gate", "figure"),
}


class RunsCollector(Collector):
    """METRICS of one output, read at every scrape. What there is not, such as a first run, has no sample."""

    def __init__(self, output: Storage, timezone: str):
        self.output, self.zone = output, ZoneInfo(timezone)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = self._published() | self._last_run()
        for name, (text, label) in METRICS.items():
            family = GaugeMetricFamily(name, text, labels=[label] if label else [])
            for labels, value in found.get(name, {}).items():
                family.add_metric([labels] if label else [], value)
            yield family

    def _published(self) -> dict[str, dict[str, float]]:
        newest, dates = newest_entry(self.output), published_dates(self.output)
        if newest is None or not dates:
            return {}
        return {
            "allmrec_published_run_date_timestamp_seconds": {"": self._start(dates[-1])},
            "allmrec_current_run_date_timestamp_seconds": {"": self._start(date.fromisoformat(newest["run_date"]))},
            "allmrec_current_published_timestamp_seconds": {"": _seconds(newest["published_at"])},
            "allmrec_current_rows": {"": newest["rows"]},
        }

    def _last_run(self) -> dict[str, dict[str, float]]:
        status = last_status(self.output)
        if status is None:
            return {}
        return {
            "allmrec_last_run_date_timestamp_seconds": {"": self._start(date.fromisoformat(status["run_date"]))},
            "allmrec_last_run_end_timestamp_seconds": {"": _seconds(status["ended_at"])},
            "allmrec_last_run_duration_seconds": {"": status["duration_s"]},
            "allmrec_last_run_state": {state: float(state == status["state"]) for state in STATES},
            "allmrec_last_run_users": status.get("users", {}),
            "allmrec_last_run_gate_failed": {
                gate: float(raised) for gate, raised in status.get("gate_failed", {}).items()
            },
            "allmrec_last_run_figure": {
                figure: value for figure, value in status.get("figures", {}).items() if value is not None
            },
        }

    def _start(self, day: date) -> float:
        return datetime.combine(day, time(), self.zone).timestamp()


def runs_registry(output: Storage, timezone: str) -> CollectorRegistry:
    """What an exporter serves."""
    collected = CollectorRegistry(auto_describe=False)
    collected.register(RunsCollector(output, timezone))
    return collected


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
