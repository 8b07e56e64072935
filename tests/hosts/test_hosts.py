"""Two isolated hosts and S3, jobs submitted as a platform submits them: a host is powered off, the result is the same.

pytest -m hosts      # as root, with iproute2
"""

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pytest
import yaml
from moto.server import ThreadedMotoServer
from ray.job_submission import JobStatus, JobSubmissionClient

from allmrec.core.storage import S3Config, Storage, open_storage
from allmrec.publishing.reader import read_recommendations
from jobs import bundle, train_cf
from jobs.config import Config
from jobs.nightly import nightly
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from tests.evaluation.tiny import tiny_config, write_tiny_workspace
from tests.hosts.hosts import AUTHENTICATION, HEAD, HERE, TOKEN, VENV, Hosts, available
from tests.jobs.in_process import jobs_in_process
from tests.jobs.test_nightly import DATE

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not available(), reason="needs root and iproute2"),
]

USERS, SHARDS = 240, 8
SECRET = "MARKED-secret-of-the-store"
API, ROOT_URI = f"http://{HEAD}:8265", "s3://hosts/root"
PATIENCE_S = 900  # for anything, on a machine that does much else
QUIET = Console(log_json=True)
TEACHER = {"dim": 8, "max_history": 6, "epochs": 40, "eval_every": 1, "patience": 40, "batch_size": 64}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_llm: Any, tiny_tokenizer: Any) -> Config:
    """A workspace up to Stage-2 on this machine, of which the hosts get a copy."""
    root = tmp_path_factory.mktemp("original")
    settings = tiny_config(root).model_dump(mode="json")
    settings["data"]["num_shards"] = SHARDS
    settings["teacher"] |= TEACHER
    settings["nightly"] |= {"num_candidates": 8, "top_k": 5}
    config = Config(**settings)
    write_tiny_workspace(config, tiny_llm, tiny_tokenizer, USERS)
    return config


