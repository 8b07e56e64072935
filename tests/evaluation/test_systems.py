"""Systems see the same cases, tell their candidates apart by nothing but scores, and the swap swaps."""

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.cf.teacher import TeacherConfig, build_teacher
from allmrec.core.artifacts import commit, read_table, write_shard
from allmrec.core.shard_tasks import gather, read_reports
from allmrec.data.cases import Cases
from allmrec.data.evaluation_cases import TRAINED_BESIDE
from allmrec.data.sequences import Sequences
from allmrec.evaluation.shards import EvaluateShards
from allmrec.evaluation.systems import NEED_LLM, Systems
from allmrec.llm.ranking import Ranker
from allmrec.metrics import METRICS, evaluate_scores, standing, summarise
from allmrec.model import ALLMRec
from schemas.evaluation_cases import SCHEMA

NAMES = ("random", "popularity", "teacher", "llm-only", "a-llmrec", "a-llmrec-untrained", "a-llmrec-sbert")


@pytest.fixture
def systems(tiny_model):
    return Systems(tiny_model, seed=0)


def column_order(cases: Cases, order: np.ndarray) -> Cases:
    return replace(cases, candidates_BC=cases.candidates_BC[:, order])


def test_a_case_has_the_users_history_up_to_its_target(tiny_bundle, cases):
    _, storage, _ = tiny_bundle
    rows = {row["user_id"]: row["item_index"] for row in read_table(storage.at("sequences"), [0]).to_pylist()}
    assert len(cases) == sum(len(items) >= 3 for items in rows.values()) > 5
    for number, user_id in enumerate(cases.user_ids.to_pylist()):
        history = cases.histories.items[cases.histories.offsets[number] : cases.histories.offsets[number + 1]]
        assert [*history, cases.candidates_BC[number, 0]] == rows[user_id]
    assert not (cases.warm_B & cases.cold_B).any() and cases.warm_B.any() and cases.cold_B.any()


def test_a_shard_without_cases_has_none(tiny_bundle, cases, systems):
    _, storage, _ = tiny_bundle
    table, sequences = read_table(storage.at("evaluation_cases"), [0]), Sequences.read(storage.at("sequences"), [0])
    for none in (Cases.select(table.slice(0, 0), sequences, "test", "random"), cases.take(np.arange(0))):
        assert len(none) == len(none.swapped(0)) == 0 and not list(none.blocks(10))


@pytest.mark.parametrize("name", NAMES)
def test_a_score_depends_on_the_case_alone(systems, cases, name):
    """Not on who else is in the batch."""
    whole = systems.score(name, cases)
    assert whole.shape == cases.candidates_BC.shape
    for rows in (np.array([3]), np.array([4, 1])):
        np.testing.assert_allclose(systems.score(name, cases.take(rows)), whole[rows], atol=1e-4)


@pytest.mark.parametrize("name", ["random", "popularity", "teacher"])
def test_a_score_belongs_to_its_candidate_wherever_it_stands(systems, cases, name):
    order = np.random.default_rng(0).permutation(cases.candidates_BC.shape[1])
    moved = systems.score(name, column_order(cases, order))
    np.testing.assert_allclose(moved, systems.score(name, cases)[:, order], atol=1e-6)


def test_popularity_and_teacher_are_what_they_say(systems, cases, tiny_model):
    popularity = tiny_model.bundle.catalogue.popularity
    assert systems.score("popularity", cases)[2, 5] == popularity[cases.candidates_BC[2, 5]]
    x = tiny_model.represent(cases.histories)[2]
    expected = float(x @ tiny_model.teacher.item_embeddings[int(cases.candidates_BC[2, 5])])
    assert systems.score("teacher", cases)[2, 5] == pytest.approx(expected, abs=1e-5)


def test_all_llms_are_shown_one_shuffled_order(systems, cases, monkeypatch):
    shown = {}

    def spy(ranker, histories, candidates, soft=None):
        shown[len(shown)] = candidates.copy()
        return np.log(np.full(candidates.shape, 1 / candidates.shape[1])).astype(np.float32) - candidates * 0.01

    monkeypatch.setattr(Ranker, "log_probabilities", spy)
    scores = [systems.score(name, cases) for name in ("llm-only", "a-llmrec", "a-llmrec-sbert")]
    for one in scores:  # the scores come back to the table's order: here a smaller index is a better score
        assert (np.argsort(-one, axis=1) == np.argsort(cases.candidates_BC, axis=1)).all()
    for other in (1, 2):
        np.testing.assert_array_equal(shown[0], shown[other])
    np.testing.assert_array_equal(np.sort(shown[0], axis=1), np.sort(cases.candidates_BC, axis=1))
    place = (shown[0] == cases.candidates_BC[:, :1]).argmax(axis=1)
    assert len(set(place)) > 3, "the target is anywhere"


