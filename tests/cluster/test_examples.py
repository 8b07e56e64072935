"""The launcher of VMs and the examples for Airflow and Argo."""

import json
import runpy
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from allmrec.core.version import __version__
from tests.cluster.rendered import CLUSTER, pods
from tests.cluster.schemas import validate

ARGO = CLUSTER / "examples/argo-cronworkflow.yaml"


def test_the_vm_launcher_is_what_ray_up_takes() -> None:
    config = yaml.safe_load((CLUSTER / "vm/aws.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    assert config["docker"]["image"] == f"REGISTRY/allmrec:{__version__}"
    assert config["head_node_type"] in config["available_node_types"]
    assert (CLUSTER.parent / config["file_mounts"]["/home/allmrec/config"] / "config.yaml").is_file()
    assert config["file_mounts"]["/home/allmrec/.ray/auth_token"]
    assert "RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "--dashboard-host 127.0.0.1" in config["head_start_ray_commands"][-1], "the jobs API runs anyone's code"


def test_argos_pod_is_valid_and_only_lost_attempts_are_repeated() -> None:
    spec = yaml.safe_load(ARGO.read_text())["spec"]["workflowSpec"]
    (template,) = spec["templates"]
    container = {"name": "main", **template["container"]}
    pod = {name: spec[name] for name in ("serviceAccountName", "securityContext", "volumes")} | {
        "containers": [container]
    }
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "daily"}, "spec": pod})
    assert container["image"] == f"REGISTRY/allmrec:{__version__}"
    assert "in [1, -1]" in template["retryStrategy"]["expression"]
    (nightly,) = pods(yaml.safe_load((CLUSTER / "components/daily/daily-cronjob.yaml").read_text()))
    for name in ("command", "env", "envFrom"):
        assert container[name] == nightly["containers"][0][name], "the same night, from another scheduler"


class FinalFailure(Exception):
    """Plays AirflowFailException."""


@pytest.fixture
def daily(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The task's function, and the options of its DAG, by a stand-in for Airflow."""
    made: dict[str, Any] = {}

    def decorator(kind: str) -> Any:
        def take(**options: Any) -> Any:
            def keep(function: Any) -> Any:
                made[kind] = SimpleNamespace(function=function, options=options)
                return function if kind == "dag" else lambda: None

            return keep

        return take

    sdk, exceptions = ModuleType("airflow.sdk"), ModuleType("airflow.exceptions")
    sdk.dag, sdk.task = decorator("dag"), decorator("task")  # type: ignore[attr-defined]
    exceptions.AirflowFailException = FinalFailure  # type: ignore[attr-defined]
    for name, module in (("airflow", ModuleType("airflow")), ("airflow.sdk", sdk), ("airflow.exceptions", exceptions)):
        monkeypatch.setitem(sys.modules, name, module)
    runpy.run_path(str(CLUSTER / "examples/airflow_dag.py"))
    assert made["dag"].options["max_active_runs"] == 1 and made["task"].options["retries"]
    return made["task"].function


@pytest.mark.parametrize(
    ("code", "error"), [(0, None), (1, RuntimeError), (2, FinalFailure), (3, FinalFailure), (4, FinalFailure)]
)
def test_airflow_repeats_only_what_another_attempt_may_mend(
    daily: Any, code: int, error: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []

    def run(command: list[str]) -> SimpleNamespace:
        called.append(command)
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, "run", run)
    due = datetime(2026, 11, 21, 1, 30, tzinfo=UTC)
    if error is None:
        daily(due)
    else:
        with pytest.raises(error):
            daily(due)
    assert called[0][:2] == ["allmrec", "submit"] and called[0][-2:] == ["--date", "2026-11-21"]
