"""Alert rules and the dashboard use metrics that exist."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from allmrec.nightly.metrics import METRICS
from jobs.runtime import prometheus
from tests.cluster.rendered import CLUSTER

RULES, DASHBOARD = CLUSTER / "monitoring/alerts.yaml", CLUSTER / "monitoring/dashboard.json"


@pytest.fixture
def existing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The metrics of the exporter, and those that jobs make through Ray, which prefixes them."""
    names = {*METRICS}

    class Metric:
        def __init__(self, name: str, text: str, tag_keys: tuple[str, ...]):
            assert text and tag_keys
            names.add(f"ray_{name}")

    monkeypatch.setattr(prometheus, "Counter", Metric)
    monkeypatch.setattr(prometheus, "Gauge", Metric)
    prometheus.NightlyMetrics("2026-11-21")  # type: ignore[arg-type]
    prometheus.TrainingMetrics("train-cf")
    prometheus.PrepareMetrics()
    return names


def expressions() -> Iterator[str]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def test_every_metric_that_a_rule_or_a_panel_uses_exists(existing: set[str]) -> None:
    used = {name for expression in expressions() for name in re.findall(r"\b(?:ray_)?allmrec_\w+", expression)}
    assert len(used) > 15 and used <= existing, used - existing


def test_names_follow_prometheus_conventions(existing: set[str]) -> None:
    for name in existing:
        assert re.fullmatch(r"[a-z_]+", name)
        assert name.endswith("_timestamp_seconds") or not re.search(r"_(s|ms|mb|pct|percent|timestamp)$", name)


def test_every_alert_says_what_to_do() -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert {"AllmrecNightLate", "AllmrecNightMissing", "AllmrecQualityGateFailed", "AllmrecShrinking"} <= {
        rule["alert"] for rule in rules
    }
    for rule in rules:
        assert rule["labels"]["severity"] and {*rule["annotations"]} == {"summary", "description"}


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    assert dashboard["title"] and dashboard["uid"] and dashboard["schemaVersion"] >= 36 and "id" not in dashboard
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, f"{panel['title']} overlaps another panel"
        taken |= cells
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_alerts_fire_when_they_should() -> None:
    cases = Path(__file__).with_name("alerts_test.yaml")
    done = subprocess.run(["promtool", "test", "rules", str(cases)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
