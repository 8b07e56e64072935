"""The benchmark of the nightly run by size: its run, and the whole command."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from allmrec.core.artifacts import read_manifest, read_table
from allmrec.core.storage import open_storage
from benchmarks.nightly_scale import ITEMS, generated, main
from tests.jobs.in_process import jobs_in_process


def test_a_generated_run_is_sharded_and_has_a_bundle(tmp_path: Path) -> None:
    with jobs_in_process():
        config = generated(tmp_path, 50, 3, ranker="teacher")
    run = open_storage(config.workspace_uri)
    assert read_manifest(run.at("sequences")).rows == 50 and len(read_manifest(run.at("sequences")).files) == 3
    for items in read_table(run.at("sequences")).column("item_index").to_pylist():
        assert len({*items}) == len(items) >= 2 and 1 <= min(items) <= max(items) <= ITEMS
    assert read_manifest(run.at("bundle")).stats["version"]


@pytest.mark.benchmark
def test_quick(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--quick", "--root", str(tmp_path)])
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "nightly_scale.json").read_text())
    assert [row["what"] for row in content["measurements"]] == ["teacher", "teacher", "first run", "second run"]
    assert content["measurements"][-1]["reused"] == 40 and content["measurements"][-1]["scored_by_llm"] == 0
    assert [bar["holds"] for bar in content["bars"]] == [None] * 2
