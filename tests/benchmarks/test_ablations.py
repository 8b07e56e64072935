"""Which rows of an ablation are trained: those whose config is not the one that the finished run was made with."""

import json

import pytest

from allmrec.artifacts import seal
from allmrec.storage import open_storage
from benchmarks import ablations
from jobs.config import load_config
from jobs.console import Console
from jobs.step import resolved

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
    storage = open_storage(config.run_uri, config.storage)
    for artifact, sections in MADE_WITH.items():
        seal(storage.at(artifact), artifact, "", {}, resolved(config, sections))
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
        open_storage(config.run_uri, config.storage).write("metrics.json", b'"trained"')

    monkeypatch.setattr(ablations, "execute", execute)
    base = load_config(config_file, overrides)
    of_the_row = load_config(config_file, [*overrides, *row, "name=row", "evaluation.systems=[a-llmrec]"])
    metrics = ablations.train(of_the_row, base, Console(log_json=True))
    assert ran == steps and metrics == ("trained" if steps else FINISHED)
    if steps and "train-alignment" not in steps:
        assert (tmp_path / "row" / "alignment").resolve() == (tmp_path / "finished" / "alignment").resolve()