@pytest.fixture(scope="module")
def undisturbed(original: Config, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What one process publishes, by the same verbs."""
    root = tmp_path_factory.mktemp("undisturbed")
    config = original.model_copy(update={"root": str(root)})
    copy(original.workspace.storage, config.workspace.storage)
    with jobs_in_process():
        for step in (train_cf.STEP, bundle.STEP):
            execute(step, config, QUIET)
        nightly(config, QUIET, DATE)
    return read_recommendations(config.output_uri)


def copy(source: Storage, target: Storage) -> None:
    for entry in source.list():
        target.write(entry.key, source.read(entry.key))


@pytest.fixture(scope="module")
def hosts(original: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path_factory.mktemp("hosts"), models=Path(original.root))
    try:
        yield hosts
    finally:
        hosts.down()


@pytest.fixture(scope="module")
def store(original: Config, hosts: Hosts) -> Iterator[Storage]:
    """The workspace on S3, served by this machine."""
    server = ThreadedMotoServer(ip_address=HERE, port=0, verbose=False)
    server.start()
    s3 = S3Config(
        endpoint_url=f"http://{HERE}:{server.get_host_and_port()[1]}", region="us-east-1", addressing_style="path"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        boto3.client("s3", endpoint_url=s3.endpoint_url, region_name=s3.region).create_bucket(Bucket="hosts")
        workspace = open_storage(f"{ROOT_URI}/{original.name}", s3)
        copy(original.workspace.storage, workspace)
        yield workspace
    server.stop()


@pytest.fixture(scope="module")
def folder(original: Config, store: Storage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is submitted with a job: the config."""
    settings = original.model_dump(mode="json")
    settings["root"], settings["storage"] = ROOT_URI, store.connection.s3.model_dump(mode="json")  # type: ignore[attr-defined]
    settings["llm"]["name"], settings["text"]["model"] = "/mnt/image/models/llm", "/mnt/image/models/encoder"
    settings["workers"] |= {"num_workers": 2, "resources_timeout_s": PATIENCE_S}
    folder = tmp_path_factory.mktemp("submitted")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def runtime_env(store: Storage) -> dict[str, Any]:
    """With a variable that the config sets, too, which Ray alone refuses."""
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": SECRET}
    return {"env_vars": {**keys, "AWS_ENDPOINT_URL": store.connection.s3.endpoint_url}}  # type: ignore[attr-defined]


def until(what: str, condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


def api(hosts: Hosts) -> JobSubmissionClient:
    def connected() -> JobSubmissionClient | None:
        with suppress(ConnectionError, RuntimeError):
            return JobSubmissionClient(API, headers={"Authorization": f"Bearer {TOKEN}"})
        return None

    return until(f"no jobs API: {hosts.said('head')}", connected)


def ended(client: JobSubmissionClient, job: str) -> str:
    """Its log, once it has ended well."""
    over = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED}
    until(f"{job} does not end", lambda: client.get_job_status(job) in over)
    log = client.get_job_logs(job)
    assert client.get_job_status(job) == JobStatus.SUCCEEDED, log
    assert "MARKED" not in log
    return log


def at_work(client: JobSubmissionClient, job: str) -> bool:
    """Whether it is about to work or works; its log is the error where it has ended."""
    status = client.get_job_status(job)
    assert not status.is_terminal(), f"{job} has {status}: {client.get_job_logs(job)}"
    return True


def shards(store: Storage) -> list[str]:
    return [entry.key for entry in store.list(f"recommendations/_runs/run_date={DATE}/") if "/shards/" in entry.key]


def checkpoints(store: Storage) -> int:
    keys = [entry.key for entry in store.list("checkpoints/train-cf/") if entry.key.endswith("snapshot.json")]
    return sum(len(json.loads(store.read(key))["checkpoint_results"]) for key in keys)


def test_a_host_is_powered_off_in_training_and_in_the_nightly_run(
    undisturbed: pa.Table, hosts: Hosts, store: Storage, folder: Path
) -> None:
    began = time.monotonic()

    def clock(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}")

    # Training, which waits for the second host, and continues without it.
    hosts.start_head()
    client = api(hosts)
    clock("the head answers")
    command = ["ray", "job", "submit", "--address", API, "--no-wait", "--submission-id", "train"]
    command += ["--working-dir", str(folder), "--runtime-env-json", json.dumps(runtime_env(store)), "--"]
    command += ["python", "-m", "jobs.train_cf", "--config", "config.yaml", "--log-json"]
    subprocess.run(
        [VENV / "bin" / command[0], *command[1:]], env=os.environ | AUTHENTICATION, check=True, capture_output=True
    )
    waiting = '"waiting for 2 CPUs (1 in the cluster)"'
    until("it does not wait", lambda: at_work(client, "train") and waiting in client.get_job_logs("train"))
    clock("training waits for the second host")
    hosts.start_second()
    until("no checkpoints", lambda: at_work(client, "train") and checkpoints(store) >= 2)
    clock("training has two checkpoints")
    hosts.off("second")
    assert client.get_job_status("train") == JobStatus.RUNNING
    log = ended(client, "train")
    clock("training is done")
    (done,) = [json.loads(line) for line in log.splitlines() if line.startswith('{"event": "done"')]
    assert done["epochs"] == TEACHER["epochs"]

    # The night, on both hosts again, and then on one.
    hosts.start_second()
    verbs = ("bundle build --config config.yaml", f"nightly --config config.yaml --date {DATE}")
    client.submit_job(
        entrypoint=" && ".join(f"python -m allmrec {verb} --log-json" for verb in verbs),
        submission_id="night",
        runtime_env={**runtime_env(store), "working_dir": str(folder)},
    )
    until("no shard is done", lambda: at_work(client, "night") and shards(store))
    clock("the night has its first shards")
    hosts.off("second")
    assert not store.exists("recommendations/latest.json"), client.get_job_logs("night")
    ended(client, "night")
    clock("the night is published")

    with urllib.request.urlopen(f"http://{HEAD}:8090/metrics", timeout=10) as answer:
        assert b"ray_node_cpu_count" in answer.read(), "the metrics agent answers"
    published = read_recommendations(f"{store.uri}/recommendations", s3=store.connection.s3)  # type: ignore[attr-defined]
    assert published.num_rows == USERS
    for row, expected in zip(published.to_pylist(), undisturbed.to_pylist(), strict=True):
        assert row["user_id"] == expected["user_id"] and row["source"] == expected["source"]
        assert [item["item_id"] for item in row["items"]] == [item["item_id"] for item in expected["items"]]
        scores = [item["score"] for item in expected["items"]]
        assert [item["score"] for item in row["items"]] == pytest.approx(scores, rel=1e-3, abs=1e-6)
