"""`fit`: what failed resumes from the last checkpoint. The deaths of its workers are tested with each verb's loop."""

import os
import signal
import time
from pathlib import Path

import pytest
import ray
import torch
from torch import distributed as dist

from allmrec.core.storage import S3Config
from jobs.config import Config
from jobs.runtime.console import Console
from jobs.runtime.ray_train import _prune_checkpoints, _without_ray_log_lines, fit, report, resume
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
