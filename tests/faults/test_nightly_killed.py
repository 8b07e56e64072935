r"""Nightly runs on S3 whose processes are killed at random moments end as an undisturbed run, row by row.

    ALLMREC_KILLS=50 ALLMREC_KILL_USERS=5000 ALLMREC_KILL_TABLE=kills.json \
        pytest -m faults -s tests/faults/test_nightly_killed.py

A reader looks all the time: it sees nothing of a run, or the whole.
"""

import json
import math
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from allmrec.bundle.build import build_bundle
from allmrec.bundle.versions import latest_bundle, promote
from allmrec.core.artifacts import file_entry, to_parquet
from allmrec.core.commit_log import dump_json, load_json
from allmrec.core.storage import S3Config, Storage, open_storage
from allmrec.publishing.reader import read_recommendations, read_vectors
from jobs import bundle
from jobs.config import Config
from jobs.nightly import nightly
from jobs.runtime.console import Console
from jobs.runtime.step import resolved
from schemas.recommendations import SCHEMA
from tests.evaluation.tiny import tiny_config, write_tiny_workspace
from tests.faults.cluster import TwoNodes
from tests.jobs.test_nightly import DATE, Started, with_nightly
from tests.nightly.test_llm_srec import bundled
from tests.s3_fixtures import new_bucket

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(7200)]

