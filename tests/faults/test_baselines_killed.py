"""`train-baselines` is killed, by SIGKILL of its driver and workers, and started again."""

import subprocess
import sys
import time

import pytest
import torch

from allmrec.core.artifacts import read_manifest
from allmrec.core.storage import Storage
from allmrec.core.tensor_files import read_tensors
from allmrec.llm.adapter import WEIGHTS
from allmrec.projection.tallrec import TALLRecTraining
from allmrec.readout.training import ReadoutTraining
from jobs import train_baselines, train_tallrec
from jobs.config import Config
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from tests.jobs import training_run
from tests.jobs.in_process import jobs_in_process

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

STEPS = {"batch_size": 35, "epochs": 2, "checkpoint_every_steps": 1, "learning_rate": 0.003}
BASELINES = {"llm_srec": {"dim": 8, "hidden": 16, **STEPS}, "tallrec": STEPS}
JOBS = {"llm_srec": (train_baselines, ReadoutTraining), "tallrec": (train_tallrec, TALLRecTraining)}
UNDISTURBED = {key: job.loop for key, (job, _) in JOBS.items()}


def slow(key: str, settings: dict) -> dict:
    """The loop, with time to kill it between its steps."""
    training = JOBS[key][1]
    train_step = training.train_step

    def slowly(self, *arguments):
        time.sleep(1)
        return train_step(self, *arguments)

    training.train_step = slowly
    return UNDISTURBED[key](settings)


def prepared(root, llm, tokenizer, key: str) -> tuple[Config, Storage]:
    folder = root / "llm"
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sections = {"llm": {"name": str(folder), "placement": "sharded"}, "baselines": {key: BASELINES[key]}}
    config = training_run.config(root, prompt={"max_history": 4}, **sections)
    storage = training_run.prepare(config)
    training_run.write_teacher(config, storage)
    return config, storage


@pytest.mark.parametrize("key", list(BASELINES))
def test_a_killed_training_started_again_ends_as_an_undisturbed_one(key, tiny_llm, tiny_tokenizer, tmp_path):
    config, storage = prepared(tmp_path / "killed", tiny_llm, tiny_tokenizer, key)
    path, step = tmp_path / "config.json", JOBS[key][0].STEP
    path.write_text(config.model_dump_json())
    script = (
        "import sys\nfrom functools import partial\nfrom jobs.config import load_config\n"
        "from jobs.runtime.console import Console\nfrom jobs.runtime.step import execute\n"
        "from tests.faults.test_baselines_killed import JOBS, slow\njob, _ = JOBS[sys.argv[2]]\n"
        "job.loop = partial(slow, sys.argv[2])\nexecute(job.STEP, load_config(sys.argv[1]), Console())"
    )
    # A group of its own, so that killing it takes its Ray along.
    victim = subprocess.Popen([sys.executable, "-c", script, str(path), key], start_new_session=True)
    folder = {"llm_srec": "train-baselines", "tallrec": "train-baselines-tallrec"}[key]
    training_run.kill_after_two_checkpoints(victim, storage.at(f"checkpoints/{folder}").root)
    assert execute(step, config, Console(log_json=True))

    calm_config, calm = prepared(tmp_path / "calm", tiny_llm, tiny_tokenizer, key)
    with jobs_in_process():  # one worker
        assert execute(step, calm_config, Console(log_json=True))
    (part,) = step.outputs
    found, expected = (read_manifest(place.at(part)).stats for place in (storage, calm))
    assert found["steps"] == expected["steps"] == 8
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-4)
    assert found["frozen_checksum"] == expected["frozen_checksum"]
    unit = JOBS[key][1].unit
    assert [row[unit] for row in found["curve"]] == [row[unit] for row in expected["curve"]]
    name, learnt = {"llm_srec": ("vectors.safetensors", "items"), "tallrec": (WEIGHTS, None)}[key]
    weights, others = (read_tensors(place.at(part), name) for place in (storage, calm))
    for tensor in [learnt] if learnt else weights:
        torch.testing.assert_close(weights[tensor], others[tensor], rtol=1e-2, atol=1e-3)
