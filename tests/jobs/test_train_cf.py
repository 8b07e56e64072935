"""The verb `train-cf`: two workers, one of which dies, end where one undisturbed process does."""

import os
import signal
import time

import pytest
import torch

from allmrec.cf.teacher import load_teacher
from allmrec.cf.training import TeacherTraining, ValidationCases
from allmrec.core.artifacts import read_manifest
from allmrec.data.training_users import training_parts
from jobs import train_cf
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from tests.jobs import training_run

undisturbed = train_cf.loop


def dying(settings: dict) -> dict:
    """The loop, but the last worker is killed once in the fifth epoch: after two checkpoints, between two."""
    train_epoch, storage = TeacherTraining.train_epoch, settings["sequences"]

    def train_or_die(self: TeacherTraining):
        if self.epoch == 5 and torch.distributed.get_rank() == 1 and not storage.exists("died"):
            storage.write("died", b"")
            time.sleep(2)  # long enough for Ray to take the checkpoint in
            os.kill(os.getpid(), signal.SIGKILL)
        return train_epoch(self)

    TeacherTraining.train_epoch = train_or_die
    return undisturbed(settings)


def test_two_workers_with_a_death_train_what_one_process_trains(tmp_path, monkeypatch, capsys):
    config = training_run.config(tmp_path)
    storage = training_run.prepare(config)
    monkeypatch.setattr(train_cf, "loop", dying)
    assert execute(train_cf.STEP, config, Console(log_json=True))
    assert storage.exists("sequences/died")

    parts = training_parts(storage.at("sequences"), memory_mb=1)
    cases = ValidationCases.read(storage.at("evaluation_cases"), storage.at("sequences"), 5000, config.seed)
    alone = TeacherTraining(config.teacher, parts, training_run.NUM_ITEMS, cases, config.seed)
    numbers = list(alone.rounds())
    stats = read_manifest(storage.at("teacher")).stats
    assert stats["epochs"] == 6 and stats["users"] == training_run.NUM_USERS
    assert stats["valid_ndcg@10"] == pytest.approx(numbers[-1]["valid_ndcg@10"], abs=0.01)
    assert stats["valid_ndcg@10"] > 0.6, "it has learnt the rule"
    expected, teacher = alone.best_teacher().state_dict(), load_teacher(storage.at("teacher"))
    for name, weight in teacher.state_dict().items():
        torch.testing.assert_close(weight, expected[name], atol=1e-3, rtol=1e-2, msg=lambda text, at=name: at + text)

    assert not execute(train_cf.STEP, config, Console(log_json=True)), "nothing has changed"
    capsys.readouterr()
    assert not execute(train_cf.STEP, config, Console(log_json=True), dry_run=True)
    plan = capsys.readouterr().out
    assert f'"users": {training_run.NUM_USERS}' in plan and '"up to date": true' in plan
