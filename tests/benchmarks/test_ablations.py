"""Which rows of an ablation are trained: those whose config is not the one that the finished run was made with.

And what is said of a row: its untrained one beside it, and differences to the table's first row by user.
"""

import json

import numpy as np
import pyarrow as pa
import pytest

from allmrec.core.artifacts import writing
from allmrec.core.storage import open_storage
from allmrec.core.workspace import open_workspace
from allmrec.data.cases import Cases
from allmrec.evaluation.results import rows, sums_of
from allmrec.metrics import METRICS, summarise
from benchmarks import ablations
from jobs.config import load_config
from jobs.runtime.console import Console
from jobs.runtime.step import resolved
from schemas.evaluation_results import SCHEMA

FINISHED = [{"system": "a-llmrec", "value": 0.5}]
MADE_WITH = {
    "alignment": ("alignment",),
    "projectors": ("projection", "prompt", "llm"),
    "evaluation": ("evaluation", "llm"),
}


@pytest.fixture
def config_file(tmp_path):
    """Of a finished run of one epoch."""
    path = tmp_path / "config.yaml"
    path.write_text(f"name: finished\nroot: {tmp_path}\nprojection: {{epochs: 1}}\n")
    config = load_config(path, [])
    storage = open_storage(config.workspace_uri, config.storage)
    for artifact, sections in MADE_WITH.items():
        with writing(storage.at(artifact), artifact, "", resolved(config, sections)):
            pass
    storage.write("metrics.json", json.dumps(FINISHED).encode())
    return path


@pytest.mark.parametrize(
    ("overrides", "row", "steps"),
    [
        ([], [], []),
        ([], ["alignment.text_encoder=frozen"], []),  # says what is so already
        ([], ["projection.item_input=teacher"], ["train-projection", "bundle", "evaluate"]),
        ([], ["alignment.targets=all"], ["train-alignment", "train-projection", "bundle", "evaluate"]),
        (["projection.epochs=2"], [], ["train-projection", "bundle", "evaluate"]),
        (["evaluation.max_users=7"], [], ["train-projection", "bundle", "evaluate"]),
    ],
)
def test_a_row_is_trained_from_where_it_differs_from_the_finished_run(
    config_file, tmp_path, monkeypatch, overrides, row, steps
):
    ran = []

    def execute(step, config, console):
        ran.append(step.verb)
        open_storage(config.workspace_uri, config.storage).write("metrics.json", b'"trained"')

    monkeypatch.setattr(ablations, "execute", execute)
    base = load_config(config_file, overrides)
    of_the_row = load_config(config_file, [*overrides, *row, "name=row", "evaluation.max_users=5"])
    run = ablations.train(of_the_row, base, Console(log_json=True))
    assert ran == steps and json.loads(run.storage.read("metrics.json")) == ("trained" if steps else FINISHED)
    if steps and "train-alignment" not in steps:
        assert (tmp_path / "row" / "alignment").resolve() == (tmp_path / "finished" / "alignment").resolve()


def evaluated(root, hits: dict[str, list[int]]):
    """A run that was evaluated: hit@1 by system, user by user."""
    workspace = open_workspace(str(root))
    results = {}
    for system, found in hits.items():
        users, ones = pa.array([f"u{number}" for number in range(len(found))]), np.ones(len(found), dtype=bool)
        cases = Cases(users, None, np.ones((len(found), 2), dtype=np.int32), ones, ~ones)
        values = np.tile(np.array(found, dtype=np.float64)[:, None], len(METRICS))
        for protocol in ("random", "matched"):
            results[protocol, system] = rows(system, protocol, cases, values, np.zeros(len(found), dtype=int), None)
    with writing(workspace.evaluation_results, "evaluation_results", "") as out:
        out.table(0, SCHEMA, pa.concat_tables(results.values()))
        out.stats |= {"cases": "all", "recall_at": 20}
    workspace.storage.write("metrics.json", json.dumps(summarise(sums_of(results, None, 20))).encode())
    return workspace


def test_a_row_has_its_untrained_one_and_differences_by_user(tmp_path):
    first = evaluated(tmp_path / "first", {"a-llmrec": [1, 1, 1, 0, 1, 1], "a-llmrec-untrained": [0, 1, 0, 0, 0, 0]})
    row = evaluated(tmp_path / "row", {"a-llmrec": [0, 1, 1, 1, 0, 0], "a-llmrec-untrained": [0, 1, 0, 0, 0, 0]})
    trained, untrained = (ablations.measured(row, name, first) for name in ("a-llmrec", "a-llmrec-untrained"))
    assert trained["Hit@1"] == trained["matched"] == 0.5 and untrained["Hit@1"] == pytest.approx(1 / 6)
    # Differences -1, 0, 0, 1, -1, -1: t of 5 degrees of freedom 2.5706, variance 0.6667.
    assert trained["Hit@1 - first"] == trained["matched - first"] == pytest.approx(-1 / 3)
    assert trained["± 95 %, Hit@1 - first"] == pytest.approx(2.5706 * np.sqrt(0.66667 / 6), abs=1e-3)
    assert trained["Hit@1 - untrained"] == pytest.approx(1 / 3)
    assert untrained["Hit@1 - first"] == pytest.approx(-4 / 6) and "Hit@1 - untrained" not in untrained
    assert "Hit@1 - first" not in ablations.measured(first, "a-llmrec", first), (
        "the first row is what it is compared to"
    )


def test_a_run_without_an_untrained_row_is_refused(tmp_path):
    run = evaluated(tmp_path / "run", {"a-llmrec": [1, 0, 1]})
    with pytest.raises(ValueError, match=r"'a-llmrec-untrained'.* add the systems to evaluation\.systems"):
        ablations.measured(run, "a-llmrec", run)


def test_the_random_row_has_no_collaborative_start():
    assert "projection.start=ordinary" in ablations.TABLES["9"]["random joint embedding"]
    assert any("a-llmrec-untrained" in setting for setting in ablations.EVALUATED)
