"""A team's own vectors as the teacher of a whole run: a plain matrix factorisation of the training interactions."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from allmrec.alignment.network import load_network
from allmrec.bundle.loading import load_bundle
from allmrec.bundle.versions import latest_bundle
from allmrec.cf.teacher import load_teacher
from allmrec.core.artifacts import read_manifest, read_table
from allmrec.core.storage import Storage, open_storage
from allmrec.data.sequences import Sequences
from allmrec.publishing.reader import read_recommendations
from jobs import prepare, train_cf
from jobs.config import Config
from jobs.demo import standin_encoder
from jobs.demo.sample_data import sample_data
from jobs.pipeline import run
from jobs.runtime.console import Console
from jobs.runtime.step import execute, load_step
from tests.jobs.in_process import jobs_in_process

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("in_process")]

USERS, ITEMS, DIM, DATE = 400, 300, 12, date(2026, 11, 20)
SYSTEMS = ("random", "teacher", "a-llmrec")
CONSOLE = Console(log_json=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_llm, tiny_tokenizer) -> tuple[Config, Storage, Path]:
    """A prepared run with its models, and the folder of the team's two tables."""
    root = tmp_path_factory.mktemp("runs")
    vectors = root / "vectors"
    sample_data(str(root / "input"), users=USERS, items=ITEMS, interactions_per_user=15)
    tiny_llm.save_pretrained(root / "llm")
    tiny_tokenizer.save_pretrained(root / "llm")
    config = Config(
        name="own",
        root=str(root),
        data={
            "interactions": {"paths": [str(root / "input/movies/interactions.parquet")]},
            "items": {"paths": [str(root / "input/movies/items.parquet")]},
            "num_shards": 3,
        },
        text={"model": str(root / "own/models/encoder")},
        llm={"name": str(root / "llm")},
        prompt={"max_history": 4},
        teacher={
            "model": "external",
            "validation": "random",
            "item_embeddings": {"paths": [str(vectors / "items-*.parquet")], "columns": {"item_id": "sku"}},
            "user_representations": str(vectors / "users.parquet"),
        },
        alignment={"epochs": 2},
        projection={"epochs": 1, "batch_size": 32, "num_candidates": 5},
        evaluation={"num_negatives": 9, "systems": SYSTEMS, "max_users": 60},
        nightly={"num_candidates": 8, "top_k": 5},
        workers={"num_workers": 1},
    )
    with jobs_in_process():
        execute(prepare.STEP, config, CONSOLE)
    execute(standin_encoder.STEP, config, CONSOLE)
    storage = open_storage(config.workspace_uri)
    factorise(storage, vectors)
    return config, storage, vectors


def factorise(storage: Storage, vectors: Path) -> None:
    """PureSVD (Cremonesi et al. 2010) of who has what, without the held-out items."""
    train = Sequences.read_train(storage.at("sequences"))
    item_ids = read_table(storage.at("items")).column("item_id").to_pylist()
    has_UI = np.zeros((len(train), len(item_ids)))
    has_UI[train.rows(), train.items - 1] = 1
    user_UU, value_V, item_VI = np.linalg.svd(has_UI, full_matrices=False)
    x_UD, E_ID = (user_UU * value_V)[:, :DIM], item_VI[:DIM].T
    vectors.mkdir(exist_ok=True)
    # The items' table has one that the shop dropped, and lacks five besides the unused ones. Three users are new.
    there = np.flatnonzero(has_UI.any(axis=0))[5:]
    ids = [*(item_ids[item] for item in there), "gone"]
    E_RD = E_ID[[*there, 0]]
    _write(vectors / "items-1.parquet", "sku", ids[:100], E_RD[:100])
    _write(vectors / "items-2.parquet", "sku", ids[100:], E_RD[100:])
    _write(vectors / "users.parquet", "user_id", train.user_ids.to_pylist()[:-3], x_UD[:-3])


def _write(path: Path, key: str, ids: list[str], rows: np.ndarray) -> None:
    pq.write_table(pa.table({key: ids, "embedding": rows.astype(np.float32).tolist()}), path)


