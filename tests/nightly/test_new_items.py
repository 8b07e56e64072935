"""Items come, go and change their numbers: any bundle works on, and a new one needs no training."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allmrec.alignment.network import load_network
from allmrec.bundle.loading import load_bundle
from allmrec.bundle.versions import latest_bundle, promote
from allmrec.cf.external import ExternalTeacher
from allmrec.cf.teacher import Teacher, TeacherConfig, build_teacher
from allmrec.core.artifacts import commit, read_table, shard_name, write_shard, writing
from allmrec.core.storage import Storage
from allmrec.data.trained_items import indices_in
from allmrec.nightly.candidates import with_quota
from jobs import bundle
from jobs.config import Config
from jobs.runtime.console import Console
from schemas import item_text_embeddings, sequences
from tests.cf.conftest import ragged
from tests.evaluation.tiny import NUM_ITEMS, NUM_SHARDS, tiny_config, write_items, write_tiny_workspace
from tests.jobs.in_process import executed
from tests.nightly.nightly_run import SECOND, Made, make, with_nightly

QUIET = Console(log_json=True)
NEW, GONE, LOST, RETITLED = "an-item", "item-05", "item-07", "item-09"


def prepare_again(storage: Storage) -> None:
    """Everything is numbered again, from the end: an item is new, one is not available any more, and one is not there
    at all; one has another title. Histories follow, with a user who has had nothing but the new item."""
    table = read_table(storage.at("items"))
    rows = [row for row in reversed(table.to_pylist()) if row["item_id"] != LOST]
    for row in rows:
        row["available"] = None if row["item_id"] != GONE else False
        if row["item_id"] == RETITLED:
            row |= {"title": "Another", "text_hash": "another"}
    counts = {"popularity": 3, "interactions": 3}
    new = {**rows[0], "item_id": NEW, "title": "A New Item", "available": None, "text_hash": "new", **counts}
    rows.insert(20, new)
    numbered = [{**row, "item_index": number} for number, row in enumerate(rows, 1)]
    items = pa.Table.from_pylist(numbered, table.schema)
    to_new_I = indices_in(table.column("item_id"), items)
    tables = []
    for shard in range(NUM_SHARDS):
        users = read_table(storage.at("sequences"), [shard]).to_pylist()
        for user in users:
            kept = [place for place, item in enumerate(user["item_index"]) if to_new_I[item]]
            user["item_index"] = [int(to_new_I[user["item_index"][place]]) for place in kept]
            user["timestamp"] = [user["timestamp"][place] for place in kept]
            user["train_length"] = len(kept)
        if shard == 0:
            first = users[0]
            index = next(row["item_index"] for row in numbered if row["item_id"] == NEW)
            users.append({**first, "user_id": "only-new", "item_index": [index], "timestamp": first["timestamp"][:1]})
            users[-1]["train_length"] = 1
        tables.append(pa.Table.from_pylist(users, sequences.SCHEMA))
    files = {
        shard_name(n): write_shard(storage.at("sequences"), sequences.SCHEMA, shard_name(n), t)
        for n, t in enumerate(tables)
    }
    commit(storage.at("sequences"), "sequences", "later", files)
    write_items(storage, items)


def embed(storage: Storage, encoder: str = "tiny") -> np.ndarray:
    """As `embed` does, by any vectors."""
    table = read_table(storage.at("items")).sort_by("item_index")
    vectors = np.random.default_rng(3).normal(size=(len(table), 5)).astype(np.float32)
    schema = item_text_embeddings.schema(5)
    columns = [
        table["item_id"],
        table["text_hash"],
        pa.array([encoder] * len(table)),
        pa.array(vectors.tolist(), schema.field("embedding").type),
    ]
    with writing(storage.at("item_text_embeddings"), "item_text_embeddings", "test") as out:
        out.table(0, schema, pa.table(columns, schema=schema))
        out.stats["encoder"] = encoder
    return vectors


@dataclass
class Changed:
    """A workspace that was prepared again after its bundle was built, and what its nights gave before that."""

    config: Config
    storage: Storage
    before: Made  # without the items that are to go
    had_lost: set[str]  # users with the item in their history that is to be lost


@pytest.fixture(scope="module")
def changed(tmp_path_factory, tiny_llm, tiny_tokenizer) -> Changed:
    config = tiny_config(tmp_path_factory.mktemp("new_items"))
    storage = write_tiny_workspace(config, tiny_llm, tiny_tokenizer)
    executed(bundle.STEP, config)
    index = read_table(storage.at("items"))["item_id"].to_pylist().index(LOST) + 1
    histories = read_table(storage.at("sequences")).to_pylist()
    without = with_nightly(config, tmp_path_factory.mktemp("before"), blocked_items={"ids": [GONE, LOST]})
    made = make(without, storage)
    prepare_again(storage)
    return Changed(config, storage, made, {user["user_id"] for user in histories if index in user["item_index"]})


def recommended(made: Made) -> set[str]:
    return {item for items in made.lists().values() for item in items}


def check_as_before(changed: Changed, made: Made) -> None:
    assert not {NEW, GONE, LOST} & recommended(made)
    lists, expected = made.lists(), changed.before.lists()
    assert {user for user in expected if lists[user] != expected[user]} <= changed.had_lost, "indices are translated"
    assert 0 < len(changed.had_lost) < len(expected) / 2
    assert made.by_user["only-new"]["source"] == "popular", "the bundle knows nothing that this user has had"
    assert made.figures["items_not_in_bundle"] == 1 and made.figures["new_items"] == 0


def test_the_bundle_in_use_works_whatever_is_prepared(changed: Changed, tmp_path: Path) -> None:
    check_as_before(changed, make(with_nightly(changed.config, tmp_path), changed.storage, SECOND))


def test_a_bundle_takes_new_items_by_their_texts_and_can_be_gone_back_from(changed: Changed, tmp_path: Path) -> None:
    config, storage = with_nightly(changed.config, tmp_path), changed.storage
    old = latest_bundle(storage)
    with pytest.raises(ValueError, match=r"item_text_embeddings"):
        executed(bundle.STEP, config)
    embed(storage, "another")
    with pytest.raises(ValueError, match="was not embedded by tiny, as in training"):
        executed(bundle.STEP, config)
    assert latest_bundle(storage) == old, "no bundle is seen that does not load"
    texts_IS = torch.from_numpy(embed(storage))
    assert executed(bundle.STEP, config) and latest_bundle(storage) != old

    built, trained = load_bundle(storage, latest_bundle(storage)), load_bundle(storage, old)
    index, retitled = (built.catalogue.item_ids.to_pylist().index(item) for item in (NEW, RETITLED))
    network = load_network(storage.at("alignment"))
    q_J = network.encode_texts(texts_IS[[index - 1]])[0]
    torch.testing.assert_close(built.q_NJ[index], q_J)
    torch.testing.assert_close(built.teacher.item_embeddings[index], network.decode_items(q_J))
    torch.testing.assert_close(built.q_NJ[retitled], network.encode_texts(texts_IS[[retitled - 1]])[0])
    assert built.item_counts()["items new since training"] == 1
    uses_text_N = built.uses_text_embedding()
    assert uses_text_N[index] and torch.equal(built.item_inputs()[index], built.q_NJ[index])
    same = np.flatnonzero(indices_in(pa.chunked_array([built.catalogue.item_ids[1:]]), trained.items))
    rows = indices_in(pa.chunked_array([built.catalogue.item_ids[1:]]), trained.items)[same]
    assert torch.equal(built.e_NJ[same], trained.e_NJ[rows])
    assert torch.equal(built.teacher.item_embeddings[same], trained.teacher.item_embeddings[rows])

    made = make(config, storage, SECOND)
    assert NEW in recommended(made) and not {GONE, LOST} & recommended(made)
    assert made.by_user["only-new"]["source"] == "llm", "a new user with a history of new items alone"
    figures = made.figures
    assert (figures["new_items_eligible"], figures["new_items_recommended"], figures["items_not_in_bundle"]) == (
        1,
        1,
        0,
    )
    assert figures["new_items"] == 1 / (NUM_ITEMS - 1)
    strict = with_nightly(config, tmp_path, quality_gates={"max_new_items": 0.01})
    again = make(strict, storage, SECOND)
    assert [gate["name"] for gate in again.report["quality_gates"] if not gate["holds"]] == ["max_new_items"]
    assert again.job.run.run_id == made.job.run.run_id and again.rows == made.rows, "it says so, and is published"

    promote(storage, old)
    check_as_before(changed, make(with_nightly(config, tmp_path / "back"), storage, SECOND))
    assert not executed(bundle.STEP, config) and latest_bundle(storage) == old, "going back holds"
    assert executed(bundle.REFRESH, config) and latest_bundle(storage) == built.version, "of the same models"
    assert not executed(bundle.REFRESH, config), "it has the items"


@given(st.data())
def test_a_quota_of_candidates(data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 6))
    wanted_width = data.draw(st.integers(1, width))
    items, wanted = (
        data.draw(st.lists(st.integers(1, 9), unique=True, max_size=size)) for size in (width, wanted_width)
    )
    pad = [np.array([row + [0] * (size - len(row))]) for row, size in ((items, width), (wanted, wanted_width))]
    found = with_quota(*pad)[0].tolist()
    kept = [item for item in found if item]
    assert len(set(kept)) == len(kept) == min(width, len({*items, *wanted})) and found == kept + [0] * (
        width - len(kept)
    )
    assert set(wanted) <= set(kept) and set(kept) <= {*items, *wanted}
    assert kept[: width - wanted_width] == items[: width - wanted_width] or len(items) < width - wanted_width


@pytest.mark.parametrize("model", ["sasrec", "gru4rec", "nextitnet", "ncf", "external"])
def test_a_teacher_under_other_numbers_is_the_same_teacher(model: str) -> None:
    if model == "external":
        items_ND = torch.randn(10, 8).index_fill(0, torch.tensor([0]), 0)
        hashes = np.sort(ragged([[1], [2]]).hashes().view(np.int64))
        tables = items_ND, torch.randn(2, 8), torch.from_numpy(hashes)
        teachers: list[Teacher] = [ExternalTeacher(*tables) for _ in range(2)]
    else:
        config = TeacherConfig(model=model, dim=8, max_history=5)
        teachers = [build_teacher(config, 9).eval().requires_grad_(False) for _ in range(2)]
        teachers[1].load_state_dict(teachers[0].state_dict())
    rows_N = torch.tensor([0, 3, 1, 0, 9, 2, 4, 5, 6, 7, 8])  # the third is new
    new_ND = torch.zeros(11, 8).index_fill(0, torch.tensor([3]), 0.5)
    teachers[1].take_items(rows_N, new_ND)
    before, after = ragged([[3, 1, 9], [2]]), ragged([[1, 2, 4], [5]])
    x_BD = teachers[1].represent(after)
    torch.testing.assert_close(x_BD, teachers[0].represent(before))
    expected_BN = teachers[0].shared_scores(x_BD)[:, rows_N]
    known = rows_N > 0
    torch.testing.assert_close(teachers[1].shared_scores(x_BD)[:, known], expected_BN[:, known])
    torch.testing.assert_close(teachers[1].item_embeddings[3], torch.full((8,), 0.5))
    assert teachers[1].represent(ragged([[3]])).isfinite().all()
