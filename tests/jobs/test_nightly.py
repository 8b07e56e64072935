"""The nightly run on real Ray, on a disk and over HTTP on S3: every user once, one run a date, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from allmrec.bundle.versions import bundle_versions
from allmrec.core.artifacts import commit, read_manifest, read_table
from allmrec.core.errors import exit_code
from allmrec.core.settings import read_settings
from allmrec.core.storage import S3Config, open_storage
from allmrec.core.tensor_files import read_tensors, write_tensors
from allmrec.nightly.status import last_status
from allmrec.publishing.lease import RunHeld
from allmrec.publishing.reader import read_recommendations
from jobs import bundle
from jobs.config import Config
from jobs.nightly import nightly
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from tests.evaluation.tiny import NUM_SHARDS, NUM_USERS, tiny_config

DATE = date(2026, 11, 20)
QUIET = Console(log_json=True)

pytestmark = pytest.mark.usefixtures("in_process")


def with_nightly(config: Config, storage: S3Config | None = None, **changes: object) -> Config:
    settings = config.model_dump(mode="json")
    settings["nightly"] |= {"num_candidates": 8, "top_k": 5, "lease_s": 6, **changes}
    if storage:
        settings["storage"] = storage.model_dump(mode="json")
    return Config(**settings)


@pytest.fixture(scope="module")
def undisturbed(tiny_workspace, tmp_path_factory) -> Config:
    """Of an undisturbed run of one worker."""
    config = with_nightly(tiny_workspace[0], output=str(tmp_path_factory.mktemp("undisturbed") / "out"))
    nightly(config, QUIET, DATE)
    return config


def recommendations(config: Config) -> pa.Table:
    return read_recommendations(str(config.nightly.output), s3=config.storage)


def test_the_status_says_how_the_last_attempt_ended(tiny_workspace, undisturbed: Config, tmp_path: Path) -> None:
    status = last_status(open_storage(str(undisturbed.nightly.output)))
    assert status and status["state"] == "published" and status["rows"] == NUM_USERS == sum(status["users"].values())
    output, gates = str(tmp_path), {"min_coverage": 1}
    config = with_nightly(tiny_workspace[0], output=output, ranker="teacher", quality_gates=gates)
    with pytest.raises(ValueError, match="nothing is published"):
        nightly(config, QUIET, DATE)
    status = last_status(open_storage(output))
    assert status and status["state"] == "gate_failed" and status["gate_failed"]["min_coverage"]


def test_every_user_once_and_nothing_seen(tiny_workspace, undisturbed: Config) -> None:
    _, storage = tiny_workspace
    table = recommendations(undisturbed)
    users = read_table(storage.at("sequences"))
    assert sorted(table.column("user_id").to_pylist()) == sorted(users.column("user_id").to_pylist())
    seen = dict(zip(users.column("user_id").to_pylist(), users.column("item_index").to_pylist(), strict=True))
    item_ids = read_table(storage.at("items")).column("item_id").to_pylist()
    for row in table.to_pylist():
        listed = row["items"]
        assert [item["rank"] for item in listed] == [1, 2, 3, 4, 5] and row["source"] == "llm"
        scores = [item["score"] for item in listed]
        assert scores == sorted(scores, reverse=True) and scores[-1] > 0 and sum(scores) <= 1 + 1e-5
        assert not {item["item_id"] for item in listed} & {item_ids[index - 1] for index in seen[row["user_id"]]}


def test_a_date_is_published_once(undisturbed: Config, capsys: pytest.CaptureFixture[str]) -> None:
    nightly(undisturbed, QUIET, DATE)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["event"] == "skip", "published already"
    with pytest.raises(ValueError, match=r"nightly\.top_k was 5 and is 4"):
        nightly(with_nightly(undisturbed, top_k=4), QUIET, DATE)


@pytest.mark.on_ray
def test_the_number_of_workers_changes_nothing(
    undisturbed: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_nightly(undisturbed, output=str(tmp_path / "out"))
    two = config.workers.model_copy(update={"num_workers": 2, "min_workers": 1})
    config = config.model_copy(update={"workers": two})
    nightly(config, QUIET, DATE, dry_run=True)
    monkeypatch.setattr(pq, "ParquetFile", None)  # of this process: tables are no matter of the driver
    assert not (tmp_path / "out").exists(), "a dry run touches nothing"
    nightly(config, QUIET, DATE)
    monkeypatch.undo()
    nightly(config, QUIET, DATE)
    *_, done, skipped = map(json.loads, capsys.readouterr().out.splitlines())
    assert skipped["event"] == "skip"
    assert done["users"] == NUM_USERS and done["shards"] == NUM_SHARDS and done["tokens/s of a worker"] > 0
    assert recommendations(config).equals(recommendations(undisturbed))


def test_candidates_of_another_system(tiny_workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, storage = tiny_workspace
    users = read_table(storage.at("sequences")).column("user_id").to_pylist()
    given = pa.table({"user_id": users[:20], "item_ids": [["item-00", "item-01", "nowhere"]] * 20})
    pq.write_table(given, tmp_path / "candidates.parquet")
    config = with_nightly(
        config,
        output=str(tmp_path / "out"),
        candidates={"paths": [str(tmp_path / "candidates.parquet")]},
        ranker="teacher",
    )
    nightly(config, QUIET, DATE)
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["dropped_unknown"] == 20 and done["filled_from_teacher"] == NUM_USERS
    rows = read_recommendations(str(tmp_path / "out")).to_pylist()
    assert {row["source"] for row in rows} == {"teacher"}


def test_the_next_run_of_some_users(tiny_workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for by a table, one of them suppressed, two unknown; the second run reuses the rows of all known users."""
    config, storage = tiny_workspace
    users = [*read_table(storage.at("sequences")).column("user_id").to_pylist()[:20], "new-1", "new-2"]
    pq.write_table(pa.table({"user_id": users}), tmp_path / "requested.parquet")
    (tmp_path / "gone.csv").write_text(f"user_id\n{users[0]}\n")
    (tmp_path / "recalled.jsonl").write_text('{"item_id": "item-00"}\n')
    lists = {"users": "requested.parquet", "suppressed_users": "gone.csv", "suppressed_items": "recalled.jsonl"}
    tables = {key: str(tmp_path / name) for key, name in lists.items()}
    config = with_nightly(config, output=str(tmp_path / "out"), price_per_gpu_hour=2, ranker="blend", **tables)
    nightly(config, QUIET, DATE, dry_run=True)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["tokens"] > 0, "before anything is partitioned"
    for day in (DATE, DATE + timedelta(days=1)):
        nightly(config, QUIET, day)
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["users"] == 21 and done["reused"] == 19, "popular items are listed again for the unknown ones"
    assert done["scored_by_llm"] == 0 and done["suppressed_users"] == 1
    rows = read_recommendations(str(tmp_path / "out")).to_pylist()
    assert {row["user_id"] for row in rows} == {*users[1:]}
    assert {row["source"] for row in rows if row["user_id"].startswith("new")} == {"popular"}
    assert "item-00" not in {item["item_id"] for row in rows for item in row["items"]}

    nightly(config, QUIET, DATE + timedelta(days=2), dry_run=True)
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["users"] == 22 and plan["tokens"] > 22 * 50 and plan["worker hours"] >= 0 and plan["cost"] == 0
    nightly(config, QUIET, DATE - timedelta(days=9))
    assert len(read_recommendations(str(tmp_path / "out"), DATE - timedelta(days=9))) == 21
    latest = json.loads((tmp_path / "out/latest.json").read_text())
    assert latest["run_date"] == str(DATE + timedelta(days=1)), "a backfill does not become what is served"
    trial = with_nightly(config, ranker="teacher", users=None)
    nightly(trial, QUIET, DATE, limit=7)
    assert len(read_recommendations(str(tmp_path / "out/_trial"))) == 7
    assert len(read_recommendations(str(tmp_path / "out"))) == 21, "a trial is published apart"


