"""The benchmark of `prepare`: its log, its measure of memory, that the engines agree, and the whole command."""

import json
import subprocess
import sys

import polars as pl
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import generated_log
from benchmarks.generated_log import GeneratedLog
from benchmarks.memory import held, peak
from benchmarks.prepare import main, popularity, reasons, refuse_difference, sequences
from benchmarks.prepare_engines import duckdb


@pytest.fixture
def log(tmp_path, monkeypatch) -> GeneratedLog:
    monkeypatch.setattr(generated_log, "ROWS_PER_FILE", 12_000)
    log = GeneratedLog(30_000, tmp_path)
    log.write()
    return log


def made(engine: str, log: GeneratedLog, output):
    """In a process of its own: Polars' threads are set once."""
    command = [sys.executable, "-m", "benchmarks.prepare_engines", engine, str(log.folder), str(output)]
    subprocess.run(command, check=True)
    return output


def test_a_log_is_the_same_each_time_and_has_what_logs_have(log, tmp_path):
    assert [pq.read_metadata(file).num_rows for file in log.files()] == [12_000, 12_000, 6_000]
    again = GeneratedLog(30_000, tmp_path / "again")
    again.root.mkdir()
    again.write()
    assert [file.read_bytes() for file in log.files()] == [file.read_bytes() for file in again.files()]
    events = pl.read_parquet(log.files())
    assert events["item_id"].value_counts()["count"].max() > 10 * events.height / 150  # Zipf
    good = events.drop_nulls()
    assert good.select("user_id", "timestamp").is_duplicated().sum() > good.is_duplicated().sum() > 0  # ties, copies


def test_the_engines_agree_with_each_other_and_with_the_log(log, tmp_path):
    ours = tmp_path / "duckdb"
    ours.mkdir()
    duckdb(log.folder, ours, 1)
    theirs = made("polars", log, tmp_path / "polars")
    refuse_difference(theirs, ours)
    kept = sequences(ours / "sequences.parquet")["item_index"].list.len()
    rejected = dict(reasons(ours / "rejected.parquet").iter_rows())
    assert set(rejected) == {"null_id", "unknown_item", "bad_timestamp", "timestamp_out_of_range", "duplicate_event"}
    assert kept.sum() + sum(rejected.values()) == 30_000
    held_out = 2 * (kept >= 3).sum()
    assert popularity(ours / "items.parquet")["popularity"].sum() == kept.sum() - held_out

    table = pl.read_parquet(theirs / "sequences.parquet")
    table.with_columns(pl.col("item_index").list.reverse()).write_parquet(theirs / "sequences.parquet")
    with pytest.raises(ValueError, match="sequences of polars are not ours"):
        refuse_difference(theirs, ours)


def test_memory_counts_what_a_process_starts():
    child = "import subprocess, sys, time; x = bytearray(60 << 20); time.sleep(1.5)"
    parent = f"import subprocess, sys; x = bytearray(30 << 20); subprocess.run([sys.executable, '-c', {child!r}])"
    memory = peak(subprocess.Popen([sys.executable, "-c", parent]))
    assert 90 < memory.total < 150 and memory.total == pytest.approx(memory.private + memory.shared, abs=1)
    assert held(2**22 + 1).total == 0  # no such process


def command(*arguments: str):
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [*arguments])


def test_an_unknown_engine_is_one_line(tmp_path):
    result = command("--quick", "--engines", "awk", "--root", str(tmp_path))
    assert result.exit_code == 2 and "no engine awk" in result.stderr


@pytest.mark.benchmark
def test_quick(tmp_path):
    result = command("--quick", "--rows", "20_000", "--root", str(tmp_path))
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "prepare.json").read_text())
    assert [row["engine"] for row in content["measurements"]] == ["ours", "duckdb", "polars"]
    assert all(row["rows/s"] > 0 and row["MB"] > 0 for row in content["measurements"])
    assert [bar["holds"] for bar in content["bars"]] == [None] * 2
