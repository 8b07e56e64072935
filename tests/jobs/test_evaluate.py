"""`bundle` and `evaluate` on Ray: metrics.json, the report and the table, whatever the number of workers."""

import json
import re
from dataclasses import replace

import pytest

from allmrec.bundle.versions import latest_bundle
from allmrec.core.artifacts import MANIFEST, read_manifest, read_table
from allmrec.core.storage import Storage
from allmrec.core.tracking import IDENTITY, MLflowConfig
from jobs import bundle, evaluate
from jobs.config import Config
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from tests.evaluation.tiny import NUM_USERS, tiny_config
from tests.jobs.in_process import driver_reads_no_table, jobs_in_process

pytestmark = pytest.mark.usefixtures("in_process")


def events(capsys, name: str) -> list[dict]:
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    return [line for line in lines if line["event"] == name]


@pytest.mark.on_ray
def test_evaluate(tiny_workspace, capsys):
    config, storage = tiny_workspace
    console = Console(log_json=True)
    with jobs_in_process():
        check_evaluation(config, storage, console, capsys)
    more = config.model_copy(update={"workers": config.workers.model_copy(update={"num_workers": 2})})
    metrics, results = storage.read("metrics.json"), read_table(storage.at("evaluation_results"))
    with driver_reads_no_table():
        assert execute(evaluate.STEP, more, console, force=True)
    assert storage.read("metrics.json") == metrics, "two workers on Ray, the same numbers"
    assert read_table(storage.at("evaluation_results")).equals(results)


def check_evaluation(config: Config, storage: Storage, console: Console, capsys) -> None:
    execute(evaluate.STEP, config, console, dry_run=True)
    (planned,) = events(capsys, "plan")
    assert planned["up to date"] is False and not storage.exists("metrics.json")

    with driver_reads_no_table():
        assert execute(evaluate.STEP, config, console)
    out = capsys.readouterr().out
    metrics = json.loads(storage.read("metrics.json"))
    systems = list(config.evaluation.systems)
    documented = ("system", "protocol", "subset", "metric", "value", "stderr", "count")
    paired = ("baseline", "difference", "low", "high", "pairs")
    assert {tuple(row) for row in metrics} == {(*documented, "tied", "by_text", *paired, "seed")}
    assert len(metrics) == len(systems) * 3 * 3 * 4 + 3 * 3 * 5
    sampled, differences, full = (json.loads(line)["rows"] for line in out.splitlines()[-4:-1])
    assert [row["system"] for row in sampled] == [row["system"] for row in differences] == systems
    by_teacher = next(row for row in differences if row["system"] == "teacher")
    assert by_teacher["hit@1"] == "–" and re.fullmatch(r"[+-]\d\.\d{3} \[.*, .*\]", by_teacher["swap"])
    assert [row["system"] for row in full] == ["random", "popularity", "teacher"]
    assert {"ndcg@10", "recall@20", "cold recall@20"} <= full[0].keys()
    assert planned["cases"] == sum(
        row["count"] for row in metrics if (row["subset"], row["metric"]) == ("all", "hit@1")
    )
    done = json.loads(out.splitlines()[-1])
    assert done["tokens/s of a worker"] > 0 and 0 <= done["padding %"] < 100

    page = storage.read("report.html").decode()
    assert config.llm.name in page and f"<td>{NUM_USERS}</td>" in page and latest_bundle(storage) in page
    for name in ("metrics.json", "report.html"):
        assert storage.read(name) == storage.read(f"evaluation/{name}")
    assert read_manifest(storage.at("evaluation")).stats["bundle"] == latest_bundle(storage)
    results = read_table(storage.at("evaluation_results"))
    assert results.num_rows == planned["cases"] and planned["answers"] == 0

    assert not execute(evaluate.STEP, config, console), "nothing has changed"


def test_only_the_systems_asked_for(tiny_workspace):
    _, storage = tiny_workspace
    some = tiny_config(storage.root.parent, evaluation={"systems": ["teacher", "random"]})
    execute(evaluate.STEP, some, Console(log_json=True))
    assert {row["system"] for row in json.loads(storage.read("metrics.json"))} == {"teacher", "random"}


def test_without_a_test_user_earlier_results_stay(tiny_workspace):
    _, storage = tiny_workspace
    config = tiny_config(storage.root.parent, evaluation={"systems": ["teacher", "random"]})
    execute(evaluate.STEP, config, Console(log_json=True))
    results, cases = read_manifest(storage.at("evaluation_results")), read_manifest(storage.at("evaluation_cases"))
    none = replace(cases, files={}, stats=cases.stats | {"test": 0})
    storage.at("evaluation_cases").write(MANIFEST, none.to_json())
    with pytest.raises(ValueError, match="no user has a held-out item"):
        execute(evaluate.STEP, config, Console(log_json=True))
    storage.at("evaluation_cases").write(MANIFEST, cases.to_json())
    assert read_manifest(storage.at("evaluation_results")) == results


