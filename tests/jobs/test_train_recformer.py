"""`train-baselines recformer`, and RECFORMER in the bundle and in the evaluation."""

import datetime
import json

import pyarrow as pa
import pytest
import torch

from allmrec.bundle.loading import load_bundle
from allmrec.bundle.versions import latest_bundle
from allmrec.core.artifacts import read_manifest, read_table
from allmrec.core.storage import Storage
from allmrec.model import ALLMRec
from allmrec.recformer.artifact import load_recformer, read_new_items
from jobs import bundle, evaluate
from jobs.baselines import steps
from jobs.config import Config
from jobs.pipeline import ordered, steps_of
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from jobs.train_recformer import STEP
from tests.bundle.test_text_teacher import write_texts
from tests.cf.conftest import ragged
from tests.evaluation.tiny import write_items

pytestmark = pytest.mark.usefixtures("in_process")
CONSOLE = Console(log_json=True)
RECFORMER = {"epochs": 1, "max_items": 4, "max_tokens": 48, "batch_size": 20, "validation_users": 30}


def with_recformer(config: Config, **changes) -> Config:
    return Config(**config.model_dump(exclude_unset=True) | {"baselines": {"recformer": RECFORMER | changes}})


def write_later_items(storage: Storage) -> pa.Table:
    """The catalogue with a new item in front; returns its row."""
    items = read_table(storage.at("items"))
    new = {**items.to_pylist()[0], "item_id": "a-new-one", "title": "The Garden", "text_hash": "new", "item_index": 1}
    rows = [new, *({**row, "item_index": row["item_index"] + 1} for row in items.to_pylist())]
    write_items(storage, pa.Table.from_pylist(rows, items.schema))
    write_texts(storage, read_table(storage.at("items")))
    return read_table(storage.at("items")).slice(0, 1)


def test_recformer_is_trained_bundled_and_evaluated_and_reads_new_items(tiny_workspace, capsys):
    config, storage = tiny_workspace
    named = with_recformer(config)
    assert [step.verb for step in steps(named)] == ["train-baselines recformer"]
    execute(STEP, named, CONSOLE, dry_run=True)
    planned = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert planned["steps"] > 0 and planned["tokens_per_item"] < planned["tokens_per_user"] <= 48
    assert planned["tokens_per_evaluation"] > 0
    with pytest.raises(ValueError, match=r"systems/recformer: nothing here yet; run the step"):
        execute(bundle.STEP, named, CONSOLE)
    assert execute(STEP, named, CONSOLE) and not execute(STEP, named, CONSOLE), "nothing has changed"
    stats = read_manifest(storage.at("systems/recformer")).stats
    assert stats["epochs"] == 2 and stats["max_tokens"] == 48 and 0 < stats["valid_ndcg@10"] <= 1

    assert execute(bundle.STEP, named, CONSOLE)
    version = latest_bundle(storage)
    before = ALLMRec(load_bundle(storage, version), config.llm).by_name("recformer")
    assert torch.equal(before.item_embeddings.cpu(), load_recformer(storage.at("systems/recformer")).item_embeddings)
    assert execute(evaluate.STEP, named, CONSOLE)
    rows = [row for row in json.loads(storage.read("metrics.json")) if row["system"] == "recformer"]
    assert {row["protocol"] for row in rows} == {"random", "matched", "swap", "full"}

    row = write_later_items(storage)
    assert execute(bundle.STEP, named, CONSOLE)
    after = ALLMRec(load_bundle(storage, latest_bundle(storage)), config.llm).by_name("recformer")
    vectors_MD, _ = read_new_items(storage.at("systems/recformer"), row)
    torch.testing.assert_close(after.item_embeddings[1].cpu(), vectors_MD[0])
    assert torch.equal(after.item_embeddings[2:], before.item_embeddings[1:])
    users, same = ragged([[1], [1, 3], [3]]), ragged([[9], [9], [2]])
    read = after.represent(users)
    torch.testing.assert_close(read[2], before.represent(same)[2])
    assert (read[0].norm() - 1).abs() < 1e-5 and not torch.allclose(read[1], read[2]), "the new one is read, too"


def test_what_cannot_be_trained_is_said_in_a_line(tiny_workspace):
    config, storage = tiny_workspace
    reads_one_way = with_recformer(config, encoder=config.llm.name)
    with pytest.raises(ValueError, match=r"baselines.recformer.encoder .* is no bidirectional encoder of transformers"):
        execute(STEP, reads_one_way, CONSOLE)
    items = read_table(storage.at("items"))
    nothing = [{**row, "title": None, "categories": None} for row in items.to_pylist()]
    write_items(storage, pa.Table.from_pylist(nothing, items.schema))
    with pytest.raises(ValueError, match=r"no item has one; name their columns in data.items.columns"):
        execute(STEP, with_recformer(config), CONSOLE)
    write_items(storage, items)


def test_a_run_trains_it_before_the_bundle_and_evaluates_it_by_its_name(tiny_workspace):
    named = with_recformer(tiny_workspace[0])
    verbs = [step.verb for step in ordered(steps_of(named, datetime.date(2026, 11, 29)))]
    assert verbs.index("prepare") < verbs.index("train-baselines recformer") < verbs.index("bundle")
    assert named.systems_beside == ("recformer",) and Config(name="any").systems_beside == ()
    assert Config(name="any", baselines={"recformer": {}}).recformer.rate == 1e-3
    assert Config(name="any", baselines={"recformer": {"encoder": "x"}}).recformer.rate == 5e-5
