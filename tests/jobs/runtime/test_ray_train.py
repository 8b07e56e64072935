"""`fit`: what failed resumes from the last checkpoint. The deaths of its workers are tested with each verb's loop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import torch
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
from ray.train.torch import TorchTrainer
from torch import distributed as dist

from allmrec.core.errors import JobTimeout, exit_code
from allmrec.core.storage import S3Config
from jobs import train_cf
from jobs.config import Config
from jobs.runtime import preflight, resources
from jobs.runtime.cluster import _without_ray_log_lines
from jobs.runtime.console import Console
from jobs.runtime.ray_train import _prune_checkpoints, _Trainer, fit, report, resume
from jobs.runtime.resources import Resources, await_resources
from jobs.runtime.step import Context
from tests.jobs.conftest import STORE_MB

pytestmark = pytest.mark.usefixtures("started_ray")


def _context(
    root: str | Path, fingerprint: str = "identity", storage: S3Config | None = None, **workers: int
) -> Context:
    config = Config(name="test", root=str(root), workers=workers, storage=storage or S3Config())
    return Context(config, config.workspace, Console(log_json=True), fingerprint)


def counting(config: dict) -> dict:
    """Counts to `steps`, adding a sum over the workers each time; then raises where it is told to."""
    state = resume() or {"step": 0, "sum": torch.zeros(1)}
    first = state["step"]
    for step in range(first, config["steps"]):
        part = torch.tensor([float(dist.get_rank() + 1)])
        dist.all_reduce(part)
        state = {"step": step + 1, "sum": state["sum"] * 2 + part}
        report(step + 1, state, counted=state["sum"].item())
    if config.get("raises"):
        raise ValueError("the loop's own words")
    return {"sum": state["sum"].item(), "first": first}


def test_nothing_waits_for_a_dashboard_where_ray_runs_on_this_machine():
    def names(trainer: type[TorchTrainer]) -> set[str]:
        return {type(one).__name__ for one in trainer(counting)._create_default_callbacks()}

    assert names(TorchTrainer) - names(_Trainer) == {"DatasetsCallback", "PlacementGroupCleanerCallback"}


def test_lines_of_others_are_kept_while_ray_starts(capfd: pytest.CaptureFixture[str]):
    """That a job's standard error is empty is tested with the nightly run."""
    with pytest.raises(ValueError, match="no Ray"), _without_ray_log_lines():
        os.write(2, b"[2026-11-29 14:14:27,406 I 5782 5782] logging.cc:303: Set ray log level\n")
        os.write(2, b"[a warning] of another\n")
        raise ValueError("no Ray")
    assert capfd.readouterr().err == "[a warning] of another\n"


def test_a_killed_worker_is_reported_on_standard_error(capfd: pytest.CaptureFixture[str]):
    """With `--log-json` standard output is JSON alone."""
    killed = ray.remote(lambda: os.kill(os.getpid(), signal.SIGKILL)).options(max_retries=0)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(killed.remote())
    until, out, err = time.monotonic() + 20, "", ""
    while "(raylet)" not in out + err and time.monotonic() < until:
        time.sleep(0.05)
        out, err = (before + new for before, new in zip((out, err), capfd.readouterr(), strict=True))
    assert not out and "(raylet)" in err


def test_the_object_store_is_capped_by_config():
    assert ray.cluster_resources()["object_store_memory"] == STORE_MB * 2**20


@pytest.mark.s3
def test_what_failed_goes_on_from_the_checkpoint(s3_uri, s3, capsys):
    """On S3, where a cluster keeps its runs."""
    context = _context(s3_uri, storage=s3, num_workers=2, max_failures=0)
    with pytest.raises(ValueError, match=r"^the loop's own words$"):
        fit(context, "count", counting, {"steps": 2, "raises": True}, 2)
    assert list(context.workspace.at("checkpoints/count").list("identity/"))
    fewer = _context(s3_uri, storage=s3, num_workers=1)
    result = fit(fewer, "count", counting, {"steps": 3}, 3)
    assert result["first"] > 0, "Ray may not have taken in the last report before the loop failed"
    expected = 3 * (2 ** result["first"] - 1)
    for _ in range(result["first"], 3):
        expected = expected * 2 + 1
    assert result["sum"] == expected
    assert not list(context.workspace.at("checkpoints/count").list("identity")), "checkpoints go after success"
    assert '"done": 3' in capsys.readouterr().out, "the driver shows the workers' numbers"


def test_checkpoints_of_other_identities_and_half_written_ones_are_removed(storage):
    for identity, snapshot in {"this": b"{}", "another": b"{}"}.items():
        storage.write(f"{identity}/checkpoint_manager_snapshot.json", snapshot)
        storage.write(f"{identity}/checkpoint_1/state.json", b"{}")
    _prune_checkpoints(storage, "this")
    assert not list(storage.list("another")) and len(list(storage.list("this/"))) == 2
    storage.write("this/checkpoint_manager_snapshot.json", b'{"half')
    _prune_checkpoints(storage, "this")
    assert not list(storage.list("this"))


def test_what_is_missing_is_told_until_it_is_too_late(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resources, "_LOOK_S", 0.1)
    with pytest.raises(JobTimeout, match=r"for 2 GPUs \(0 in the cluster\): add nodes") as ended:
        await_resources(Resources(2, 1, 1), Console(log_json=True), timeout_s=0.3)
    (told,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert told["event"] == "waiting for 2 GPUs (0 in the cluster)" and told["timeout_s"] == 0.3
    assert exit_code(ended.value) == 1
    monkeypatch.undo()
    await_resources(Resources(2), Console(log_json=True), timeout_s=30)  # which Ray has, the first group being gone
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"workers\.gpus_per_worker asks for 2 GPUs, and this machine has 0"):
        preflight.preflight(
            train_cf.STEP.needs, Config(name="test", workers={"gpus_per_worker": 1}), Console(log_json=True)
        )


def test_a_job_s_own_runtime_env_is_kept_and_not_printed() -> None:
    """As a driver that `ray job submit` has started: Ray has put the job's runtime_env into its environment."""
    program = """
import json, os, ray
from jobs.config import Config
from jobs.runtime.cluster import start_ray

start_ray(Config(name="x", storage={"endpoint_url": "http://of-the-config", "region": "of-the-config"}))
names = ["OWN", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"]
print(json.dumps(ray.get(ray.remote(num_cpus=0)(lambda: {name: os.environ.get(name) for name in names}).remote())))
"""
    own = {"OWN": "kept", "AWS_SECRET_ACCESS_KEY": "MARKED-secret", "AWS_ENDPOINT_URL": "http://of-the-job"}
    job = {"runtime_env": {"env_vars": own}, "metadata": {}}
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job),
        },
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0 and found.stderr == "", found.stderr
    of_the_config = {"AWS_ENDPOINT_URL": "http://of-the-config", "AWS_DEFAULT_REGION": "of-the-config"}
    assert json.loads(found.stdout) == own | of_the_config


def test_a_second_ray_on_the_machine_waits_for_no_port() -> None:
    port = ray._private.worker._global_node.dashboard_agent_listen_port
    assert port > 0 and port != DEFAULT_DASHBOARD_AGENT_LISTEN_PORT


def test_a_local_ray_serves_no_dashboard() -> None:
    assert not ray._private.worker.get_dashboard_url(), "the packages for it are there, for clusters"
