"""The verb `train-alignment`: two workers, one of which dies, end where one undisturbed process does."""

import os
import time

import pytest
import ray
import torch

from allmrec.alignment.network import load_joint
from allmrec.alignment.training import AlignmentTraining
from allmrec.artifacts import read_manifest, seal
from allmrec.cf.teacher import build_teacher, load_teacher, save_teacher
from allmrec.data.sequences import Sequences
from jobs import train_alignment
from jobs.console import Console
from jobs.step import execute, resolved
from tests.jobs import training_run

undisturbed = train_alignment.loop


@pytest.fixture(scope="module", autouse=True)
def _ray():
    yield
    ray.shutdown()


def dying(settings: dict) -> dict:
    """The loop, but the last worker dies once before the last epoch."""
    train_epoch, storage = AlignmentTraining.train_epoch, settings["alignment"]

    def train_or_die(self: AlignmentTraining):
        if self.epoch == 3 and torch.distributed.get_rank() == 1 and not storage.exists("died"):
            storage.write("died", b"")
            time.sleep(2)  # long enough for Ray to take the checkpoint in
            os._exit(1)
        return train_epoch(self)

    AlignmentTraining.train_epoch = train_or_die
    return undisturbed(settings)


def test_two_workers_with_a_death_train_what_one_process_trains(tmp_path, monkeypatch):
    config = training_run.config(tmp_path)
    storage = training_run.prepare(config)
    torch.manual_seed(0)
    teacher = build_teacher(config.teacher, training_run.NUM_ITEMS)
    files, facts = save_teacher(storage.at("teacher"), teacher), {"num_items": training_run.NUM_ITEMS}
    sealed = seal(storage.at("teacher"), "teacher", "by hand", files, resolved(config, ("teacher",)), facts)
    monkeypatch.setattr(train_alignment, "loop", dying)
    assert execute(train_alignment.STEP, config, Console(log_json=True))
    assert storage.exists("alignment/died")

    alone = AlignmentTraining(
        config.alignment,
        load_teacher(storage.at("teacher")),
        Sequences.read_train(storage.at("sequences")),
        train_alignment.read_texts(storage.at("item_text_embeddings")),
        config.seed,
    )
    numbers = list(alone.rounds())
    for found, expected in zip(load_joint(storage.at("alignment")), alone.joint(), strict=True):
        assert found.shape == (training_run.NUM_ITEMS + 1, 8)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    facts = read_manifest(storage.at("alignment")).facts
    for name in ("matching", "item_recon", "text_recon", "rec"):
        assert facts[name] == pytest.approx(numbers[-1][name], rel=1e-4), name
    assert read_manifest(storage.at("teacher")).digest == sealed.digest
    assert not list(storage.at("checkpoints/train-alignment").root.iterdir())


def test_texts_are_read_in_order_behind_a_row_of_padding(tmp_path):
    config = training_run.config(tmp_path)
    texts = train_alignment.read_texts(training_run.prepare(config).at("item_text_embeddings"))
    assert texts.shape == (training_run.NUM_ITEMS + 1, 6) and texts[0].eq(0).all() and texts[1:].ne(0).any(1).all()
