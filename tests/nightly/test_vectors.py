"""Runs that retrieve by LLM-SRec's vectors, keep them from night to night, and publish them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allmrec import read_vectors
from allmrec.bundle.build import refresh_bundle
from allmrec.bundle.versions import latest_bundle, promote
from allmrec.core.artifacts import commit, file_entry, read_table
from allmrec.core.shard_tasks import read_reports
from allmrec.core.storage import Storage, open_storage
from allmrec.nightly.blend import METRIC, NAME, FitShards, best_weight, blended, candidates_log_p
from allmrec.nightly.config import NightlyConfig
from allmrec.nightly.estimate import estimate
from allmrec.nightly.inputs import NightlyInputs
from allmrec.nightly.score import ScoreShards
from allmrec.publishing.reader import read_recommendations, run_manifest, verify_run
from jobs.config import Config
from tests.evaluation.tiny import NUM_ITEMS, NUM_SHARDS, NUM_USERS, tiny_config, write_tiny_workspace
from tests.nightly.nightly_run import FIRST, SECOND, Made, make, with_nightly
from tests.nightly.test_llm_srec import bundled
from tests.nightly.test_new_items import LOST, NEW, RETITLED, embed, prepare_again
from tests.nightly.test_nightly_run import STRANGERS, partition, popular_items
from tests.publishing.test_run import Killed, mortal
from tests.s3_fixtures import new_bucket

THIRD = SECOND.replace(day=22)
ALONE = {"ranker": "llm-srec", "retriever": "llm-srec"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory, tiny_llm, tiny_tokenizer) -> tuple[Config, Storage]:
    """A workspace with LLM-SRec in its bundle."""
    config = tiny_config(tmp_path_factory.mktemp("vectors"))
    storage = write_tiny_workspace(config, tiny_llm, tiny_tokenizer)
    return bundled(config, storage, tiny_llm, seed=1), storage


def scores_of(made: Made) -> dict[str, np.ndarray]:
    """Of every user with all items, by LLM-SRec as it is: (I,); -inf for what the user has seen."""
    system, found = made.worker.model.llm_srec, {}
    for shard in range(NUM_SHARDS):
        users = made.job.users.read(shard).users
        scores_UI = system.represent(users) @ system.item_embeddings.T
        scores_UI[torch.from_numpy(users.rows()), torch.from_numpy(users.items).long()] = -torch.inf
        scores_UI[:, 0] = -torch.inf
        found |= dict(zip(users.user_ids.to_pylist(), scores_UI.numpy(), strict=True))
    return found


def test_it_retrieves_from_the_whole_catalogue(shop, tmp_path: Path) -> None:
    config, storage = shop
    blocked = {"blocked_items": {"ids": ["item-03"]}, "allowed_categories": ["Comedy", "War"]}
    made = make(with_nightly(config, tmp_path / "out", **ALONE, **blocked), storage)
    spent, model = made.figures["tokens"], made.worker.model
    assert model._rankers == {} and model.llm_srec.tokens == spent > 0, "nothing but users is asked for"
    assert made.figures["vectors_read"] == made.figures["scored_by_llm"] == NUM_USERS
    allowed = made.job.items().filter.allowed_I
    ids = np.array(model.bundle.catalogue.item_ids.to_pylist())
    for user, scores_I in scores_of(made).items():
        best = np.argsort(-np.where(allowed, scores_I, -np.inf), kind="stable")[:5]
        assert made.lists()[user] == ids[best].tolist()
        np.testing.assert_allclose([item["score"] for item in made.by_user[user]["items"]], scores_I[best], atol=1e-5)

    # Whatever ranks, the candidates are LLM-SRec's; and of two shards in hand none gets the other's.
    by_teacher = make(with_nightly(config, tmp_path / "teacher", retriever="llm-srec", ranker="teacher"), storage)
    threads = make(with_nightly(config, tmp_path / "two", **ALONE), storage, threads=2)
    for user, scores_I in scores_of(by_teacher).items():
        best = np.argsort(-scores_I, kind="stable")
        assert {*by_teacher.lists()[user]} <= {*ids[best[:8]].tolist()}
        assert threads.lists()[user] == ids[best[:5]].tolist()
    assert threads.figures["tokens"] == threads.worker.model.llm_srec.tokens == spent
    assert {row["source"] for row in by_teacher.rows} == {"teacher"}


@pytest.mark.s3
@pytest.mark.usefixtures("s3_environment")
@pytest.mark.parametrize("by", [{"ranker": "llm-srec"}, ALONE], ids=["ranker", "retriever"])
def test_runs_on_s3_are_resumed_and_an_unchanged_one_asks_the_llm_nothing(shop, s3, by: dict[str, str]) -> None:
    config, storage = shop
    calm, disturbed = (with_nightly(config, new_bucket(s3), publish_vectors=True, **by) for _ in range(2))
    first = make(calm, storage)
    second = make(calm, storage, SECOND)
    assert second.figures["tokens"] == second.figures["vectors_read"] == 0
    assert second.figures["reused"] == second.figures["vectors_reused"] == NUM_USERS
    assert "llm" not in vars(second.worker.model), "not even loaded"
    assert second.lists() == first.lists()

    output, kills = open_storage(str(disturbed.nightly.output)), 0
    inputs = NightlyInputs(disturbed.workspace, disturbed.nightly, disturbed.llm, disturbed.seed, disturbed.storage)
    for die_at in (4, 9, 12, 13, 16, 25):
        try:
            worker = ScoreShards(inputs.prepare_job(mortal(output, die_at), FIRST, inputs.item_sources.summary()))
            for shard in sorted({*range(NUM_SHARDS)} - worker.job.run.finished_shards()):
                list(worker({"id": np.array([shard])}))
        except Killed:
            kills += 1
    assert kills > 3
    resumed = make(disturbed, storage)
    assert resumed.rows == first.rows
    for of in ("users", "items"):
        tables = [read_vectors(str(one.nightly.output), of, FIRST) for one in (calm, disturbed)]
        assert tables[0].equals(tables[1]) and len(tables[0])


def test_a_catalogue_that_gains_an_item_costs_no_user_a_prompt(tiny_llm, tiny_tokenizer, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    storage = write_tiny_workspace(config, tiny_llm, tiny_tokenizer)
    named = bundled(config, storage, tiny_llm, seed=1)
    config = with_nightly(named, tmp_path / "out", **ALONE, publish_vectors=True, top_k=8)
    index = read_table(storage.at("items")).column("item_id").to_pylist()
    make(config, storage)
    assert NEW not in read_vectors(str(tmp_path / "out"), "items").column("item_id").to_pylist()
    changed = {index.index(item) + 1 for item in (LOST, RETITLED)}
    had = [row for row in read_table(storage.at("sequences")).to_pylist() if changed & {*row["item_index"]}]
    assert 0 < len(had) < NUM_USERS / 2

    prepare_again(storage)
    embed(storage)
    promote(storage, refresh_bundle(storage, latest_bundle(storage)))
    second = make(config, storage, SECOND)
    assert second.figures["vectors_read"] == len(had) + 1, "who has had the item with another title, and a new user"
    assert second.figures["vectors_reused"] == NUM_USERS - len(had)
    assert second.figures["reused"] < second.figures["vectors_reused"], "the new item is among the candidates"

    # The new item's vector is read off its text; it is one of the published, and not read again.
    items = read_vectors(str(tmp_path / "out"), "items")
    ids, model = items.column("item_id").to_pylist(), second.worker.model
    place = model.bundle.catalogue.item_ids.to_pylist().index(NEW)
    vector = items.column("vector")[ids.index(NEW)].as_py()
    found = model.llm_srec.vectors_of(np.array([place]))[0].numpy()
    np.testing.assert_allclose(vector, found, atol=1e-5)
    lists = second.lists()
    assert all(NEW in items for user, items in lists.items() if user != "only-new") and NEW not in lists["only-new"]
    third = make(config, storage, THIRD)
    assert "llm" not in vars(third.worker.model) and third.figures["reused"] == NUM_USERS + 1
    assert read_vectors(str(tmp_path / "out"), "items").column("vector").equals(items.column("vector"))


def test_published_vectors_score_as_the_lists_say(shop, tmp_path: Path) -> None:
    config, storage = shop
    everyone = sorted(read_table(storage.at("sequences")).column("user_id").to_pylist())
    partition(storage, "nightly_users", [*everyone, *STRANGERS])
    partition(storage, "suppressed_users", everyone[:2])
    lists = {"users": "asked.parquet", "suppressed_users": "gone.parquet", "suppressed_items": {"ids": ["item-01"]}}
    made = make(with_nightly(config, tmp_path, ranker="llm-srec", publish_vectors=True, **lists), storage)
    output = open_storage(str(tmp_path))
    users, items = (read_vectors(output.uri, of, FIRST) for of in ("users", "items"))
    assert sorted(users.column("user_id").to_pylist()) == everyone[2:], "neither suppressed nor without a history"
    assert sorted(items.column("item_id").to_pylist()) == [f"item-{n:02d}" for n in range(NUM_ITEMS) if n != 1]
    by_id = [
        dict(zip(table.column(name).to_pylist(), np.array(table.column("vector").to_pylist()), strict=True))
        for table, name in ((users, "user_id"), (items, "item_id"))
    ]
    for row in made.rows:
        if row["user_id"] in STRANGERS:
            assert row["source"] == "popular"
            continue
        products = [by_id[0][row["user_id"]] @ by_id[1][item["item_id"]] for item in row["items"]]
        np.testing.assert_allclose(products, [item["score"] for item in row["items"]], atol=1e-5)
    expected = [item for item in popular_items(storage, 6) if item != "item-01"]
    assert all(made.lists()[user] == expected for user in STRANGERS)

    manifest = run_manifest(output)
    assert [len(files) for files in manifest["vectors"].values()] == [NUM_SHARDS, NUM_SHARDS]
    assert run_manifest(output, FIRST)["vectors"] == manifest["vectors"], "in latest.json as in _SUCCESS"
    assert verify_run(output)["files"] == 3 * NUM_SHARDS
    output.write(manifest["vectors"]["users"][0]["key"], b"damaged")
    with pytest.raises(ValueError, match=r"_vectors/users/part-00000.parquet is damaged"):
        verify_run(output)

    plain = make(with_nightly(config, tmp_path / "plain", ranker="llm-srec"), storage)
    assert "vectors" not in run_manifest(plain.job.run.storage)
    with pytest.raises(ValueError, match=r"has no vectors; set nightly\.publish_vectors"):
        read_vectors(str(tmp_path / "plain"), "users")


def test_vectors_that_are_not_those_of_the_run_are_not_published(
    shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, storage = shop
    config = with_nightly(config, tmp_path, ranker="llm-srec", publish_vectors=True)
    inputs = NightlyInputs(config.workspace, config.nightly, config.llm, config.seed, config.storage)
    worker = ScoreShards(inputs.prepare_job(open_storage(str(tmp_path)), FIRST, inputs.item_sources.summary()))
    made = worker.vectors
    assert made is not None
    tables = made.tables

    def cut(*args: Any) -> dict[str, Any]:
        found = tables(*args)
        return found | {"users": found["users"].slice(1)}

    monkeypatch.setattr(made, "tables", cut)
    list(worker({"id": np.array([0])}))
    with pytest.raises(ValueError, match="vectors of users of shard 0: 1 users are missing"):
        make(config, storage)
    assert not (tmp_path / "latest.json").exists()


def test_the_blend_with_the_teacher(shop, tmp_path: Path) -> None:
    config, storage = shop
    told = (storage, latest_bundle(storage), config.llm, config.seed)
    shards, alone = {"id": np.arange(NUM_SHARDS)}, FitShards(*told, "llm-srec-blend")
    reports = list(read_reports(alone(shards)))
    found = best_weight(reports)
    assert found[METRIC][str(found["weight"])] == max(found[METRIC].values()) and found["cases"] > 0
    other = best_weight(list(read_reports(FitShards(*told)(shards))))
    assert found[METRIC]["0.0"] == other[METRIC]["0.0"], "the teacher alone"
    assert found[METRIC]["1.0"] != other[METRIC]["1.0"], "LLM-SRec, and not A-LLMRec"

    out = storage.at("blend")
    data = b'{"weight": 0.5}'
    out.write(NAME, data)
    commit(out, "blend", "test", {NAME: file_entry(data)})
    config = with_nightly(config, tmp_path, ranker="llm-srec-blend")
    made, model = make(config, storage), alone.systems.model
    users = made.job.users.read(0).users
    items_UN = made.worker.candidates(0, users).items
    logits_UN = candidates_log_p(model.scores_by("llm-srec", users, items_UN), items_UN, 0.07)
    expected_UN = np.exp(blended(logits_UN, model.scores_by("teacher", users, items_UN), 0.5))
    for row, user in enumerate(users.user_ids.to_pylist()):
        scores = [item["score"] for item in made.by_user[user]["items"]]
        np.testing.assert_allclose(scores, np.sort(expected_UN[row])[::-1][:5], rtol=1e-4)
    assert made.report["weight"] == 0.5 and {row["source"] for row in made.rows} == {"llm"}
    assert NightlyConfig(ranker="llm-srec-blend").num_candidates == 200


@pytest.mark.parametrize(
    "by", [{"ranker": "llm-srec"}, {"ranker": "llm-srec-blend"}, {"retriever": "llm-srec"}], ids=str
)
def test_what_does_not_fit_is_named_before_anything_is_written(
    tiny_workspace, tiny_llm, tiny_tokenizer, tmp_path: Path, by: dict[str, str]
) -> None:
    config, storage = tiny_workspace
    with pytest.raises(ValueError, match="has no llm-srec; name it in `baselines`, then run train-baselines"):
        make(with_nightly(config, tmp_path / "none", **by), storage)
    tiny_tokenizer.save_pretrained(tmp_path / "llm")
    tiny_llm.save_pretrained(tmp_path / "llm", max_shard_size="10KB")
    settings = with_nightly(config, tmp_path / "none", **by)
    another = settings.model_copy(update={"llm": settings.llm.model_copy(update={"name": str(tmp_path / "llm")})})
    with pytest.raises(ValueError, match=r"was trained into the LLM .* is another model or another revision"):
        make(another, storage)
    assert not (tmp_path / "none").exists()


def test_a_part_of_nan_makes_no_bundle(tiny_workspace, tiny_llm) -> None:
    config, storage = tiny_workspace
    before = latest_bundle(storage)
    for part, what in (("vectors", "vectors of items"), ("user_0_weight", "weights")):
        with pytest.raises(ValueError, match=f"llm-srec's {what} hold NaN or inf"):
            bundled(config, storage, tiny_llm, seed=3, **{part: float("nan")})
    assert latest_bundle(storage) == before


def test_nan_of_the_llm_names_users_and_is_not_written(shop, tmp_path: Path) -> None:
    config = with_nightly(shop[0], tmp_path, **ALONE)
    inputs = NightlyInputs(config.workspace, config.nightly, config.llm, config.seed, config.storage)
    worker = ScoreShards(inputs.prepare_job(open_storage(str(tmp_path)), FIRST, inputs.item_sources.summary()))
    worker.model.llm_srec.readout.tokens.weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"llm-srec reads users \['user-"):
        list(worker({"id": np.array([0])}))
    assert not worker.job.run.finished_shards() and not [*tmp_path.rglob("*.parquet")]


def test_an_item_without_a_title_has_a_vector(shop, tmp_path: Path) -> None:
    config, storage = shop
    made = make(with_nightly(config, tmp_path, **ALONE, num_candidates=NUM_ITEMS, top_k=NUM_ITEMS - 7), storage)
    untitled = f"item-{NUM_ITEMS - 1}"
    assert read_table(storage.at("items")).filter(read_table(storage.at("items"))["title"].is_null())[
        "item_id"
    ].to_pylist() == [untitled]
    system = made.worker.model.llm_srec
    assert system.vectors_of(np.array([NUM_ITEMS])).isfinite().all()
    assert any(untitled in items for items in made.lists().values())
    assert len(read_recommendations(str(tmp_path))) == NUM_USERS


def test_a_plan_counts_the_prompts_of_both(shop, tmp_path: Path) -> None:
    config, _ = shop
    tokens = {}
    for retriever, ranker, prompts in (("teacher", "teacher", 0), ("llm-srec", "teacher", 1), ("llm-srec", "llm", 2)):
        found = with_nightly(config, tmp_path, retriever=retriever, ranker=ranker)
        inputs = NightlyInputs(found.workspace, found.nightly, found.llm, found.seed, found.storage)
        plan = estimate(inputs, open_storage(str(tmp_path)), FIRST, None, 0)
        assert plan["prompts"] == prompts * NUM_USERS
        tokens[prompts] = plan.get("tokens", 0)
    assert 0 == tokens[0] < tokens[1] < tokens[2] - tokens[1], "a prompt of LLM-SRec lists no candidates"


def test_vectors_need_llm_srec() -> None:
    with pytest.raises(ValueError, match="publish_vectors: the vectors are LLM-SRec's; set retriever or ranker"):
        NightlyConfig(publish_vectors=True)
    assert NightlyConfig().identity() == NightlyConfig().ranking(), "a run of today stays the same run"
    assert NightlyConfig(retriever="llm-srec").ranking() == NightlyConfig().ranking(), "rows depend on candidates"
    assert NightlyConfig(retriever="llm-srec").identity() != NightlyConfig().identity()