@pytest.mark.parametrize("name", sorted(NEED_LLM.difference(TRAINED_BESIDE)))
def test_identical_titles_stay_tied_in_every_system_of_an_llm(systems, cases, name):
    """Items 38 and 39 are both `The Last Garden`. What the teacher thinks of them is no figure of an LLM's."""
    one = cases.take(np.arange(4))
    pair = np.array([38, 39], dtype=np.int32)
    one = replace(one, candidates_BC=np.concatenate([np.tile(pair, (4, 1)), one.candidates_BC[:, 2:]], axis=1))
    scores = systems.score(name, one)
    np.testing.assert_array_equal(scores[:, 0], scores[:, 1])
    assert (standing(scores, one.candidates_BC)[1] >= 1).all()


def test_systems_differ_in_what_they_put_into_the_slots(systems, cases, tiny_model):
    scores = {name: systems.score(name, cases) for name in NAMES}
    for name in NAMES:
        for other in NAMES:
            assert name == other or not np.array_equal(ALLMRec.rank(scores[name]), ALLMRec.rank(scores[other]))


def test_the_swap_gives_everyone_somebody_elses_history_and_nothing_else(cases):
    swapped = cases.swapped(seed=0)
    assert swapped.user_ids.equals(cases.user_ids)
    np.testing.assert_array_equal(swapped.candidates_BC, cases.candidates_BC)
    mine, theirs = cases.user_ids.to_pylist(), swapped.histories.user_ids.to_pylist()
    assert sorted(theirs) == sorted(mine), "every history is used once"
    assert all(one != other for one, other in zip(mine, theirs, strict=True))
    assert theirs == cases.swapped(seed=0).histories.user_ids.to_pylist()
    assert len(cases.take(np.array([0])).swapped(0)) == 0


def test_only_personal_systems_feel_the_swap(systems, cases):
    swapped = cases.swapped(seed=0)
    for name in NAMES:
        same = np.array_equal(systems.score(name, swapped), systems.score(name, cases))
        assert same == (name in ("random", "popularity")), name


def test_shuffled_histories_hold_the_same_items(cases):
    shuffled = cases.shuffled(seed=0)
    own, drawn = cases.histories, shuffled.histories
    assert drawn.user_ids.equals(own.user_ids) and not np.array_equal(drawn.items, own.items)
    for row in range(len(cases)):
        mine = slice(own.offsets[row], own.offsets[row + 1])
        assert sorted(drawn.items[mine]) == sorted(own.items[mine])
    np.testing.assert_array_equal(shuffled.candidates_BC, cases.candidates_BC)
    one = cases.take(np.array([3])).shuffled(seed=0)
    np.testing.assert_array_equal(one.histories.items, drawn.take(np.array([3])).items)


def test_a_system_feels_the_shuffle_where_it_knows_the_order(systems, cases, monkeypatch, tiny_model):
    shuffled = cases.shuffled(seed=0)
    same_B = np.array(
        [
            np.array_equal(*(part.histories.take(np.array([row])).items for part in (cases, shuffled)))
            for row in range(len(cases))
        ]
    )
    assert same_B.any() and not same_B.all()
    for name in ("random", "popularity"):
        np.testing.assert_array_equal(systems.score(name, shuffled), systems.score(name, cases))
        assert np.isnan(systems.cosines(name, cases.histories, shuffled.histories)).all()
    cosine_B = systems.cosines("teacher", cases.histories, shuffled.histories)
    assert (cosine_B[same_B] > 1 - 1e-5).all() and (cosine_B[~same_B] < 1 - 1e-4).any()
    a, b = (tiny_model.represent(part.histories)[0].double().numpy() for part in (cases, shuffled))
    assert cosine_B[0] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    torch.manual_seed(0)
    ncf = build_teacher(TeacherConfig(model="ncf", dim=8), 40).eval()
    monkeypatch.setattr(tiny_model, "teacher", ncf)
    np.testing.assert_allclose(systems.score("teacher", shuffled), systems.score("teacher", cases), atol=1e-5)


def test_nan_is_refused_with_the_users_name(systems, cases, monkeypatch):
    broken = np.zeros(cases.candidates_BC.shape)
    broken[1, 3] = np.nan
    monkeypatch.setitem(systems.by_name, "teacher", lambda _: broken)
    with pytest.raises(ValueError, match=f"teacher gave NaN or inf for users.*{re.escape(cases.user_ids[1].as_py())}"):
        systems.score("teacher", cases)


def test_no_candidate_may_score_minus_infinity(systems, cases):
    holes = cases.candidates_BC.copy()
    holes[:, -3:] = 0
    for name in NAMES:
        scores = systems.score(name, replace(cases, candidates_BC=holes))
        assert np.isfinite(evaluate_scores(scores, holes)).all()


def test_a_shard_without_cases_counts_for_nothing(tiny_bundle):
    config, storage, version = tiny_bundle
    evaluate = EvaluateShards(storage, version, config.llm, ["teacher"], seed=0, recall_at=7)
    evaluate.cases = storage.at("missing")
    write = {"part-00000.parquet": write_shard(evaluate.cases, SCHEMA, "part-00000.parquet", SCHEMA.empty_table())}
    commit(evaluate.cases, "evaluation_cases", "test", write, {})
    details = evaluate.process(0).details
    assert not summarise(details["sums"]) and sum(cost["cases"] for cost in details["costs"]) == 0