def test_an_index_of_a_large_catalogue(
    tiny_workspace, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It looks into every list of one so small: the same candidates, and the log says how many it found."""
    tables = []
    for name, above in (("exact", None), ("index", 30)):
        config = with_nightly(tiny_workspace[0], output=str(tmp_path / name), ranker="teacher", approximate_above=above)
        nightly(config, QUIET, DATE)
        done = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert done.get("recall of the index") == (1.0 if above else None)
        tables.append(read_recommendations(str(tmp_path / name)).column("items"))
    assert tables[0].equals(tables[1])
    monkeypatch.setitem(sys.modules, "faiss", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"pip install 'allmrec\[faiss\]'"):
        nightly(config, QUIET, DATE, dry_run=True)


@pytest.mark.parametrize(
    ("artifact", "file", "what"),
    [("alignment", "joint.safetensors", "items' soft tokens"), ("teacher", "teacher.safetensors", "teacher's scores")],
)
def test_models_of_nan_make_no_bundle(tiny_workspace, tmp_path: Path, artifact: str, file: str, what: str) -> None:
    config, storage = tiny_workspace
    broken = tiny_config(tmp_path)
    for name in ("items", "sequences", "teacher", "alignment", "projectors"):
        for entry in storage.at(name).list():
            open_storage(broken.workspace_uri).at(name).write(entry.key, storage.at(name).read(entry.key))
    target = open_storage(broken.workspace_uri).at(artifact)
    manifest, tensors = read_manifest(target), read_tensors(target, file)
    files = manifest.files | write_tensors(target, file, {k: v * np.nan for k, v in tensors.items()})
    commit(target, artifact, "test", files, manifest.config, manifest.stats)
    broken = with_nightly(broken.model_copy(update={"llm": config.llm, "text": config.text}))
    with pytest.raises(ValueError, match=f"the {what} hold NaN or inf"):
        execute(bundle.STEP, broken, QUIET)
    assert bundle_versions(broken.workspace.storage) == []
    with pytest.raises(ValueError, match=r"artifact|nothing here yet|bundle"):
        nightly(broken, QUIET, DATE)


class Started:
    """`allmrec nightly` as a process of its own, as a cron job starts it."""

    def __init__(self, config: Config, folder: Path, name: str):
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        assert Config(**read_settings(path.read_text())) == config
        command = [
            sys.executable,
            "-m",
            "jobs.nightly",
            "--config",
            str(path),
            "--date",
            str(DATE),
            "--log-json",
        ]
        # A group of its own, so that killing it takes its Ray along.
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def end(self, disturbed: bool = False) -> tuple[int, str]:
        """Exit code and output. Where its workers were killed (`disturbed`), Ray says so on standard error."""
        out, err = self.process.communicate(timeout=900)
        assert all(json.loads(line)["event"] for line in out.splitlines()), "JSON alone on standard output"
        if not disturbed:
            assert not err, "not a word of Ray's"
        return self.process.returncode, out + err

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def test_a_run_that_takes_too_long_ends_and_can_go_on(tiny_workspace, tmp_path: Path) -> None:
    config = with_nightly(tiny_workspace[0], output=str(tmp_path / "out"), timeout_s=0.1)
    code, text = Started(config, tmp_path, "late").end()
    assert code == 1 and "timed out: nightly.timeout_s is over and 3 shards are unfinished (" in text, text
    nightly(with_nightly(config, timeout_s=None), QUIET, DATE)
    assert len(read_recommendations(str(tmp_path / "out"))) == NUM_USERS


@pytest.mark.s3
def test_two_runs_of_one_date_at_once(tiny_workspace, s3: S3Config, s3_uri: str, tmp_path: Path) -> None:
    config = with_nightly(tiny_workspace[0], storage=s3, output=s3_uri)
    store, stop, seen = open_storage(s3_uri, s3), Event(), []

    def poll() -> None:
        while not stop.is_set():
            if store.exists("latest.json"):
                seen.append(read_recommendations(s3_uri, s3=s3))
            time.sleep(0.05)

    reader = Thread(target=poll)
    reader.start()
    first = Started(config, tmp_path, "first")
    while not any("lease" in entry.key for entry in store.list(f"_runs/run_date={DATE}/")):
        assert first.process.poll() is None, first.end()
        time.sleep(0.02)
    with pytest.raises(RunHeld, match=f"this run is being made by process {first.process.pid}") as refused:
        nightly(config, QUIET, DATE)
    assert exit_code(refused.value) == 4
    code, text = first.end()
    time.sleep(0.5)
    stop.set()
    reader.join()
    assert code == 0 and "log_entry" in text
    assert seen, "the reader saw the run"
    for table in seen:
        assert table.num_rows == NUM_USERS and len(table.column("run_id").unique()) == 1
    assert [entry.key for entry in store.list("_log/")] == ["_log/00000001.json"]


@pytest.mark.s3
def test_a_killed_run_goes_on(undisturbed: Config, s3: S3Config, s3_uri: str, tmp_path: Path) -> None:
    config = with_nightly(undisturbed, storage=s3, output=s3_uri)
    store = open_storage(s3_uri, s3)
    victim = Started(config, tmp_path, "victim")
    while not any("/shards/" in entry.key for entry in store.list(f"_runs/run_date={DATE}/")):
        assert victim.process.poll() is None, victim.end()
        time.sleep(0.02)
    victim.kill()
    assert not store.exists("latest.json")
    nightly(config, QUIET, DATE)
    assert recommendations(config).equals(recommendations(undisturbed))
