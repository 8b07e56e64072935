"""The state of the last run: stored however it ends, and exported whether or not a job runs."""

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from allmrec.core.storage import LocalStorage
from allmrec.nightly.metrics import METRICS, runs_registry
from allmrec.nightly.status import last_status, recording_status
from allmrec.publishing.lease import hold_lease
from allmrec.publishing.log import roll_back
from allmrec.publishing.maintenance import expire
from tests.nightly.conftest import DAY, Shop
from tests.publishing.test_run import NEXT_DAY, nightly

REPORT: dict[str, Any] = {
    "figures": {"users": 24, "sources": {"llm": 20, "teacher": 0, "popular": 4}},
    "quality_gates": [
        {"name": "min_overlap", "figure": "overlap", "value": None, "bound": 0.3, "holds": True, "blocks": True},
        {"name": "min_coverage", "figure": "coverage", "value": 0.25, "bound": 0.5, "holds": False, "blocks": True},
    ],
}


@pytest.fixture
def output(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


def exported(output: LocalStorage, timezone: str = "UTC") -> dict[str, float]:
    """Name and label → value, as Prometheus parses them."""
    text = generate_latest(runs_registry(output, timezone)).decode()
    families = [*text_string_to_metric_families(text)]
    assert [family.name for family in families] == [*METRICS] and all(family.documentation for family in families)
    return {" ".join([s.name, *s.labels.values()]): s.value for family in families for s in family.samples}


def test_nothing_is_published_yet(output: LocalStorage) -> None:
    assert exported(output) == {}


def test_a_published_run(output: LocalStorage) -> None:
    with recording_status(output, DAY, "a") as status:
        nightly(output, Shop(), DAY)
        status.reported({**REPORT, "quality_gates": REPORT["quality_gates"][:1]})
    found = exported(output)
    midnight = 1772323200
    assert found["allmrec_published_run_date_timestamp_seconds"] == midnight
    assert found["allmrec_current_run_date_timestamp_seconds"] == midnight
    assert found["allmrec_current_published_timestamp_seconds"] > midnight and found["allmrec_current_rows"] == 24
    assert found["allmrec_last_run_state published"] == 1 and found["allmrec_last_run_state failed"] == 0
    assert found["allmrec_last_run_users llm"] == 20 and found["allmrec_last_run_users popular"] == 4
    assert found["allmrec_last_run_gate_failed min_overlap"] == 0 and "allmrec_last_run_figure overlap" not in found
    assert 0 <= found["allmrec_last_run_duration_seconds"] < 60
    assert exported(output, "Asia/Tokyo")["allmrec_last_run_date_timestamp_seconds"] == midnight - 9 * 3600


def test_a_failed_gate_and_a_failure_are_told_apart(output: LocalStorage) -> None:
    with pytest.raises(ValueError, match="a gate"), recording_status(output, DAY, "a") as status:
        status.reported(REPORT)
        raise ValueError("a gate")
    assert exported(output)["allmrec_last_run_state gate_failed"] == 1
    assert exported(output)["allmrec_last_run_gate_failed min_coverage"] == 1
    assert exported(output)["allmrec_last_run_figure coverage"] == 0.25
    with pytest.raises(KeyboardInterrupt), recording_status(output, DAY, "a"):
        raise KeyboardInterrupt("s3cret")
    status = last_status(output)
    assert status and (status["state"], status["error"]) == ("failed", "KeyboardInterrupt")
    assert "s3cret" not in str(status), "a message may hold a secret"


def test_advice_that_holds_no_run_back_is_not_why_it_failed(output: LocalStorage) -> None:
    advice = [REPORT["quality_gates"][1] | {"blocks": False}]
    with pytest.raises(OSError), recording_status(output, DAY, "a") as status:
        status.reported({**REPORT, "quality_gates": advice})
        raise OSError("the store is away")
    assert exported(output)["allmrec_last_run_state failed"] == 1
    assert exported(output)["allmrec_last_run_gate_failed min_coverage"] == 1


def test_a_rollback_shows_and_a_backfill_is_not_the_last_run(output: LocalStorage) -> None:
    for day in (DAY, NEXT_DAY):
        nightly(output, Shop(), day)
    for day in (NEXT_DAY, DAY):
        with recording_status(output, day, "a"):
            pass
    status = last_status(output)
    assert status and status["run_date"] == str(NEXT_DAY)
    roll_back(output, DAY)
    found = exported(output)
    current, published = (found[f"allmrec_{which}_run_date_timestamp_seconds"] for which in ("current", "published"))
    assert published - current == 24 * 3600


def test_a_status_that_cannot_be_stored_does_not_fail_the_run(output: LocalStorage, monkeypatch) -> None:
    def refuse(key: str, data: bytes) -> None:
        raise OSError("the store is away")

    monkeypatch.setattr(output, "write", refuse)
    with recording_status(output, DAY, "a"):
        pass
    assert last_status(output) is None


def test_expire_takes_the_status(output: LocalStorage) -> None:
    for day in (DAY, NEXT_DAY):
        nightly(output, Shop(), day)
    with recording_status(output, DAY, "a"):
        pass
    with hold_lease(output, DAY, 0.2) as lease:
        expire(output, DAY, lease)
    assert last_status(output) is None