@pytest.mark.parametrize("name", ["popularity", "teacher"])
def test_ranks_in_the_catalogue_equal_brute_force(systems, cases, tiny_model, monkeypatch, name):
    everything = np.tile(np.arange(1, 41, dtype=np.int32), (len(cases), 1))
    if name == "popularity":  # ties abound
        catalogue = tiny_model.bundle.catalogue
        monkeypatch.setitem(vars(catalogue), "popularity", catalogue.popularity // 9)
    scores = systems.score(name, replace(cases, candidates_BC=everything))
    better, tied = systems.in_catalogue[name](cases)
    for row, target in enumerate(cases.candidates_BC[:, 0]):
        mine = slice(cases.histories.offsets[row], cases.histories.offsets[row + 1])
        rivals = np.setdiff1d(everything[row], [*cases.histories.items[mine], target]) - 1
        assert better[row] == (scores[row, rivals] > scores[row, target - 1]).sum()
        assert tied[row] == (scores[row, rivals] == scores[row, target - 1]).sum()
    assert name == "teacher" or tied.any()


@pytest.mark.parametrize("name", ["random", "popularity", "teacher"])
def test_in_the_catalogue_compete_items_of_the_filtered_data_alone(systems, cases, tiny_model, monkeypatch, name):
    before = sum(systems.in_catalogue[name](cases))
    gone = np.setdiff1d(np.arange(1, 41), np.append(cases.histories.items, cases.candidates_BC[:, 0]))[:4]
    left = np.setdiff1d(np.arange(1, 41), gone)
    monkeypatch.setitem(vars(tiny_model.bundle.catalogue), "drawable", left.astype(np.int32))
    better, tied = systems.in_catalogue[name](cases)
    assert len(gone) and (better + tied <= left.size - 1 - cases.histories.lengths).all()
    assert (better + tied).sum() < before.sum()


def test_a_random_place_is_any_of_those_that_are_left(systems, cases):
    """40 items less the history, each place as likely."""
    rows = np.repeat(np.arange(len(cases)), 2000)
    many = replace(cases.take(rows), user_ids=pa.array([f"u{n}" for n in range(len(rows))]))
    better, tied = systems.random_in_catalogue(many)
    competing = 40 - many.histories.lengths
    assert not tied.any() and (better < competing).all()
    assert abs((better / competing).mean() - ((competing - 1) / (2 * competing)).mean()) < 0.01
    np.testing.assert_array_equal(systems.random_in_catalogue(many.take(np.array([5])))[0], better[5])


@pytest.mark.parametrize("broken", ["an item", "users"])
def test_nan_is_refused_in_the_catalogue_too(systems, cases, tiny_model, monkeypatch, broken):
    """It would be below every target."""
    if broken == "an item":
        embeddings = tiny_model.teacher.item_embeddings.clone()
        embeddings[3] = torch.nan
        monkeypatch.setattr(type(tiny_model.teacher), "item_embeddings", embeddings)
    else:
        monkeypatch.setattr(
            tiny_model.teacher, "represent", lambda histories: torch.full((len(histories), 8), torch.inf)
        )
    with pytest.raises(ValueError, match="items .'item-02'. … as NaN" if broken == "an item" else "users .*NaN or inf"):
        systems.in_catalogue["teacher"](cases)


def test_random_gets_chance():
    user_ids = pa.array([f"u{n}" for n in range(20_000)])
    nothing = Sequences(user_ids, np.zeros(20_001, dtype=np.int64), np.zeros(0, dtype=np.int32))
    candidates = np.tile(np.arange(1, 21, dtype=np.int32), (20_000, 1))
    cases = Cases(user_ids, nothing, candidates, np.ones(20_000, bool), np.zeros(20_000, bool))
    hits = evaluate_scores(Systems(None, seed=0).score("random", cases), candidates)[:, 0].mean()
    assert abs(hits - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 20_000)


def test_shards_are_scored_alone_and_all_cases_are_counted(tiny_bundle):
    config, storage, version = tiny_bundle
    evaluate = EvaluateShards(storage, version, config.llm, ["random", "teacher", "a-llmrec"], seed=0, recall_at=7)
    together, total = gather(read_reports(evaluate({"id": np.arange(3)})))
    for shard in (2, 0, 1):
        assert evaluate.process(shard).details["sums"] == together[shard].details["sums"]
    assert total.counts["users"] == 60
    metrics = summarise(row for report in together for row in report.details["sums"])
    users = Sequences.read(storage.at("sequences"))
    for row in metrics:
        if row["subset"] == "all":
            assert row["count"] == (users.lengths >= 3).sum()
    full = [(row["system"], row["metric"]) for row in metrics if (row["protocol"], row["subset"]) == ("full", "all")]
    assert full == [(system, name) for system in ("random", "teacher") for name in (*METRICS, "recall@7")]
    costs = [cost for report in together for cost in report.details["costs"]]
    assert {cost["system"] for cost in costs if cost["tokens"]} == {"a-llmrec"}
