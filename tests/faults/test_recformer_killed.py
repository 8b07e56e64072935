"""`train-baselines recformer` is killed, by SIGKILL of its driver and workers, and started again."""

import time

import pytest
import torch

from allmrec.core.artifacts import read_manifest
from allmrec.core.tensor_files import read_tensors
from allmrec.recformer.training import RecformerTraining
from jobs import train_recformer
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from tests.jobs import training_run
from tests.jobs.in_process import jobs_in_process

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

undisturbed = train_recformer.loop
RECFORMER = {"batch_size": 40, "epochs": 3, "max_items": 4, "max_tokens": 48, "validation_users": 0}


def slow(settings: dict) -> dict:
    """The loop, with time to kill it between its epochs."""
    train_epoch = RecformerTraining.train_epoch

    def slowly(self: RecformerTraining) -> tuple[float, int]:
        time.sleep(2)
        return train_epoch(self)

    RecformerTraining.train_epoch = slowly
    return undisturbed(settings)


def test_a_killed_training_started_again_ends_as_an_undisturbed_one(tmp_path):
    config = training_run.config(tmp_path / "killed", baselines={"recformer": RECFORMER})
    storage = training_run.prepare(config)
    training_run.kill_a_driver(
        train_recformer, slow, config, tmp_path, storage.at("checkpoints/train-baselines-recformer").root
    )
    assert execute(train_recformer.STEP, config, Console(log_json=True))

    calm_config = training_run.config(tmp_path / "calm", baselines={"recformer": RECFORMER})
    calm = training_run.prepare(calm_config)
    with jobs_in_process():  # one worker
        assert execute(train_recformer.STEP, calm_config, Console(log_json=True))
    found, expected = (read_manifest(place.at("systems/recformer")).stats for place in (storage, calm))
    assert found["epochs"] == expected["epochs"] == 6
    assert (found["best_epoch"], found["best_stage"]) == (expected["best_epoch"], expected["best_stage"]) == (6, 2)
    for name, tensor in (("catalogue.safetensors", "vectors"), ("users.safetensors", "recency.weight")):
        weights, others = (read_tensors(place.at("systems/recformer"), name)[tensor] for place in (storage, calm))
        torch.testing.assert_close(weights, others, rtol=1e-2, atol=1e-2)
