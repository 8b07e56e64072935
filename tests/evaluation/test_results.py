"""Per-case values: what metrics.json sums, differences by user within a run and between two, and the share of q_i."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from allmrec.core.artifacts import commit, read_part, read_table, shard_name, write_shard
from allmrec.core.shard_tasks import gather, read_reports
from allmrec.core.storage import open_storage
from allmrec.data.cases import Cases
from allmrec.data.evaluation_cases import EvaluationConfig
from allmrec.data.sequences import Sequences
from allmrec.evaluation.results import compare, metrics_of, rows, sums_of
from allmrec.evaluation.shards import EvaluateShards
from allmrec.evaluation.systems import Systems
from allmrec.metrics import METRICS, interval, summarise
from schemas.evaluation_results import SCHEMA

NAMES = ("random", "teacher", "llm-only", "a-llmrec")
STATS = {"cases": "the same", "recall_at": 7}


@pytest.fixture(scope="module")
def evaluated(tiny_bundle, tmp_path_factory):
    """(metrics, the table of all cases) of an evaluation with answers for everyone."""
    config, storage, version = tiny_bundle
    evaluate = EvaluateShards(storage, version, config.llm, NAMES, 0, 7, baseline="teacher", generation=1.0)
    evaluate.results = open_storage(str(tmp_path_factory.mktemp("results")))
    shards, total = gather(read_reports(evaluate({"id": np.arange(3)})))
    files = total.files
    manifest = commit(evaluate.results, "evaluation_results", "", files)
    assert [read_part(evaluate.results, manifest, name).schema for name in files] == [SCHEMA] * 3
    return summarise(row for shard in shards for row in shard.details["sums"]), read_table(evaluate.results)


def of(table: pa.Table, **wanted: str) -> pa.Table:
    for column, value in wanted.items():
        table = table.filter(pc.equal(table.column(column), value))
    return table.sort_by("user_id")


def test_the_table_holds_what_the_metrics_sum(evaluated):
    metrics, table = evaluated
    assert {row["protocol"] for row in metrics} == {"random", "matched", "swap", "full", "generation"}
    for row in metrics:
        rows_ = of(table, system=row["system"], protocol=row["protocol"])
        if row["subset"] != "all":
            rows_ = rows_.filter(rows_.column(row["subset"]))
        values = rows_.column(row["metric"].replace("recall@7", "recall")).to_numpy()
        assert row["count"] == len(values) and row["value"] == pytest.approx(values.mean())
        assert row["tied"] == (rows_.column("tied").to_numpy() > 0).sum()
    counts = table.group_by(["user_id", "system", "protocol"]).aggregate([([], "count_all")])
    assert pc.max(counts.column("count_all")).as_py() == 1, "a row a user, system and protocol"


def test_differences_are_paired_by_user(evaluated):
    metrics, table = evaluated
    for row in metrics:
        system, protocol, metric = (row[name] for name in ("system", "protocol", "metric"))
        if row["subset"] != "all" or metric.startswith("recall"):
            continue
        own, baseline, column = of(table, system=system, protocol=protocol), "teacher", metric
        if protocol == "swap":
            baseline, other = system, of(table, system=system, protocol="random")
        elif protocol == "generation":  # the teacher writes nothing: against what it ranks first
            column, other = "hit@1", of(table, system="teacher", protocol="random")
        else:
            other = of(table, system="teacher", protocol=protocol)
        if (system, protocol != "swap") == ("teacher", True) or metric == "named":
            assert (row["baseline"], row["difference"], row["pairs"]) == (None, None, 0)
            continue
        assert own.column("user_id").equals(other.column("user_id"))
        d = own.column(metric).to_numpy() - other.column(column).to_numpy()
        assert row["baseline"] == baseline and row["pairs"] == len(d)
        found = (row["difference"], row["low"], row["high"])
        assert found == pytest.approx(interval(len(d), d.sum(), (d**2).sum()), abs=1e-9)


def test_without_a_baseline_only_the_swap_has_differences(tiny_bundle, tmp_path):
    config, storage, version = tiny_bundle
    evaluate = EvaluateShards(storage, version, config.llm, ["teacher", "random"], 0, 7)
    evaluate.results = open_storage(str(tmp_path))
    shards = list(map(evaluate.process, range(3)))
    metrics = summarise(row for shard in shards for row in shard.details["sums"])
    assert {row["protocol"] for row in metrics if row["difference"] is not None} == {"swap"}
    assert "generation" not in {row["protocol"] for row in metrics}, "it was not requested"


def test_with_shuffled_histories_a_system_is_compared_with_itself(tiny_bundle, tmp_path):
    config, storage, version = tiny_bundle
    found = {}
    for shuffle in (False, True):
        evaluate = EvaluateShards(storage, version, config.llm, ["teacher", "random"], 0, 7, "teacher", shuffle=shuffle)
        evaluate.results = open_storage(str(tmp_path / str(shuffle)))
        shards, total = gather(read_reports(evaluate({"id": np.arange(3)})))
        found[shuffle] = summarise(row for shard in shards for row in shard.details["sums"])
    commit(evaluate.results, "evaluation_results", "", total.files)
    table, more = read_table(evaluate.results), [row for row in found[True] if row["protocol"] == "shuffle"]
    assert [row for row in found[True] if row["protocol"] != "shuffle"] == found[False]
    assert {row["metric"] for row in more if row["system"] == "teacher"} == {*METRICS, "cosine"}
    assert {row["metric"] for row in more if row["system"] == "random"} == {*METRICS}
    (cosine,) = (row for row in more if (row["metric"], row["subset"]) == ("cosine", "all"))
    values = of(table, system="teacher", protocol="shuffle").column("cosine").to_numpy()
    assert cosine["value"] == pytest.approx(values.mean()) and 0 < cosine["value"] < 1
    assert cosine["difference"] is None
    own, true = (of(table, system="teacher", protocol=name).column("mrr").to_numpy() for name in ("shuffle", "random"))
    (lost,) = (
        row for row in more if tuple(row[k] for k in ("system", "metric", "subset")) == ("teacher", "mrr", "all")
    )
    assert lost["baseline"] == "teacher" and lost["difference"] == pytest.approx((own - true).mean(), abs=1e-9)
    assert all(not row["difference"] for row in more if row["system"] == "random"), "it reads no history"


def test_the_baseline_is_one_of_the_systems():
    assert EvaluationConfig().baseline == "teacher"
    assert EvaluationConfig(systems=("llm-only", "random"), baseline="random").baseline == "random"
    assert EvaluationConfig(systems=("llm-only",), baseline=None).baseline is None
    with pytest.raises(ValueError, match=r"baseline 'teacher' is not among .*llm-only.* null"):
        EvaluationConfig(systems=("llm-only",))


def test_the_share_of_candidates_shown_by_q_i(tiny_model, tiny_bundle, monkeypatch):
    """Every item with fewer than 20 training interactions: those from 21 on."""
    _, storage, _ = tiny_bundle
    systems = Systems(tiny_model, seed=0)
    table, sequences = read_table(storage.at("evaluation_cases"), [0]), Sequences.read(storage.at("sequences"), [0])
    cases = Cases.select(table, sequences, "test", "random")
    cases = replace(cases, candidates_BC=np.where(np.arange(20) < 17, cases.candidates_BC, 0).astype(np.int32))
    config = {**tiny_model.bundle.config, "bundle": {"min_interactions_for_cf": 20}}
    monkeypatch.setitem(vars(tiny_model), "bundle", replace(tiny_model.bundle, config=config))

    def found(name: str) -> dict:
        values, tied = np.zeros((len(cases), len(METRICS))), np.zeros(len(cases), dtype=int)
        results = {("random", name): rows(name, "random", cases, values, tied, systems.uses_text_embedding(name))}
        return summarise(sums_of(results, None, 7))[0]

    few = cases.candidates_BC > 20
    assert found("a-llmrec")["by_text"] == pytest.approx(few.sum() / (17 * len(cases))) and 0.2 < few.mean() < 0.7
    assert found("a-llmrec-sbert")["by_text"] == 1.0
    assert found("llm-only")["by_text"] is None and found("teacher")["by_text"] is None
    by_teacher = config | {"projection": {**config["projection"], "item_input": "teacher"}}
    monkeypatch.setitem(vars(tiny_model), "bundle", replace(tiny_model.bundle, config=by_teacher))
    assert found("a-llmrec")["by_text"] == 0.0, "F_I projects no joint embeddings, so there is no q_i"


def test_answers_are_compared_with_the_baselines_answers_or_else_with_its_ranking():
    cases = Cases(pa.array(["a", "b", "c"]), None, np.ones((3, 2), np.int32), *np.zeros((2, 3), bool))

    def by_hand(system: str, protocol: str, *hits: float) -> dict:
        values = np.tile(np.array(hits)[:, None], len(metrics_of(protocol)))
        return {(protocol, system): rows(system, protocol, cases, values, np.zeros(3, dtype=int), None)}

    results = by_hand("teacher", "random", 1, 0, 0) | by_hand("llm-only", "random", 0, 0, 1)
    results |= by_hand("llm-only", "generation", 0, 0, 0) | by_hand("a-llmrec", "generation", 1, 1, 0)

    def of_hits(baseline: str) -> list:
        summary = summarise(sums_of(results, baseline, 7))
        return [
            row["difference"]
            for row in summary
            if (row["system"], row["protocol"], row["subset"]) == ("a-llmrec", "generation", "all")
        ]

    assert of_hits("llm-only") == pytest.approx([2 / 3] * 3)
    assert of_hits("teacher") == [None, pytest.approx(1 / 3), pytest.approx(1 / 3)], "a teacher names nothing"


def stored(folder, system: str, hits: dict[str, float], **stats) -> object:
    """A run's results: hit@1 of protocol random by user, in two shards."""
    storage, files = open_storage(str(folder)), {}
    for shard in range(2):
        users = [user for user in hits if int(user[1:]) % 2 == shard]
        cases = Cases(pa.array(users, pa.string()), None, np.ones((len(users), 2)), *np.zeros((2, len(users)), bool))
        values = np.zeros((len(users), len(metrics_of("random"))))
        values[:, 0] = [hits[user] for user in users]
        table = rows(system, "random", cases, values, np.zeros(len(users), dtype=int), None)
        files[shard_name(shard)] = write_shard(storage, SCHEMA, shard_name(shard), table)
    commit(storage, "evaluation_results", "", files, stats=STATS | stats)
    return storage