KILLS = int(os.environ.get("ALLMREC_KILLS", "1"))
USERS = int(os.environ.get("ALLMREC_KILL_USERS", "120"))
TABLE = os.environ.get("ALLMREC_KILL_TABLE")  # where to write every kill, as JSON
SHARDS = max(6, USERS // 100)
KILLS_A_RUN = 10  # then it may end
QUIET = Console(log_json=True)
TARGETS = ("llm worker", "worker", "node", "driver")
SYSTEMS: dict[str, dict[str, Any]] = {
    "a-llmrec": {},
    "llm-srec ranks": {"ranker": "llm-srec"},
    "llm-srec retrieves": {"ranker": "llm-srec", "retriever": "llm-srec", "publish_vectors": True},
}


@pytest.fixture(scope="module")
def cluster(s3: S3Config) -> Iterator[TwoNodes]:
    """`s3` comes first, so that Ray's workers find its credentials."""
    nodes = TwoNodes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", nodes.address)
        yield nodes
    ray.shutdown()
    nodes.stop()


@pytest.fixture(scope="module", params=SYSTEMS)
def tiny(request, tmp_path_factory, tiny_llm, tiny_tokenizer, s3) -> tuple[Config, Storage]:
    config = tiny_config(tmp_path_factory.mktemp("tiny"), prompt={"max_history": 2})
    config = config.model_copy(update={"data": config.data.model_copy(update={"num_shards": SHARDS})})
    storage = write_tiny_workspace(config, tiny_llm, tiny_tokenizer, USERS)
    config = bundled(config, storage, tiny_llm, seed=1)
    config = config.model_copy(update={"workers": config.workers.model_copy(update={"num_workers": 2})})
    # Where Ray has lost what it was to do, the run ends, and is started again.
    nightly = {"lease_s": 3, "num_candidates": 5, "top_k": 3, "stall_timeout_s": 120, **SYSTEMS[request.param]}
    return with_nightly(config, storage=s3, **nightly), storage


@pytest.fixture(scope="module")
def undisturbed(tiny, cluster, s3, tmp_path_factory) -> tuple[str, float]:
    """Where an undisturbed run was published, and how many seconds it took."""
    output, began = new_bucket(s3), time.monotonic()
    run = start(tiny[0], output, tmp_path_factory.mktemp("undisturbed"))
    code, text = run.end(disturbed=True)
    assert code == 0, text
    return output, time.monotonic() - began


def at(config: Config, output: str) -> Config:
    return config.model_copy(update={"nightly": config.nightly.model_copy(update={"output": output})})


def start(config: Config, output: str, folder: Path) -> Started:
    return Started(at(config, output), folder, "nightly")


class Reader:
    """Looks at what is published, by `latest.json` and by `_SUCCESS`, until it is stopped."""

    def __init__(self, output: str, s3: S3Config, expected: pa.Table):
        self.output, self.s3, self.expected = output, s3, expected
        self.looks = {"nothing": 0, "whole": 0}
        self.broken: list[str] = []
        self.over = Event()
        self.thread = Thread(target=self.watch)
        self.thread.start()

    def watch(self) -> None:
        while not self.over.wait(0.1):
            for day in (None, DATE):
                try:
                    if not read_recommendations(self.output, day, self.s3).equals(self.expected):
                        self.broken.append(f"other rows by {day or 'latest.json'}")
                    self.looks["whole"] += 1
                except Exception as error:
                    if "nothing is published" not in str(error):
                        self.broken.append(str(error))
                    self.looks["nothing"] += 1

    def stop(self) -> None:
        self.over.set()
        self.thread.join()


def test_killed_runs_end_as_an_undisturbed_one(
    tiny, cluster: TwoNodes, undisturbed: tuple[str, float], s3: S3Config, tmp_path: Path
) -> None:
    config, _ = tiny
    expected, whole_s = read_recommendations(undisturbed[0], s3=s3), undisturbed[1]
    assert expected.num_rows == USERS
    seed = int(os.environ.get("ALLMREC_KILL_SEED", random.randrange(2**32)))
    print(f"\nseed {seed}: {KILLS} kills, {USERS} users in {SHARDS} shards, an undisturbed run takes {whole_s:.1f} s")
    dice, kills, runs = random.Random(seed), [], 0
    while len(kills) < KILLS:
        runs += 1
        output = new_bucket(s3)
        storage, reader = open_storage(output, s3), Reader(output, s3, expected)
        try:
            kills += disturbed(config, cluster, storage, dice, whole_s, min(KILLS_A_RUN, KILLS - len(kills)), tmp_path)
            assert read_recommendations(output, s3=s3).equals(expected), f"run {runs} differs"
            if config.nightly.publish_vectors:
                assert read_vectors(output, "users", s3=s3).equals(read_vectors(undisturbed[0], "users", s3=s3))
        finally:
            reader.stop()
        assert not reader.broken, reader.broken[:3]
        assert [entry.key for entry in storage.list("_log/")] == ["_log/00000001.json"]
        print(
            f"run {runs}: every row as undisturbed; the reader saw nothing {reader.looks['nothing']} times and the "
            f"whole {reader.looks['whole']} times"
        )
    show(kills, {"seed": seed, "users": USERS, "shards": SHARDS, "runs": runs, "undisturbed_s": round(whole_s, 1)})


def disturbed(
    config: Config, cluster: TwoNodes, storage: Storage, dice: random.Random, whole_s: float, most: int, folder: Path
) -> list[dict[str, Any]]:
    """One run that is killed `most` times, unless it ends before, and started again until it ends well."""
    kills: list[dict[str, Any]] = []
    goals = sorted(dice.uniform(0, SHARDS) for _ in range(most))
    run, starts = start(config, storage.uri, folder), 1
    while True:
        began, target = time.monotonic(), dice.choice(TARGETS)
        if len(kills) < most and waited(run, storage, goals[len(kills)], dice, whole_s):
            kill = {"target": target, "after_s": round(time.monotonic() - began, 1), "start": starts}
            progress = where(storage)
            if killed(run, cluster, target, dice):
                kills.append({**kill, "run at": progress})
            if target != "driver":
                continue
        code, text = run.end(disturbed=True)
        if code == 0:
            return kills
        assert kills and starts < 3 * most + 3, text
        if code != -signal.SIGKILL:
            kills[-1]["driver"] = f"ended with {code}: {text.strip().splitlines()[-1][:100]}"
        run, starts = start(config, storage.uri, folder), starts + 1


def waited(run: Started, storage: Storage, goal: float, dice: random.Random, whole_s: float) -> bool:
    """Wait until a number of shards are done, or now and then while it starts or ends; False if the run ends first."""
    stage = dice.random()
    deadline = time.monotonic() + (dice.uniform(0, 0.5) * whole_s if stage < 0.2 else math.inf)
    goal, delay_s = (SHARDS, 0.3 * whole_s) if stage > 0.85 else (goal, 0.02 * whole_s)
    while run.process.poll() is None and time.monotonic() < deadline and shards_done(storage) < goal:
        time.sleep(0.05)
    time.sleep(dice.uniform(0, delay_s))
    return run.process.poll() is None


def shards_done(storage: Storage) -> int:
    return sum("/shards/" in entry.key for entry in storage.list(f"_runs/run_date={DATE}/"))


def killed(run: Started, cluster: TwoNodes, target: str, dice: random.Random) -> bool:
    if target == "driver":
        run.kill()
        return True
    if target == "node":
        return cluster.kill_second()
    return cluster.kill_worker("Attempt" if target == "llm worker" else "ray::", dice)


def where(storage: Storage) -> str:
    """How far a run has come, for the table."""
    if storage.exists("latest.json"):
        return "published"
    if storage.exists(f"run_date={DATE}/_SUCCESS"):
        return "_SUCCESS"
    copied = len(list(storage.list(f"run_date={DATE}/")))
    return f"{copied} of {SHARDS} copied" if copied else f"{shards_done(storage)} of {SHARDS} shards"


def show(kills: list[dict[str, Any]], stats: dict[str, Any]) -> None:
    columns = ["kill", "target", "after_s", "start", "run at", "driver"]
    rows = [columns, *([str({"kill": n, **row}.get(name, "")) for name in columns] for n, row in enumerate(kills, 1))]
    widths = [max(len(row[n]) for row in rows) for n in range(len(columns))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    if TABLE:
        Path(TABLE).write_text(json.dumps({**stats, "kills": kills}, indent=1))


@pytest.mark.parametrize("tiny", ["a-llmrec"], indirect=True)
def test_a_poisoned_shard_is_named_and_nothing_is_published(tiny, cluster, s3) -> None:
    output = new_bucket(s3)
    storage, config = open_storage(output, s3), at(tiny[0], output)
    gates = config.nightly.quality_gates.model_copy(update={"min_coverage": 1.0})
    gated = config.nightly.model_copy(update={"quality_gates": gates})
    with pytest.raises(ValueError, match="nothing is published: coverage is"):
        nightly(config.model_copy(update={"nightly": gated}), QUIET, DATE)
    key = next(
        one.key for one in storage.list(f"_runs/run_date={DATE}/") if one.key.endswith("/shards/part-00001.json")
    )
    entry = load_json(storage, key)
    rows = pq.read_table(pa.BufferReader(storage.read(entry["file"]))).to_pylist()
    rows[0]["items"][0]["score"] = float("nan")
    data = to_parquet(pa.Table.from_pylist(rows, SCHEMA))
    storage.write(entry["file"], data)
    storage.write(key, dump_json(entry | file_entry(data)))
    with pytest.raises(ValueError, match=f"shard 1: a score is not finite: .* of user '{rows[0]['user_id']}'"):
        nightly(config, QUIET, DATE)
    assert not list(storage.list("run_date=")) and not storage.exists("latest.json")
    with pytest.raises(ValueError, match="nothing is published"):
        read_recommendations(output, s3=s3)


@pytest.mark.parametrize("tiny", ["a-llmrec"], indirect=True)
def test_a_run_is_not_resumed_with_another_bundle(tiny, undisturbed) -> None:
    config, run = tiny
    other = build_bundle(run, resolved(config, bundle.SECTIONS) | {"seed": 7})
    used = latest_bundle(run)
    promote(run, other)
    try:
        with pytest.raises(ValueError, match=f"bundle was '{used}' and is '{other}'"):
            nightly(at(config, undisturbed[0]), QUIET, DATE)
    finally:
        promote(run, used)
