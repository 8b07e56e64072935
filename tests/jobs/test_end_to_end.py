"""From a raw log to recommendations that DuckDB and pandas read from S3: the console's verbs, as a user types them."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
import yaml
from typer.testing import CliRunner, Result

from allmrec.__main__ import console
from allmrec.core.artifacts import read_table
from allmrec.core.storage import S3Config, open_storage

USERS, DATE = 64, "2026-11-20"
STEPS = ("prepare", "embed", "train-cf", "train-alignment", "train-projection", "bundle", "nightly", "evaluate")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, s3: S3Config) -> tuple[Path, Path, str]:
    """(config file, folder of the run, where recommendations go), with a dirty sample store as the input."""
    from tests.s3_fixtures import new_bucket

    root, output = tmp_path_factory.mktemp("runs"), new_bucket(s3, "prefix")
    arguments = ["--users", str(USERS), "--items", "40", "--dirty", "0.04"]
    assert call("sample-data", "--output", str(root / "input"), *arguments).exit_code == 0
    settings = {
        "name": "e2e",
        "root": str(root),
        "data": {
            "interactions": {"paths": [str(root / "input/movies/interactions.parquet")]},
            "items": {"paths": [str(root / "input/movies/items.parquet")]},
            "num_shards": 3,
        },
        "text": {"model": str(root / "e2e/models/encoder")},
        "llm": {"name": str(root / "e2e/models/llm"), "placement": "sharded"},
        "prompt": {"max_history": 4},
        "teacher": {"epochs": 4, "dim": 16},
        "alignment": {"epochs": 2},
        "projection": {"epochs": 1, "batch_size": 32, "num_candidates": 5, "soft_token_scale": 0.1},
        "evaluation": {"num_negatives": 9, "max_users": 20},
        "nightly": {"output": output, "num_candidates": 8, "top_k": 5},
        "workers": {"num_workers": 1},  # two of each kind are the business of the verbs' own tests
        "storage": s3.model_dump(mode="json"),
    }
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path, root / "e2e", output


def call(*arguments: str) -> Result:
    return CliRunner().invoke(console(), list(arguments), catch_exceptions=False)


def events(result: Result, name: str) -> list[dict]:
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return [line for line in lines if line["event"] == name]


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_the_whole_run_and_again(deployment: tuple[Path, Path, str], s3: S3Config, monkeypatch: pytest.MonkeyPatch):
    config, run, output = deployment
    options = ("--config", str(config), "--log-json")

    planned = call("run", *options, "--date", DATE, "--dry-run")
    assert planned.exit_code == 0 and not run.exists(), "a dry run touches nothing"
    assert [plan["verb"] for plan in events(planned, "plan")] == list(STEPS)

    for verb in (("prepare",), ("standin", "encoder"), ("standin", "llm"), ("run", "--date", DATE)):
        result = call(*verb, *options)
        assert result.exit_code == 0, result.output
    done = {line["verb"]: line for line in events(result, "done")}
    assert set(done) == set(STEPS) - {"prepare"}, "prepare was done already"
    assert done["nightly"]["users"] == USERS and done["train-projection"]["placement"] == "sharded"
    metrics = json.loads((run / "metrics.json").read_text())
    systems = {"random", "popularity", "teacher", "llm-only", "a-llmrec", "a-llmrec-untrained", "a-llmrec-sbert"}
    assert {row["system"] for row in metrics} == systems
    assert {row["protocol"] for row in metrics} == {"random", "matched", "swap", "full"}
    assert all(0 <= row["value"] <= 1 for row in metrics if row["value"] is not None)
    assert "a-llmrec-sbert" in (run / "report.html").read_text()

    # A date's folder on S3, once it is published.
    monkeypatch.setenv("AWS_ENDPOINT_URL", str(s3.endpoint_url))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    folder = f"{output}/run_date={DATE}/"
    by_pandas = pd.read_parquet(folder)
    by_duckdb = duckdb.from_arrow(ds.dataset(folder)).project("user_id, unnest(items, recursive := true)").df()
    assert len(by_pandas) == USERS and len(by_duckdb) == 5 * USERS
    assert np.array_equal(np.sort(by_duckdb["user_id"].unique()), np.sort(by_pandas["user_id"].to_numpy()))

    again = call("run", *options, "--date", DATE)
    assert [line["verb"] for line in events(again, "skip")] == list(STEPS), "nothing has changed"


@pytest.mark.e2e
def test_what_was_dirty_is_accounted_for(deployment: tuple[Path, Path, str]) -> None:
    _, run, _ = deployment
    rejected = read_table(open_storage(str(run)).at("rejected"))
    assert rejected.num_rows > 0
    assert {"null_id", "unknown_item", "bad_timestamp", "duplicate_event"} <= set(rejected["reason"].to_pylist())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.interactions.paths=[nowhere.parquet]", "interactions: no such path: nowhere.parquet"),
        ("data.interactions.columns={user_id: customer}", "column 'customer' is missing"),
        ("data.interactions.pahts=[]", "did you mean 'paths'"),
        ("root=ftp://somewhere", "unknown scheme 'ftp'"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(deployment: tuple[Path, Path, str], override: str, message: str) -> None:
    config, _, _ = deployment
    result = call("prepare", "--config", str(config), "--set", override)
    assert result.exit_code == 2
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1
