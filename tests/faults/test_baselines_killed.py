"""`train-baselines` is killed, by SIGKILL of its driver and workers, and started again."""

import subprocess
import sys
import time

import pytest
import torch

from allmrec.cf.teacher import build_teacher, save_teacher
from allmrec.core.artifacts import read_manifest, read_table, read_tensors, writing
from allmrec.core.storage import Storage
from allmrec.data.trained_items import write_trained_items
from allmrec.readout.training import ReadoutTraining
from jobs import train_baselines
from jobs.config import Config
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from tests.jobs import training_run
from tests.jobs.in_process import jobs_in_process

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

undisturbed = train_baselines.loop
READOUT = {"dim": 8, "hidden": 16, "batch_size": 35, "epochs": 2, "checkpoint_every_steps": 1, "learning_rate": 0.003}


def slow(settings: dict) -> dict:
    """The loop, with time to kill it between its steps."""
    train_step = ReadoutTraining.train_step

    def slowly(self: ReadoutTraining, *arguments):
        time.sleep(1)
        return train_step(self, *arguments)

    ReadoutTraining.train_step = slowly
    return undisturbed(settings)


def prepared(root, llm, tokenizer) -> tuple[Config, Storage]:
    folder = root / "llm"
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sections = {"llm": {"name": str(folder), "placement": "sharded"}, "baselines": {"llm_srec": READOUT}}
    config = training_run.config(root, prompt={"max_history": 4}, **sections)
    storage = training_run.prepare(config)
    torch.manual_seed(0)
    teacher = build_teacher(config.teacher, training_run.NUM_ITEMS)
    with writing(storage.at("teacher"), "teacher", "by hand", config.model_dump(mode="json")) as out:
        out.add(save_teacher(storage.at("teacher"), teacher))
        out.stats["num_items"] = training_run.NUM_ITEMS
        write_trained_items(out, read_table(storage.at("items")))
    return config, storage


def test_a_killed_training_started_again_ends_as_an_undisturbed_one(tiny_llm, tiny_tokenizer, tmp_path):
    config, storage = prepared(tmp_path / "killed", tiny_llm, tiny_tokenizer)
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    script = (
        "import sys\nfrom jobs import train_baselines\nfrom jobs.config import load_config\n"
        "from jobs.runtime.console import Console\nfrom jobs.runtime.step import execute\n"
        "from tests.faults.test_baselines_killed import slow\ntrain_baselines.loop = slow\n"
        "execute(train_baselines.STEP, load_config(sys.argv[1]), Console())"
    )
    # A group of its own, so that killing it takes its Ray along.
    victim = subprocess.Popen([sys.executable, "-c", script, str(path)], start_new_session=True)
    training_run.kill_after_two_checkpoints(victim, storage.at("checkpoints/train-baselines").root)
    assert execute(train_baselines.STEP, config, Console(log_json=True))

    calm_config, calm = prepared(tmp_path / "calm", tiny_llm, tiny_tokenizer)
    with jobs_in_process():  # one worker
        assert execute(train_baselines.STEP, calm_config, Console(log_json=True))
    found, expected = (read_manifest(place.at("systems/llm-srec")).stats for place in (storage, calm))
    assert found["steps"] == expected["steps"] == 8
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-4)
    assert found["frozen_checksum"] == expected["frozen_checksum"]
    assert [row["users"] for row in found["curve"]] == [row["users"] for row in expected["curve"]]
    vectors, others = (
        read_tensors(place.at("systems/llm-srec"), "vectors.safetensors")["items"] for place in (storage, calm)
    )
    torch.testing.assert_close(vectors, others, rtol=1e-2, atol=1e-3)
