"""The verb `train-alignment`: two workers, one of which dies, end where one process does."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.alignment.estimate import hours_of_texts
from allmrec.alignment.network import AlignmentConfig, load_joint, load_network
from allmrec.alignment.texts import DistinctTexts, TrainedTexts
from allmrec.alignment.training import AlignmentTraining
from allmrec.alignment.tuned_encoder import DIGEST
from allmrec.cf.teacher import build_teacher, load_teacher, save_teacher
from allmrec.core import machine_cache, rows
from allmrec.core.artifacts import read_manifest, writing
from allmrec.core.columns import to_lists
from allmrec.core.rows import whole
from allmrec.core.storage import Storage
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences
from allmrec.data.trained_items import write_trained_items
from allmrec.text.cache import TextCache
from allmrec.text.embeddings import read_texts
from allmrec.text.encoder import TextConfig, TextEncoder, encoder_identity, load_encoder
from jobs import train_alignment
from jobs.config import Config, load_config
from jobs.runtime.console import Console
from jobs.runtime.step import execute, resolved
from tests.jobs import training_run
from tests.jobs.in_process import jobs_in_process
from tests.text.tiny import DIM, build_tiny_sbert

undisturbed = train_alignment.loop
CONSOLE = Console(log_json=True)


def dying(settings: dict) -> dict:
    """The loop, but the last worker is killed once, in the third epoch."""
    train_epoch, storage, epochs = AlignmentTraining.train_epoch, settings["sequences"], []

    def train_or_die(self: AlignmentTraining):
        epochs.append(self.epoch)
        if len(epochs) == 1:
            storage.write(f"began-{self.epoch}", b"")
        if self.epoch == 2 and torch.distributed.get_rank() == 1 and not storage.exists("died"):
            storage.write("died", b"")
            time.sleep(2)  # long enough for Ray to take the checkpoint in
            os.kill(os.getpid(), signal.SIGKILL)
        return train_epoch(self)

    AlignmentTraining.train_epoch = train_or_die
    return undisturbed(settings)


def prepared(root: Path, **alignment) -> tuple[Config, Storage]:
    """A run with a teacher, and with the texts' embeddings where SBERT is to be fine-tuned."""
    sections = {"alignment": {"joint_dim": 8, "epochs": 4, "learning_rate": 0.001, "texts_per_pass": 5} | alignment}
    config = training_run.config(root, text={"model": str(root / "sbert")}, **sections)
    vectors = None
    if config.alignment.text_encoder == "fine-tuned":
        texts = [f"Title: item-{number}, Description: " for number in range(1, training_run.NUM_ITEMS + 1)]
        build_tiny_sbert(texts, root / "sbert")
        vectors = load_encoder(config.text).encode(texts)
    storage = training_run.prepare(config, vectors)
    torch.manual_seed(0)
    teacher = build_teacher(config.teacher, training_run.NUM_ITEMS)
    with writing(storage.at("teacher"), "teacher", "by hand", resolved(config, ("teacher",))) as out:
        out.add(save_teacher(storage.at("teacher"), teacher))
        out.stats["num_items"] = training_run.NUM_ITEMS
        out.add(write_trained_items(storage.at("teacher"), storage.at("items")))
    return config, storage


def alone(config: Config, storage: Storage) -> AlignmentTraining:
    """The same training in this process."""
    texts = None
    if config.alignment.text_encoder == "fine-tuned":
        texts = TrainedTexts(config.alignment, load_encoder(config.text), DistinctTexts.read(storage.at("items")), 4000)
    training = AlignmentTraining(
        config.alignment,
        load_teacher(storage.at("teacher")),
        Sequences.read_train(storage.at("sequences")),
        read_texts(storage.at("item_text_embeddings")),
        config.seed,
        trained_texts=texts,
    )
    list(training.rounds())
    return training


def check(storage: Storage, expected: AlignmentTraining) -> None:
    """The artifact is what the training in one process comes to."""
    network, stats = load_network(storage.at("alignment")), read_manifest(storage.at("alignment")).stats
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(weight, expected.network.state_dict()[name], atol=1e-5, rtol=1e-4)
    e_NJ, q_NJ = map(whole, load_joint(storage.at("alignment")))
    items = np.arange(1, training_run.NUM_ITEMS + 1)
    torch.testing.assert_close(e_NJ[1:], network.encode_items(expected.items_ND)[1:])
    with torch.no_grad():
        torch.testing.assert_close(q_NJ[1:], network.encode_texts(expected.texts(items)), atol=1e-4, rtol=1e-3)
    for name in ("matching", "item_recon", "text_recon", "rec"):
        assert stats[name] == pytest.approx(expected.numbers[name], rel=1e-4), name


@pytest.mark.usefixtures("in_process")
def test_it_trains_what_the_library_trains(tmp_path):
    config, storage = prepared(tmp_path, preset="paper", text_encoder="frozen", targets="all")
    teacher = read_manifest(storage.at("teacher")).digest
    assert execute(train_alignment.STEP, config, CONSOLE)
    check(storage, alone(config, storage))
    stats = read_manifest(storage.at("alignment")).stats
    assert stats["users"] == training_run.NUM_USERS and stats["targets"] == training_run.NUM_USERS * 5
    assert read_manifest(storage.at("teacher")).digest == teacher


