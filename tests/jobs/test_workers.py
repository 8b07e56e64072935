"""`fit`: dead workers and dead drivers go on from the last checkpoint, another identity starts afresh."""

import os
from pathlib import Path

import pytest
import ray
import torch
from torch import distributed as dist

from allmrec.storage import open_storage
from jobs.config import Config
from jobs.console import Console
from jobs.step import Context
from jobs.workers import fit, report, resume, start_ray


@pytest.fixture(scope="module", autouse=True)
def _ray():
    yield
    ray.shutdown()


def _context(root: Path, made_by: str = "identity", **workers: int) -> Context:
    config = Config(name="test", root=str(root), workers={"num_workers": 2, **workers})
    start_ray(config)
    return Context(config, open_storage(config.run_uri), Console(log_json=True), made_by)


def counting(config: dict) -> dict:
    """Counts to `steps`, adding a sum over the workers each time. Dies once, at `dies_at`, where that is set."""
    state = resume() or {"step": 0, "sum": torch.zeros(1)}
    first = state["step"]
    for step in range(first, config["steps"]):
        marker = Path(config["marker"])
        if step == config.get("dies_at") and dist.get_rank() == dist.get_world_size() - 1 and not marker.exists():
            marker.touch()
            os._exit(1)
        part = torch.tensor([float(dist.get_rank() + 1)])
        dist.all_reduce(part)
        state = {"step": step + 1, "sum": state["sum"] * 2 + part}
        report(step + 1, state, counted=state["sum"].item())
    if config.get("raises"):
        raise RuntimeError("the loop's own words")
    return {"sum": state["sum"].item(), "first": first}


def test_a_dead_worker_is_replaced_and_the_result_is_that_of_an_undisturbed_run(tmp_path, capsys):
    settings = {"steps": 4, "marker": str(tmp_path / "died")}
    calm = fit(_context(tmp_path / "calm"), "count", counting, settings, 4)
    assert calm == {"sum": 45.0, "first": 0}  # 3 * (1 + 2 + 4 + 8)
    shaken = fit(_context(tmp_path / "shaken"), "count", counting, settings | {"dies_at": 2}, 4)
    assert (tmp_path / "died").exists()
    assert shaken["sum"] == calm["sum"] and shaken["first"] > 0
    assert not list((tmp_path / "shaken/test/checkpoints/count").iterdir()), "checkpoints go after success"
    assert '"done": 4' in capsys.readouterr().out, "the driver shows the workers' numbers"


def test_a_driver_started_again_goes_on_and_another_identity_starts_afresh(tmp_path):
    settings = {"steps": 2, "marker": str(tmp_path / "none")}
    with pytest.raises(Exception, match="the loop's own words"):
        fit(_context(tmp_path, max_failures=0), "count", counting, settings | {"raises": True}, 2)
    again = fit(_context(tmp_path), "count", counting, settings | {"steps": 3}, 3)
    assert again == {"sum": 21.0, "first": 2}
    with pytest.raises(Exception, match="the loop's own words"):
        fit(_context(tmp_path, max_failures=0), "count", counting, settings | {"raises": True}, 2)
    other = fit(_context(tmp_path, "another"), "count", counting, settings, 2)
    assert other == {"sum": 9.0, "first": 0}
