"""`fit`: dead workers and dead drivers go on from the last checkpoint, another identity starts afresh."""

import os
import time
from pathlib import Path

import pytest
import ray
import torch
from torch import distributed as dist

from allmrec.storage import S3Config, open_storage
from jobs.config import Config
from jobs.console import Console
from jobs.step import Context
from jobs.workers import _keep_only, fit, report, resume


@pytest.fixture(scope="module", autouse=True)
def _ray(s3):  # whose credentials must stand in the environment before Ray starts
    yield
    ray.shutdown()


def _context(root: str | Path, made_by: str = "identity", storage: S3Config | None = None, **workers: int) -> Context:
    config = Config(name="test", root=str(root), workers=workers, storage=storage or S3Config())
    return Context(config, open_storage(config.run_uri, config.storage), Console(log_json=True), made_by)


def counting(config: dict) -> dict:
    """Counts to `steps`, adding a sum over the workers each time. Dies once, at `dies_at`, where that is set."""
    state = resume() or {"step": 0, "sum": torch.zeros(1)}
    first = state["step"]
    for step in range(first, config["steps"]):
        marker = Path(config["marker"])
        if step == config.get("dies_at") and dist.get_rank() == dist.get_world_size() - 1 and not marker.exists():
            marker.touch()
            time.sleep(2)  # long enough for Ray to take the reports in
            os._exit(1)
        part = torch.tensor([float(dist.get_rank() + 1)])
        dist.all_reduce(part)
        state = {"step": step + 1, "sum": state["sum"] * 2 + part}
        report(step + 1, state, counted=state["sum"].item())
    if config.get("raises"):
        raise ValueError("the loop's own words")
    return {"sum": state["sum"].item(), "first": first}


def test_a_dead_worker_is_replaced_and_the_result_is_that_of_an_undisturbed_run(tmp_path, capsys):
    context = _context(tmp_path, num_workers=2)
    result = fit(context, "count", counting, {"steps": 4, "marker": str(tmp_path / "died"), "dies_at": 2}, 4)
    assert (tmp_path / "died").exists()
    assert result["sum"] == 3 * (1 + 2 + 4 + 8) and result["first"] > 0
    assert not list((tmp_path / "test/checkpoints/count").iterdir()), "checkpoints go after success"
    assert '"done": 4' in capsys.readouterr().out, "the driver shows the workers' numbers"


@pytest.mark.s3
def test_a_driver_started_again_goes_on_from_the_checkpoint(tmp_path, s3_uri, s3):
    """On S3, where a cluster keeps its runs."""
    settings = {"steps": 2, "marker": str(tmp_path / "none")}
    context = _context(s3_uri, storage=s3, num_workers=1, max_failures=0)
    with pytest.raises(ValueError, match=r"^the loop's own words$"):
        fit(context, "count", counting, settings | {"raises": True}, 2)
    assert list(context.artifact("checkpoints/count").list("identity/"))
    assert fit(context, "count", counting, settings | {"steps": 3}, 3) == {"sum": 7.0, "first": 2}
    assert not list(context.artifact("checkpoints/count").list("identity"))


def test_checkpoints_of_other_identities_and_half_written_ones_are_removed(storage):
    for identity, snapshot in {"this": b"{}", "another": b"{}"}.items():
        storage.write(f"{identity}/checkpoint_manager_snapshot.json", snapshot)
        storage.write(f"{identity}/checkpoint_1/state.json", b"{}")
    _keep_only(storage, "this")
    assert not list(storage.list("another")) and len(list(storage.list("this/"))) == 2
    storage.write("this/checkpoint_manager_snapshot.json", b'{"half')
    _keep_only(storage, "this")
    assert not list(storage.list("this"))
