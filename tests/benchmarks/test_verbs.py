"""The benchmark of every verb's memory: its store, its limit, and the command."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import typer
from typer.testing import CliRunner

from benchmarks.memory import limited
from benchmarks.verbs import VERBS, GeneratedStore, main


def test_a_generated_store_has_items_with_texts_of_a_kilobyte(tmp_path: Path) -> None:
    store = GeneratedStore(tmp_path, items=3000, users=50)
    store.write()
    items = pl.read_parquet(store.folder / "items/*.parquet")
    log = pl.read_parquet(store.folder / "log/*.parquet")
    assert items["item_id"].n_unique() == len(items) == 3000
    assert 900 < items["description"].str.len_bytes().mean() < 1200
    assert (
        len(log) == 1000 and log["user_id"].n_unique() <= 50 and log["item_id"].is_in(items["item_id"].implode()).all()
    )
    assert (store.folder / "encoder/modules.json").exists() and (store.folder / "llm/model.safetensors").exists()


def test_a_process_that_needs_more_than_the_limit_is_killed() -> None:
    def ended_with(mb: int) -> int:
        program = f"x = bytearray({mb} << 20); print(len(x))"
        joined = ["sh", "-c", f'echo $$ > {members} && exec "$@"', "sh", sys.executable, "-c", program]
        return subprocess.run(joined, check=False, stdout=subprocess.DEVNULL).returncode

    try:
        with limited("allmrec-test", 100) as members:
            assert (ended_with(10), ended_with(300)) == (0, -9)
    except ValueError as error:
        assert "run as root, or without a limit" in str(error)
        pytest.skip(str(error))


@pytest.mark.benchmark
def test_quick(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--quick", "--verb", "prepare", "--root", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(app, ["--quick", "--verb", "dance"]).exit_code == 2
    assert next(iter(VERBS)) == "prepare" and "MB of the driver of prepare" in done.output
