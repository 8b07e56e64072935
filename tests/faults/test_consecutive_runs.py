"""A nightly run a day over a log that grows: the last one publishes what a single run over the whole log would.

ALLMREC_RUNS=20 ALLMREC_RUN_USERS=5000 pytest -m faults -s tests/faults/test_consecutive_runs.py
"""

import os
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from allmrec.core.artifacts import read_manifest
from allmrec.core.commit_log import newest_entry
from allmrec.core.storage import S3Config, Storage, open_storage
from allmrec.publishing.log import published_dates
from allmrec.publishing.reader import read_recommendations, verify_run
from allmrec.retention import RetentionConfig
from jobs import bundle, prepare
from jobs.config import Config
from jobs.expire import expire
from jobs.nightly import nightly
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from tests.evaluation.tiny import NUM_ITEMS, TITLES, tiny_config, write_tiny_workspace
from tests.jobs.test_nightly import with_nightly
from tests.jobs.test_transfer import write_texts
from tests.s3_fixtures import new_bucket

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(7200)]

RUNS = int(os.environ.get("ALLMREC_RUNS", "2"))
USERS = int(os.environ.get("ALLMREC_RUN_USERS", "60"))
FIRST, QUIET = date(2026, 11, 1), Console(log_json=True)


@pytest.fixture(scope="module", autouse=True)
def stop_ray() -> Iterator[None]:
    yield
    ray.shutdown()


def write_day(folder: Path, number: int) -> None:
    """A day's interactions of a part of the users; each day some come for the first time."""
    rng, count = np.random.default_rng(number), USERS * 2 if number == 0 else USERS // 3
    known = USERS + number * (USERS // 20)
    noon = datetime(FIRST.year, FIRST.month, FIRST.day, 12, tzinfo=UTC) + timedelta(number)
    table = pa.table(
        {
            "user_id": [f"user-{n}" for n in rng.integers(0, known, count)],
            "item_id": [f"item-{n:02d}" for n in rng.integers(0, NUM_ITEMS, count)],
            "timestamp": pa.array([noon + timedelta(seconds=n) for n in range(count)], pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, folder / f"day-{number:03d}.parquet")


def with_log(config: Config, folder: Path, s3: S3Config) -> Config:
    sources = {"interactions": {"paths": [str(folder)]}, "items": {"paths": [str(folder.parent / "items.parquet")]}}
    data = Config(name="log", data=sources).data.model_copy(update={"num_shards": config.data.num_shards})
    settings = with_nightly(config, storage=s3, output=new_bucket(s3))
    return settings.model_copy(update={"data": data})


def run_day(config: Config, day: date) -> None:
    execute(prepare.STEP, config, QUIET)
    write_texts(open_storage(config.workspace_uri), "tiny", seed=0)
    execute(bundle.STEP, config, QUIET)
    nightly(config, QUIET, day)


def published(config: Config) -> Storage:
    return open_storage(str(config.nightly.output), config.storage)


def test_consecutive_runs_end_as_one_over_the_whole_log(tmp_path: Path, s3: S3Config, tiny_llm, tiny_tokenizer, capsys):
    (tmp_path / "log").mkdir()
    pq.write_table(
        pa.table({"item_id": [f"item-{n:02d}" for n in range(NUM_ITEMS)], "title": pa.array(TITLES)}),
        tmp_path / "items.parquet",
    )
    config = tiny_config(tmp_path)
    workspace = write_tiny_workspace(config, tiny_llm, tiny_tokenizer)
    config = with_log(config, tmp_path / "log", s3)
    storage, seconds = published(config), []
    for number in range(RUNS):
        write_day(tmp_path / "log", number)
        began = time.monotonic()
        run_day(config, FIRST + timedelta(number))
        expire(config.model_copy(update={"retention": RetentionConfig(runs=3)}), QUIET)
        seconds.append(time.monotonic() - began)
        entry = newest_entry(storage)
        assert entry is not None and entry["n"] == number + 1
        assert entry["rows"] == read_manifest(workspace.at("sequences")).rows > 0
    days = [FIRST + timedelta(number) for number in range(RUNS)][-3:]
    assert published_dates(storage) == days and all(verify_run(storage, day)["rows"] for day in days)

    whole = with_log(config.model_copy(update={"name": "whole"}), tmp_path / "log", s3)
    for entry in list(workspace.list()):
        if entry.key.split("/")[0] in ("teacher", "alignment", "projectors"):
            open_storage(whole.workspace_uri).write(entry.key, workspace.read(entry.key))
    run_day(whole, days[-1])
    left, right = (
        read_recommendations(one.uri, s3=s3).drop_columns(["bundle", "run_id"]) for one in (storage, published(whole))
    )
    listed = [table.column("items").combine_chunks().flatten() for table in (left, right)]
    assert left.drop_columns("items").equals(right.drop_columns("items"))
    assert listed[0].field("item_id").equals(listed[1].field("item_id"))
    # Reused rows were ranked in other batches.
    scores = [entries.field("score").to_numpy() for entries in listed]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    with capsys.disabled():
        print(f"\n{RUNS} runs, {left.num_rows} users in the last, seconds per run:", *(f"{one:.1f}" for one in seconds))