@pytest.mark.e2e
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("text_encoder", ["frozen", "fine-tuned"])
def test_large_tables_are_mapped_and_nothing_changes(text_encoder: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(machine_cache, "CACHE", tmp_path / "cache")
    made = []
    for name, least in (("small", rows.MAPPED_BYTES), ("large", 1)):
        monkeypatch.setattr(rows, "MAPPED_BYTES", least)
        config, storage = prepared(tmp_path / name, text_encoder=text_encoder)
        execute(train_alignment.STEP, config, CONSOLE)
        stats = read_manifest(storage.at("alignment")).stats
        kept = {name: stats[name] for name in stats if name.startswith(("held_out", "text_"))}
        made.append((read_manifest(storage.at("alignment")).files, kept))
    assert made[0] == made[1]
    assert [*(tmp_path / "cache").glob("tables/*/data")], "the texts are the machine's"


def test_two_workers_with_a_death_tune_sbert_as_one_process_does(tmp_path, monkeypatch):
    config, storage = prepared(tmp_path, text_encoder="fine-tuned", gradient_checkpointing=True)
    with monkeypatch.context() as patch:
        patch.setattr(train_alignment, "loop", dying)
        assert execute(train_alignment.STEP, config, CONSOLE)
    assert storage.exists("sequences/died")
    assert any(storage.exists(f"sequences/began-{epoch}") for epoch in (1, 2)), "it resumed from a checkpoint"
    check(storage, alone(config, storage))
    assert not list(storage.at("checkpoints/train-alignment").root.iterdir())

    stats = read_manifest(storage.at("alignment")).stats
    tuned = TextConfig(model=storage.name(f"encoders/{stats[DIGEST]}/encoder"))
    assert stats["encoder"] == encoder_identity(tuned) != encoder_identity(config.text) and stats["tokens_per_s"] > 0
    texts = Catalogue.read(storage.at("items"), texts=True).texts
    expected = np.array(TextEncoder(tuned)(pa.table({"text": texts}))["embedding"].to_pylist())
    found_NS = read_texts(storage.at("fine_tuned_text_embeddings")).numpy()
    before_NS = read_texts(storage.at("item_text_embeddings")).numpy()
    assert found_NS.shape == (training_run.NUM_ITEMS + 1, DIM)
    np.testing.assert_allclose(found_NS[1:], expected[1:], atol=1e-6)
    assert np.abs(found_NS - before_NS).max() > 1e-3
    assert stats["text_variance_kept"] > 0 and stats["text_dimensions_kept"] > 0

    assert not execute(train_alignment.STEP, config, CONSOLE), "nothing has changed"
    joint = [*map(whole, load_joint(storage.at("alignment")))]
    storage.delete("alignment/manifest.json")  # as if it had been killed while it embedded
    monkeypatch.setattr(train_alignment, "fit", None)
    older, embeddings = TextCache.of(storage, "an older one"), storage.at("fine_tuned_text_embeddings")
    older.write(pa.array(["a"]), to_lists(np.ones((1, DIM))))
    manifest = read_manifest(embeddings)
    with writing(embeddings, "by hand", manifest.fingerprint) as out:
        out.add(manifest.files)
        out.stats |= manifest.stats | {"encoder": "an older one"}
    assert execute(train_alignment.STEP, config, CONSOLE)
    assert not list(older.storage.list()), "its cache went with it"
    assert all(torch.equal(*pair) for pair in zip(joint, map(whole, load_joint(storage.at("alignment"))), strict=True))


def test_a_sample_trains_and_a_plan_says_how_long(tmp_path, capsys):
    config, storage = prepared(tmp_path, max_users=50)
    assert not execute(train_alignment.STEP, config, CONSOLE, dry_run=True)
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (plan["users"], plan["steps"], plan["parts"]) == (50, 4 * 2, 1) and "hours_at_this_hosts_steps" in plan
    with jobs_in_process():
        assert execute(train_alignment.STEP, config, CONSOLE)
    stats = read_manifest(storage.at("alignment")).stats
    assert stats["users"] == stats["targets"] == 50


def test_a_fine_tuned_encoder_takes_the_time_of_its_texts():
    hours = hours_of_texts(AlignmentConfig(epochs=2), targets=100, world=4, items_per_s=0.5)
    assert hours == pytest.approx(3 * 2 * 100 * 2 / (0.5 * 4) / 3600), "three passes over a target and an unseen item"


@pytest.mark.parametrize(
    ("data", "beta"), [("movies-and-tv", 0.5), ("video-games", 0.5), ("beauty", 0.2), ("toys", 0.2)]
)
def test_the_papers_configs_train_as_table_3_says(data, beta):
    found = load_config(Path(train_alignment.__file__).parent / f"configs/paper-{data}.yaml").alignment
    assert found == AlignmentConfig(preset="paper", beta=beta)
    assert (found.learning_rate, found.joint_dim, found.alpha, found.batch_size) == (0.0001, 128, 0.5, 32)


def test_texts_are_read_in_order_behind_a_row_of_padding(tmp_path):
    config = training_run.config(tmp_path)
    texts = read_texts(training_run.prepare(config).at("item_text_embeddings"))
    assert texts.shape == (training_run.NUM_ITEMS + 1, 6) and texts[0].eq(0).all() and texts[1:].ne(0).any(1).all()
