"""Trainings as runs of MLflow, in a store of files; skipped where its client is not installed."""

import logging
import sys
from pathlib import Path

import pytest

from allmrec.core.tracking import IDENTITY, MLflowConfig, TrackedRun, check, flat_params, tracked_run, tracking

SETTINGS = {
    "name": "shop",
    "teacher": {"dim": 8, "preset": None},
    "data": {"interactions": {"paths": ["https://ann:hunter2hunter2@store/log.csv?X-Amz-Signature=abcdef"]}},
    "storage": {"endpoint_url": "https://ann:hunter2hunter2@store"},
    "mlflow": {"tracking_uri": "https://ann:hunter2hunter2@mlflow"},
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MLflowConfig:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return MLflowConfig(tracking_uri=tmp_path.as_uri(), experiment="nights")


def test_a_training_is_one_run_that_resumes_and_takes_its_evaluation(config: MLflowConfig) -> None:
    with pytest.raises(RuntimeError), tracking(config, "shop train-cf", "abc", SETTINGS) as run:
        run.metrics({"loss": 2.0, "prompts_per_s": 7, "nan": float("nan"), "files": {}, "done": True}, step=1)
        raise RuntimeError("the workers are lost")
    first = run.client.get_run(run.run_id)
    assert first.info.status == "FAILED" and first.info.run_name == "shop train-cf"
    with tracking(config, "shop train-cf", "abc", SETTINGS | {"name": "ignored"}) as run:
        assert run.client.get_run(run.run_id).info.status == "RUNNING"
        run.metrics({"loss": 1.0}, step=2)
    evaluated = tracked_run(config, "shop train-cf", "abc", SETTINGS)
    evaluated.metrics({"random/teacher/hit@1": 0.5}, prefix="evaluation/")
    evaluated.text("report.html", "<html>")
    found = evaluated.client.get_run(evaluated.run_id)
    assert found.info.run_id == first.info.run_id and found.info.status == "FINISHED"
    assert found.data.tags[IDENTITY] == "abc"
    assert found.data.params == flat_params(SETTINGS)
    assert found.data.metrics == {"loss": 1.0, "prompts_per_s": 7.0, "evaluation/random/teacher/hit_at_1": 0.5}
    losses = evaluated.client.get_metric_history(found.info.run_id, "loss")
    assert [(one.step, one.value) for one in losses] == [(1, 2.0), (2, 1.0)]
    assert [file.path for file in evaluated.client.list_artifacts(found.info.run_id)] == ["report.html"]
    with tracking(config, "shop train-cf", "other", SETTINGS) as other:
        assert other.run_id != found.info.run_id


def test_a_server_that_does_not_answer_costs_a_warning(config: MLflowConfig, caplog) -> None:
    away = config.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    with caplog.at_level(logging.WARNING, "allmrec.core.tracking"), tracking(away, "shop", "abc", SETTINGS) as run:
        run.metrics({"loss": 1.0})
    assert "shop is not recorded" in caplog.text
    run = tracked_run(config, "shop", "abc", SETTINGS)
    run.run_id = "gone"
    run.metrics({"loss": 1.0})
    run.text("report.html", "<html>")
    assert caplog.text.count("the rest of run gone is not recorded") == 1, "and is not asked again"


def test_params_are_flat_and_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "MARKED-secret")
    found = flat_params(SETTINGS | {"nightly": {"output": "s3://MARKED-secret/out", "top@k": 5}})
    assert found == {
        "name": "shop",
        "teacher.dim": "8",
        "data.interactions.paths": "['https://***@store/log.csv?X-Amz-Signature=***']",
        "nightly.output": "s3://***/out",
        "nightly.top_at_k": "5",
    }


def test_without_the_section_nothing_is_recorded_and_without_mlflow_it_is_refused(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    check(None)
    with tracking(None, "shop", "abc", SETTINGS) as run:
        run.metrics({"loss": 1.0})
        run.text("report.html", "<html>")
    assert isinstance(run, TrackedRun) and run.client is None
    with pytest.raises(ValueError, match=r"pip install 'allmrec\[mlflow\]'"):
        check(MLflowConfig())
