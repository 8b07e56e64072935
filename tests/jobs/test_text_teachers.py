"""`train-cf` with texts: MoRec reads items' embeddings, CTRL histories' titles; without them nothing is written."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.cf.teacher import load_teacher
from allmrec.core.artifacts import read_manifest, read_table
from allmrec.core.storage import Storage
from allmrec.text.embeddings import read_texts
from jobs import train_cf
from jobs.config import Config
from jobs.pipeline import ordered
from jobs.runtime.console import Console
from jobs.runtime.step import execute, load_step
from tests.evaluation.tiny import write_items
from tests.jobs import training_run
from tests.text.tiny import build_tiny_sbert

CONSOLE = Console(log_json=True)
pytestmark = pytest.mark.usefixtures("in_process")


def config_of(root, **teacher) -> Config:
    config = training_run.config(root)
    settings = config.model_dump(mode="json", exclude_unset=True)
    settings["teacher"] |= {"epochs": 2, "eval_every": 1} | teacher
    return Config(**settings | {"text": {"model": str(root / "sbert")}, "prompt": {"verb_past": "watched"}})


@pytest.fixture
def by_text(tmp_path) -> tuple[Config, Storage]:
    config = config_of(tmp_path, items="text")
    return config, training_run.prepare(config)


def test_morec_is_trained_on_the_items_texts_and_again_when_they_change(by_text):
    config, storage = by_text
    assert execute(train_cf.STEP, config, CONSOLE)
    teacher, texts = load_teacher(storage.at("teacher")), storage.at("item_text_embeddings")
    expected = teacher.embed_texts(read_texts(texts))
    torch.testing.assert_close(teacher.item_embeddings[1:], expected[1:], rtol=0, atol=1e-6)
    manifest = read_manifest(storage.at("teacher"))
    assert "encoder" in manifest.stats and manifest.config["teacher"]["items"] == "text"
    assert not execute(train_cf.STEP, config, CONSOLE), "nothing has changed"
    training_run.prepare(config, np.random.default_rng(5).normal(size=(training_run.NUM_ITEMS, 6)).astype("f4"))
    assert execute(train_cf.STEP, config, CONSOLE)
    assert not torch.equal(load_teacher(storage.at("teacher")).item_embeddings, teacher.item_embeddings)


def test_a_teacher_by_ids_is_of_no_text(tmp_path, by_text):
    config, storage = by_text
    plain = config_of(tmp_path)
    execute(train_cf.STEP, plain, CONSOLE)
    training_run.prepare(config, np.ones((training_run.NUM_ITEMS, 3), np.float32))
    assert not execute(train_cf.STEP, plain, CONSOLE)
    assert "encoder" not in read_manifest(storage.at("teacher")).stats


def test_texts_are_embedded_before(by_text):
    steps = [load_step(f"jobs.{verb}").under(by_text[0]) for verb in ("train_cf", "embed")]
    assert [step.verb for step in ordered(steps)] == ["embed", "train-cf"]


def test_missing_and_other_texts_are_refused_before_anything_is_written(by_text):
    config, storage = by_text
    execute(train_cf.STEP, config, CONSOLE)
    before = read_manifest(storage.at("teacher"))
    items = read_table(storage.at("items"))
    hashes = pa.array(["new", *items.column("text_hash").to_pylist()[1:]])
    place = items.column_names.index("text_hash")
    write_items(storage, items.set_column(place, items.schema.field(place), hashes))
    with pytest.raises(
        ValueError, match=r"item_text_embeddings does not hold the texts of the items .*; run embed first"
    ):
        execute(train_cf.STEP, config, CONSOLE)
    write_items(storage, items.slice(0, len(items) - 1))
    with pytest.raises(ValueError, match="run embed first"):
        execute(train_cf.STEP, config, CONSOLE)
    storage.delete("item_text_embeddings/manifest.json")
    with pytest.raises(ValueError, match="item_text_embeddings: nothing here yet; run the step that writes it first"):
        execute(train_cf.STEP, config, CONSOLE)
    assert read_manifest(storage.at("teacher")) == before


def test_ctrl_reads_histories_first_and_says_by_what(tmp_path):
    config = config_of(tmp_path, pretraining={"epochs": 2, "batch_size": 32, "dim": 6})
    storage = training_run.prepare(config)
    with pytest.raises(ValueError, match=r"text.model"):
        execute(train_cf.STEP, config, CONSOLE)
    build_tiny_sbert([f"item-{number} watched bought recently" for number in range(25)], tmp_path / "sbert")
    items = read_table(storage.at("items"))
    place = items.column_names.index("title")
    write_items(storage, items.set_column(place, items.schema.field(place), pa.nulls(len(items), pa.string())))
    with pytest.raises(ValueError, match=r"no item has one; name their column in data.items.columns.title"):
        execute(train_cf.STEP, config, CONSOLE)
    assert not storage.exists("teacher/manifest.json") and not storage.exists("teacher/teacher.safetensors")

    write_items(storage, items)
    assert execute(train_cf.STEP, config, CONSOLE)
    stats = read_manifest(storage.at("teacher")).stats
    assert stats["pretraining_encoder"].startswith("sbert@") and 0 < stats["contrastive_loss"] < 10
    trained = load_teacher(storage.at("teacher")).item_embeddings
    assert not execute(train_cf.STEP, config, CONSOLE), "nothing has changed"
    other = config.model_copy(update={"prompt": config.prompt.model_copy(update={"verb_past": "bought"})})
    assert execute(train_cf.STEP, other, CONSOLE), "its texts are others"
    assert not torch.equal(load_teacher(storage.at("teacher")).item_embeddings, trained)