def test_own_vectors_through_the_whole_run(prepared, capsys: pytest.CaptureFixture[str]):
    config, storage, _ = prepared
    execute(train_cf.STEP, config, CONSOLE, dry_run=True)
    (plan,) = map(json.loads, capsys.readouterr().out.splitlines()[-1:])
    assert plan["users"] == USERS and plan["user_representations rows"] == USERS - 3
    assert plan["items"] == ITEMS and 200 < plan["item_embeddings rows"] < ITEMS - 4
    assert not storage.exists("teacher/manifest.json")

    run(config, CONSOLE, DATE)

    stats = read_manifest(storage.at("teacher")).stats
    assert stats["items_without_embedding"] == ITEMS - plan["item_embeddings rows"] + 1
    assert stats["embeddings_of_unknown_items"] == 1
    assert (stats["users"], stats["users_without_representation"]) == (USERS - 3, 3)
    metrics = {
        (row["system"], row["protocol"]): row["value"]
        for row in json.loads(storage.read("metrics.json"))
        if (row["subset"], row["metric"]) == ("all", "ndcg@10")
    }
    assert {system for system, _ in metrics} == set(SYSTEMS)
    assert metrics["teacher", "random"] > metrics["random", "random"] + 0.1
    assert metrics["teacher", "swap"] < metrics["teacher", "random"] - 0.05, "it is personal"
    assert stats["valid_ndcg@10"] == pytest.approx(metrics["teacher", "random"], abs=0.1)
    recommendations = read_recommendations(f"{config.workspace_uri}/recommendations").to_pylist()
    assert len(recommendations) == USERS and {len(row["items"]) for row in recommendations} == {5}

    capsys.readouterr()
    run(config, CONSOLE, DATE)
    assert {json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()} == {"skip"}


def test_a_new_item_has_what_the_decoder_makes_of_its_text_until_the_tables_are_imported_again(prepared):
    config, storage, _ = prepared
    run(config, CONSOLE, DATE)
    path = config.data.items.paths[0]
    catalogue = pq.read_table(path)
    title = pa.array(["A New Film"], catalogue.schema.field("title").type)
    one = {name: pa.nulls(1, catalogue.schema.field(name).type) for name in catalogue.column_names}
    new = pa.table({**one, "item_id": ["new"], "title": title}, schema=catalogue.schema)
    pq.write_table(pa.concat_tables([catalogue, new]), path)
    try:
        for verb in ("prepare", "embed", "bundle:REFRESH"):
            assert execute(load_step(f"jobs.{verb}"), config, CONSOLE)
    finally:
        pq.write_table(catalogue, path)
    bundle = load_bundle(storage, latest_bundle(storage))
    (index,) = np.flatnonzero(bundle.new_N)
    E_ND = bundle.teacher.item_embeddings
    decoded_D = load_network(storage.at("alignment")).decode_items(bundle.q_NJ[index])
    assert bundle.catalogue.titles[int(index)].as_py() == "A New Film" and E_ND[index].any()
    torch.testing.assert_close(E_ND[index], decoded_D)
    assert torch.equal(E_ND[:ITEMS], load_teacher(storage.at("teacher")).item_embeddings[:ITEMS]), "others stay"


def test_changed_tables_are_read_again_and_bad_ones_leave_the_teacher_alone(prepared):
    config, storage, vectors = prepared
    execute(train_cf.STEP, config, CONSOLE)
    before = read_manifest(storage.at("teacher"))
    users = pq.read_table(vectors / "users.parquet")
    pq.write_table(pa.concat_tables([users, users.slice(0, 1)]), vectors / "users.parquet")
    with pytest.raises(ValueError, match=r"user_representations: user_id '.*' occurs twice") as error:
        execute(train_cf.STEP, config, CONSOLE)
    assert "\n" not in str(error.value)
    assert read_manifest(storage.at("teacher")) == before and load_teacher(storage.at("teacher"))
    pq.write_table(users.slice(1), vectors / "users.parquet")
    assert execute(train_cf.STEP, config, CONSOLE)
    assert read_manifest(storage.at("teacher")).stats["users"] == before.stats["users"] - 1
