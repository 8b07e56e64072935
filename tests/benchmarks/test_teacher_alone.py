"""A teacher's figures without a bundle are those of the evaluation."""

from allmrec.cf.teacher import load_teacher
from allmrec.core.artifacts import read_manifest
from allmrec.core.workspace import Workspace
from allmrec.data.sequences import num_shards
from allmrec.evaluation.results import compare
from allmrec.evaluation.shards import EvaluateShards
from allmrec.metrics import summarise
from benchmarks.comparison import rows_by_key
from benchmarks.teacher_alone import evaluate_alone


def test_its_figures_are_those_of_the_evaluation(tiny_workspace, tiny_bundle):
    config, storage = tiny_workspace
    workspace, (*_, version) = Workspace(storage), tiny_bundle
    shards = EvaluateShards(storage, version, config.llm, ["teacher"], config.seed, recall_at=20)
    reports = [shards.process(shard) for shard in range(num_shards(workspace.evaluation_cases))]
    expected = summarise(row for report in reports for row in report.details["sums"])

    teacher, out = load_teacher(workspace.teacher), storage.at("alone")
    alone = evaluate_alone(teacher, "its digest", workspace, out, recall_at=20)
    found = rows_by_key(alone)
    for protocol in ("random", "matched"):
        for row in expected:
            if row["protocol"] == protocol:
                assert found["teacher", protocol, row["subset"], row["metric"]] == row
    assert {key[1] for key in found} == {"random", "matched"}
    pairs = compare(alone.evaluation_results, "teacher", alone.evaluation_results, "teacher")
    assert {row["difference"] for row in pairs} == {0}

    written = read_manifest(alone.evaluation_results)
    evaluate_alone(teacher, "its digest", workspace, out, recall_at=20)
    assert read_manifest(alone.evaluation_results) == written, "it is evaluated once"
    evaluate_alone(teacher, "another's", workspace, out, recall_at=20)
    assert read_manifest(alone.evaluation_results).fingerprint != written.fingerprint