def test_two_runs_are_compared_by_user(tmp_path):
    """Users in another order, and one that the other run does not have."""
    own = stored(tmp_path / "own", "a-llmrec", {"u1": 1, "u2": 1, "u3": 0, "u4": 1, "u5": 1, "u6": 0, "u7": 1})
    base = stored(tmp_path / "base", "llm-only", {"u6": 0, "u5": 0, "u4": 1, "u3": 1, "u2": 0, "u1": 0})
    row = compare(own, "a-llmrec", base, "llm-only")[0]
    assert (row["metric"], row["subset"], row["count"], row["pairs"], row["baseline"]) == (
        "hit@1",
        "all",
        7,
        6,
        "llm-only",
    )
    assert row["value"] == pytest.approx(5 / 7)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(interval(6, 2.0, 4.0))  # 1, 1, -1, 0, 1, 0


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    own, base = stored(tmp_path / "own", "a-llmrec", {"u1": 1}), stored(tmp_path / "base", "a-llmrec", {"u1": 0})
    with pytest.raises(ValueError, match=r"no user was evaluated by 'a-llmrec'.*and by 'a-llmrec-untrained'"):
        compare(own, "a-llmrec", base, "a-llmrec-untrained")
    other = stored(tmp_path / "other", "a-llmrec", {"u1": 0}, cases="others")
    with pytest.raises(ValueError, match="different evaluation cases"):
        compare(own, "a-llmrec", other, "a-llmrec")
