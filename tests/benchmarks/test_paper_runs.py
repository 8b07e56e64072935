"""Which runs the tables of the paper take as they are, and which are made, from where they differ from the config's."""

import json
from pathlib import Path

import pytest

from allmrec.bundle.description import DESCRIPTION, FORMAT
from allmrec.core.artifacts import commit, writing
from allmrec.core.hashing import fingerprint
from allmrec.core.workspace import Workspace
from benchmarks import runs
from benchmarks.paper_runs import EVALUATED, PaperRuns
from benchmarks.runs import SHARED
from jobs import bundle, evaluate
from jobs.config import Config, load_config
from jobs.runtime.console import Console
from jobs.runtime.step import resolved

FINISHED = [{"system": "a-llmrec", "protocol": "random", "subset": "all", "metric": "hit@1", "value": 0.5}]
MADE_WITH = {
    "alignment": ("alignment",),
    "projectors": ("projection", "prompt", "llm"),
    "evaluation": evaluate.STEP.sections,
}
MODELS = ["train-cf", "train-alignment", "train-projection"]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """Of a finished run of one epoch."""
    path = tmp_path / "config.yaml"
    path.write_text(
        f"name: finished\nroot: {tmp_path}\nprojection: {{epochs: 1}}\nbaselines: {{morec: {{}}, ctrl: {{}}}}\n"
    )
    finish(load_config(path, []))
    return path


def finish(config: Config) -> None:
    workspace = config.workspace
    for artifact in SHARED:
        with writing(workspace.at(artifact), artifact, ""):
            pass
    for artifact, sections in MADE_WITH.items():
        with writing(workspace.at(artifact), artifact, "", resolved(config, sections)) as out:
            out.stats["bundle"] = "v"
    with writing(workspace.evaluation_results, "evaluation_results", "") as out:
        out.stats |= {"cases": fingerprint({}), "recall_at": 20}  # of no files
    description = {"version": "v", "format": FORMAT, "config": resolved(config, bundle.SECTIONS)}
    description["digest"] = fingerprint(description)
    workspace.bundles.at("v").write(DESCRIPTION, json.dumps(description).encode())
    workspace.storage.write("metrics.json", json.dumps(FINISHED).encode())


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that were run, which do nothing but say so in metrics.json."""
    verbs: list[str] = []

    def execute(step, config, console):
        verbs.append(step.verb)
        config.workspace.storage.write("metrics.json", b"[]")

    monkeypatch.setattr(runs, "execute", execute)
    return verbs


def paper_runs(config_file: Path, overrides: list[str] | None = None) -> PaperRuns:
    return PaperRuns(config_file, overrides or [], config_file.parent / "rows", Console(log_json=True))


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
def test_a_row_is_trained_from_where_it_differs_from_the_finished_run(config_file, ran, overrides, row, steps):
    run = paper_runs(config_file, overrides).row(row)
    assert ran == steps and json.loads(run.storage.read("metrics.json")) == ([] if steps else FINISHED)
    folder = Path(run.storage.uri)
    linked = bool(steps) and "train-alignment" not in steps
    assert (folder / "alignment").is_symlink() == linked
    if steps:
        assert (folder / "teacher").resolve() == config_file.parent / "finished" / "teacher"


def test_a_row_that_differs_in_more_than_before_writes_through_no_link(config_file, ran):
    before = Path(paper_runs(config_file).row(["projection.item_input=teacher"]).storage.uri)
    assert (before / "alignment").is_symlink()
    after = paper_runs(config_file, ["alignment.epochs=3"]).row(["projection.item_input=teacher"])
    assert Path(after.storage.uri) == before and not (before / "alignment").exists()
    with writing(after.alignment, "alignment", "own"):
        pass
    again = paper_runs(config_file).row(["projection.item_input=teacher"])  # a folder of its own makes room for a link
    assert again.alignment.exists("manifest.json") and (before / "alignment").is_symlink()


def test_figures_on_disk_are_taken_while_they_are_of_this_config_and_these_cases(config_file, ran):
    own = paper_runs(config_file)
    assert own.sources(["a-llmrec", "recformer"]).keys() == {"a-llmrec"}, "the config names no RECFORMER"
    assert ran == []
    paper_runs(config_file, ["projection.epochs=2"]).finished()
    beside = ["train-baselines morec", "train-baselines ctrl"]
    assert [verb for verb in ran if verb not in beside] == ["prepare", "embed", *MODELS, "bundle", "evaluate"]
    assert {*beside} <= {*ran}
    del ran[:]
    commit(own.base.workspace.evaluation_cases, "evaluation_cases", "", {"other": {"sha256": "1"}})
    own.finished()
    assert ran[-1] == "evaluate"


def test_another_seed_trains_everything_over_the_same_tables(config_file, ran):
    own = paper_runs(config_file)
    assert own.seeded(own.base.seed) is own
    seeded = own.seeded(7)
    seeded.finished()
    assert seeded.base.seed == 7 and {"prepare", "embed"}.isdisjoint(ran) and {*MODELS, "evaluate"} <= {*ran}
    folder = Path(seeded.base.workspace_uri)
    assert (folder / "sequences").resolve() == config_file.parent / "finished" / "sequences"
    assert not (folder / "teacher").is_symlink()


def test_another_split_has_tables_of_its_own_and_the_systems_that_are_asked_for(config_file, ran):
    own = paper_runs(config_file)
    split = own.under(
        "few", ["evaluation.split={kind: few-shot, users: 5}", *own.limited(["sasrec", "morec", "a-llmrec"])]
    )
    split.finished()
    assert ran[0] == "prepare" and "train-baselines morec" in ran and "train-baselines ctrl" not in ran
    assert split.base.evaluation.systems == ("teacher", "a-llmrec", "morec")
    cache = Path(split.base.workspace_uri) / Workspace.text_cache
    assert cache.resolve() == config_file.parent / "finished" / Workspace.text_cache


def test_another_teacher_is_alone(config_file):
    own = paper_runs(config_file, ["teacher.items=text"])
    assert own.teacher == "morec"
    other = own.with_teacher("ncf")
    assert other.teacher == "ncf" and other.base.baselines is None and other.base.teacher.items == "ids"


def test_stage_2_over_a_teacher_without_products_starts_from_ordinary_weights(config_file):
    own = paper_runs(config_file, ["projection.start=teacher"])
    started = {model: own.with_teacher(model).base.projection.start for model in ("ncf", "gru4rec")}
    assert started == {"ncf": "ordinary", "gru4rec": "teacher"}


def test_rows_of_an_object_store_are_refused(config_file):
    own = paper_runs(config_file, ["root=s3://bucket/runs"])
    with pytest.raises(ValueError, match="set root to one of this machine"):
        runs.link(own.changed("row", []), {"teacher": own.base})


def test_every_row_has_its_untrained_one():
    assert any("a-llmrec-untrained" in setting for setting in EVALUATED)