def test_histories_in_a_drawn_order_where_the_config_asks_for_them(tiny_workspace, capsys):
    _, storage = tiny_workspace
    requested = {"systems": ["teacher", "popularity"]}
    found = []
    for more in ({}, {"shuffle": True}):
        some = tiny_config(storage.root.parent, evaluation=requested | more)
        execute(evaluate.STEP, some, Console(log_json=True), dry_run=True)
        execute(evaluate.STEP, some, Console(log_json=True), force=True)
        found.append(json.loads(storage.read("metrics.json")))
    plain, shuffled = found
    assert [row for row in shuffled if row["protocol"] != "shuffle"] == plain
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    planned = [line for line in said if line["event"] == "plan"][-1]
    sampled, differences, _ = [line for line in said if line["event"] == "table"][-3:]
    assert planned["cases"] == sum(
        row["count"] for row in shuffled if (row["subset"], row["metric"]) == ("all", "hit@1")
    )
    by_popularity, by_teacher = sorted(sampled["rows"], key=lambda row: row["system"])
    assert by_popularity["cosine"] == "–" and by_teacher["cosine"].startswith("0.")
    assert "shuffle: to itself with the true order" in differences["title"] and "cosine" not in differences["rows"][0]


def test_llm_systems_write_for_some_users(tiny_workspace, capsys):
    _, storage = tiny_workspace
    requested = {"systems": ["teacher", "llm-only"], "baseline": "llm-only", "generation_users": 20}
    some = tiny_config(storage.root.parent, evaluation=requested)
    execute(evaluate.STEP, some, Console(log_json=True))
    written = [row for row in json.loads(storage.read("metrics.json")) if row["protocol"] == "generation"]
    assert [row["metric"] for row in written if row["subset"] == "all"] == ["named", "hit@1", "hit@1 substring"]
    assert {row["system"] for row in written} == {"llm-only"} and 10 < written[0]["count"] < 30
    table = events(capsys, "table")[-1]
    assert table["title"] == "held-out item in what the LLM writes" and table["rows"][0]["named"].startswith("0.")
    assert "llm-only, writing" in storage.read("report.html").decode()


def test_another_llm_is_refused(tiny_workspace, tmp_path):
    config, _ = tiny_workspace
    other = config.model_copy(update={"llm": config.llm.model_copy(update={"name": str(tmp_path)})})
    with pytest.raises(ValueError, match="trained into the LLM"):
        execute(evaluate.STEP, other, Console(log_json=True))


def test_bundle_points_to_its_version_and_is_skipped_when_nothing_changed(tiny_workspace, capsys):
    config, storage = tiny_workspace
    assert storage.exists(f"bundles/{latest_bundle(storage)}/bundle.json")
    assert not execute(bundle.STEP, config, Console(log_json=True))
    execute(bundle.STEP, config, Console(log_json=True), dry_run=True)
    assert events(capsys, "plan")[0]["up to date"] is True
    assert read_manifest(storage.at("bundle")).stats["version"] == latest_bundle(storage)


def test_evaluate_waits_for_the_bundle(tmp_path, capsys):
    execute(evaluate.STEP, tiny_config(tmp_path), Console(log_json=True), dry_run=True)
    assert "bundle" in events(capsys, "plan")[0]["waits for"]
    with pytest.raises(ValueError, match="run the step that writes it first"):
        execute(evaluate.STEP, tiny_config(tmp_path), Console(log_json=True))
    assert not (tmp_path / "tiny" / "evaluation" / MANIFEST).exists()


def test_mlflow_has_the_figures_and_the_report_with_the_training(
    tiny_workspace, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config, storage = tiny_workspace
    config = config.model_copy(update={"mlflow": MLflowConfig(tracking_uri=tmp_path.as_uri())})
    assert execute(evaluate.STEP, config, Console(log_json=True), force=True)
    client = tracking.MlflowClient(tracking_uri=tmp_path.as_uri())
    experiment = client.get_experiment_by_name(config.mlflow.experiment)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags[IDENTITY] == read_manifest(storage.at("projectors")).fingerprint
    assert run.data.params["name"] == config.name
    figures = [row for row in json.loads(storage.read("metrics.json")) if row["subset"] == "all"]
    assert len(run.data.metrics) == sum(row["value"] is not None for row in figures)
    assert 0 <= run.data.metrics["evaluation/random/a-llmrec/hit_at_1"] <= 1
    assert "report.html" in [file.path for file in client.list_artifacts(run.info.run_id)]
