"""`allmrec expire` as a user types it: it deletes what the config does not keep, lists it, and does so once."""

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner, Result

from allmrec.core.artifacts import writing
from allmrec.core.columns import to_lists
from allmrec.core.storage import LocalStorage
from allmrec.core.workspace import Workspace
from allmrec.publishing.lease import hold_lease
from allmrec.publishing.log import published_dates, roll_back
from allmrec.publishing.maintenance import TRIALS
from allmrec.publishing.run import Run
from allmrec.text.cache import TextCache
from allmrec.text.encoder import TextConfig, encoder_identity
from jobs.cli import app
from schemas import items
from tests.jobs.in_process import driver_reads_no_table, jobs_in_process
from tests.nightly.conftest import DAY, Shop
from tests.publishing.test_run import IDENTITY, nightly
from tests.test_retention import add_bundle

DAYS = [DAY + timedelta(number) for number in range(4)]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Four dates by the bundle v1, which was promoted first; an older date that was never published; two trials."""
    workspace, output = Workspace(LocalStorage(tmp_path / "shop")), LocalStorage(tmp_path / "out")
    for version in ("v1", "v2", "v3"):
        add_bundle(workspace, version)
    for day in DAYS:
        nightly(output, Shop(), day)
        output.write(f"_inputs/run_date={day}/run/part-00000.parquet", b"")
        output.write(f"_reports/run_date={day}/report.json", b"")
    begun = Run.open(output, DAY - timedelta(1), IDENTITY)
    begun.commit_shard(0, Shop().table(0, begun.run_id, begun.run_date))
    for day in DAYS[:2]:
        nightly(output.at(TRIALS), Shop(), day)
    path = tmp_path / "config.yaml"
    settings = {"name": "shop", "root": str(tmp_path), "nightly": {"output": str(tmp_path / "out"), "lease_s": 0.3}}
    path.write_text(yaml.safe_dump(settings))
    return path


def call(config: Path, *arguments: str, **retention: int | str) -> Result:
    sets = [f"--set=retention.{name}={value}" for name, value in retention.items()]
    return CliRunner().invoke(app, ["expire", "--config", str(config), "--log-json", *sets, *arguments])


def expired(result: Result) -> dict[str, list[str]]:
    assert result.exit_code == 0, result.output
    return {one["kind"]: one["deleted"] for one in map(json.loads, result.stdout.splitlines()) if "kind" in one}


def test_what_is_not_kept_goes_and_a_second_time_there_is_nothing_to_do(config: Path) -> None:
    output = LocalStorage(config.parent / "out")
    before = [entry.key for entry in output.list()]
    plan = [json.loads(line) for line in call(config, "--dry-run", runs=2, trials=1, bundles=1).stdout.splitlines()]
    listed = {one["verb"]: one["would_delete"] for one in plan}
    gone = [str(DAY - timedelta(1)), *map(str, DAYS[:2])]
    assert listed["expire runs"] == ", ".join(gone) and listed["expire trials"] == str(DAYS[0])
    assert listed["expire bundles"] == "v2" and [entry.key for entry in output.list()] == before
    found = expired(call(config, runs=2, trials=1, bundles=1))
    assert found["runs"] == gone and found["trials"] == gone[1:2] and found["bundles"] == ["v2"]
    assert found["work of runs"] == [str(day) for day in DAYS[2:]]
    assert published_dates(output) == DAYS[2:] and published_dates(output.at(TRIALS)) == DAYS[1:2]
    left = [entry.key for entry in output.list()]
    assert not [key for key in left for day in gone if f"run_date={day}/" in key and not key.startswith(TRIALS)]
    assert all("/lease/" in key for key in left if key.startswith("_runs/"))
    again = expired(call(config, runs=2, trials=1, bundles=1))
    assert not any(again.values()) and [entry.key for entry in output.list()] == left, "nothing is added"


def test_the_current_run_and_what_is_being_made_stay(config: Path) -> None:
    output = LocalStorage(config.parent / "out")
    roll_back(output, DAYS[1])
    with hold_lease(output, DAYS[0], 0.3):
        result = call(config, runs=1)
    held = next(one for one in map(json.loads, result.stdout.splitlines()) if one.get("kind") == "runs")
    assert held["deleted"] == [str(DAY - timedelta(1))] and "being made by process" in held["skipped"][str(DAYS[0])]
    assert published_dates(output) == DAYS
    assert expired(call(config, runs=1))["runs"] == [str(DAYS[0])]
    assert published_dates(output) == DAYS[1:], "from the current one on"


def test_texts_that_no_item_has_are_looked_for_by_a_task(config: Path) -> None:
    workspace, encoder = Workspace(LocalStorage(config.parent / "shop")), config.parent / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text("{}")
    cache = TextCache.of(workspace.storage, encoder_identity(TextConfig(model=str(encoder))))
    kept, gone = (cache.write(pa.array([text]), to_lists(np.ones((1, 2), np.float32))) for text in ("x", "y"))
    row = {"item_id": "i", "title": "t", "item_index": 1, "popularity": 0, "interactions": 0, "text_hash": "x"}
    with writing(workspace.items, "items", "test") as out:
        out.table(0, items.SCHEMA, pa.Table.from_pylist([row], items.SCHEMA))
    with jobs_in_process(), driver_reads_no_table():
        found = expired(call(config, f"--set=text.model={encoder}", text_cache="current"))
    assert [key.rpartition("/")[2] for key in found["texts"]] == [gone]
    assert [entry.key for entry in cache.storage.list()] == [kept]


def test_a_config_that_keeps_everything_is_told_so(config: Path) -> None:
    result = call(config)
    assert result.exit_code == 2 and "set retention.runs" in json.loads(result.stdout.splitlines()[-1])["error"]
