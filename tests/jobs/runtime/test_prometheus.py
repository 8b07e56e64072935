"""What jobs export while they run: the values that they report, under names with units."""

import datetime
from collections import Counter
from typing import Any

import pytest

from allmrec.core.shard_tasks import Report
from jobs.runtime import prometheus


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Name and label values → value, of every metric that is made meanwhile."""
    values: dict[str, float] = {}

    class Metric:
        def __init__(self, name: str, text: str, tag_keys: tuple[str, ...]):
            self.name, self.tag_keys = name, tag_keys

        def _key(self, tags: dict[str, str]) -> str:
            assert {*tags} == {*self.tag_keys}
            return " ".join([self.name, *tags.values()])

        def set(self, value: float, tags: dict[str, str]) -> None:
            values[self._key(tags)] = value

        def inc(self, value: float, tags: dict[str, str]) -> None:
            assert value > 0, "as Ray demands"
            values[self._key(tags)] = values.get(self._key(tags), 0) + value

    monkeypatch.setattr(prometheus, "Counter", Metric)
    monkeypatch.setattr(prometheus, "Gauge", Metric)
    return values


def test_training(exported: dict[str, float]) -> None:
    metrics = prometheus.TrainingMetrics("train-projection")
    metrics.reported(0.25, {"loss": 2.5, "prompts_per_s": 5.8, "padding %": 1.0, "step": 4})
    metrics.reported(0.5, {"loss": 2.0, "prompts_per_s": 6.0, "hit@1": 0.3})
    assert exported == {
        "allmrec_training_progress_ratio train-projection": 0.5,
        "allmrec_training_loss train-projection all": 2.0,
        "allmrec_training_prompts_per_second train-projection": 6.0,
    }


def test_the_parts_of_equation_6(exported: dict[str, float]) -> None:
    prometheus.TrainingMetrics("train-alignment").reported(1, {"matching": 0.1, "rec": 0.7, "users_per_s": 9})
    assert exported["allmrec_training_loss train-alignment matching"] == 0.1
    assert exported["allmrec_training_loss train-alignment rec"] == 0.7


def test_rejected_rows(exported: dict[str, float]) -> None:
    prometheus.PrepareMetrics().read("interactions", 90, Counter(malformed=7, unknown_item=3))
    prometheus.PrepareMetrics().read("items", 0, {})
    assert exported == {
        "allmrec_prepare_used_rows_total interactions": 90,
        "allmrec_prepare_rejected_rows_total interactions malformed": 7,
        "allmrec_prepare_rejected_rows_total interactions unknown_item": 3,
    }


def test_shards_of_a_run(exported: dict[str, float]) -> None:
    report: Any = Report()
    report.counts.update(users=10, reused=4, tokens=100)
    report.seconds.update(worker=3.5)
    metrics = prometheus.NightlyMetrics(datetime.date(2026, 11, 21))
    metrics.shard_done(report, 1, 3)
    metrics.shard_done(report, 2, 3)
    assert exported["allmrec_nightly_users_total 2026-11-21"] == 20
    assert exported["allmrec_nightly_users_reused_total 2026-11-21"] == 8
    assert exported["allmrec_nightly_worker_seconds_total 2026-11-21"] == 7
    assert exported["allmrec_nightly_shards 2026-11-21 done"] == 2
    assert exported["allmrec_nightly_shards 2026-11-21 pending"] == 1
