"""The benchmark of LLM-SRec: which runs its rows are, and the command on a small shop, without workers."""

import json

import pytest
import typer
from typer.testing import CliRunner

from allmrec.core.artifacts import read_manifest
from allmrec.readout.network import ReadoutConfig
from benchmarks import llm_srec
from benchmarks.comparison import beside
from benchmarks.llm_srec_paper import MAIN
from benchmarks.llm_srec_runs import Runs, rows_of, small_config
from jobs.config import load_config
from jobs.runtime.console import Console
from tests.jobs.in_process import jobs_in_process

PAPER, STRONG = ReadoutConfig(preset="paper"), ReadoutConfig()


def made(config: ReadoutConfig, changes: list[str], path) -> ReadoutConfig:
    path.write_text(json.dumps({"name": "x", "baselines": {"llm_srec": config.model_dump(exclude_unset=True)}}))
    found = load_config(path, changes).llm_srec
    assert found is not None
    return found


@pytest.mark.parametrize("config", [PAPER, STRONG])
def test_the_rows_of_the_ablation_drop_the_papers_losses_and_keep_the_others(config, tmp_path):
    whole, *others = (made(config, changes, tmp_path / "c.yaml") for changes in rows_of("8", config).values())
    assert whole == config
    for row, gone in zip(others, ({"uniform"}, {"uniform", "distil"}), strict=True):
        assert row == config.model_copy(update={"losses": tuple(x for x in config.losses if x not in gone)})


def test_each_choice_is_one_key_of_the_papers_preset(tmp_path):
    rows = {name: made(STRONG, changes, tmp_path / "c.yaml") for name, changes in rows_of("choices", STRONG).items()}
    assert rows.pop("LLM-SRec") == STRONG
    same = {key: getattr(STRONG, key) for key in ("epochs", "checkpoint_every_steps", "validation_users")}
    assert rows.pop("paper's preset") == PAPER.model_copy(update=same)
    for name, row in rows.items():
        (key,) = (key for key, value in row if value != getattr(STRONG, key))
        assert key == "losses" or getattr(row, key) == getattr(PAPER, key), name
    assert len(rows) == 7


def test_a_row_that_has_no_numbers_in_the_paper_has_no_columns():
    assert beside("x", None, MAIN) == {} and list(beside("x", (1.0,), MAIN)) == ["paper's x, Movies"]


def test_a_config_without_llm_srec_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: x")
    with pytest.raises(ValueError, match=r"does not name LLM-SRec; add --set 'baselines=\{llm_srec: \{\}\}'"):
        Runs(path, [], tmp_path, Console(log_json=True))


@pytest.mark.benchmark
def test_the_command(tmp_path):
    app = typer.Typer()
    app.command()(llm_srec.main)
    options = ["--quick", "--tables", "6,8,3-5,9", "--seeds", "1", "--steps", "1", "--users", "4", "--log-json"]
    with jobs_in_process():
        done = CliRunner().invoke(app, [*options, "--root", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "llm_srec.json").read_text())
    rows = content["measurements"]

    def of(table: str) -> list[dict]:
        return [row for row in rows if row["table"] == table]

    main = {(row["row"], row["seed"]): row for row in of("6")}
    assert {("teacher", 0), ("llm-srec", 0), ("llm-srec", 1), ("a-llmrec", 0)} <= main.keys()
    assert main["teacher", 0]["paper's NDCG@10, CDs"] == 0.3451
    assert {"± se, NDCG@10", "NDCG@10 - teacher", "± 95 %, NDCG@10 - teacher"} <= main["llm-srec", 1].keys()
    assert main["llm-srec", 0]["NDCG@10"] != main["llm-srec", 1]["NDCG@10"]
    assert [row["row"] for row in of("8")] == ["LLM-SRec", "w/o L_uniform", "w/o L_distil, L_uniform"]
    assert of("8")[0]["NDCG@10"] == main["llm-srec", 1]["NDCG@10"], "it is made once"
    assert "NDCG@10 - first" in of("8")[1] and of("6, learning curve")[0]["users"] > 0
    shuffled = {row["row"]: row for row in of("3-5")}
    assert set(shuffled) == {"teacher", "a-llmrec", "llm-srec"}
    assert "cosine" in shuffled["teacher"] and "cosine" in shuffled["llm-srec"] and "cosine" not in shuffled["a-llmrec"]
    assert {"NDCG@10, change %", "NDCG@10, shown shuffled"} <= shuffled["a-llmrec"].keys()
    assert [row["row"] for row in of("9")][:2] == ["a-llmrec", "llm-srec"] and of("9")[1]["minutes an epoch"] > 0
    assert {bar["holds"] for bar in content["bars"]} == {None} and len(content["bars"]) == 2

    config = small_config(tmp_path / "llm_srec", Console(log_json=True))
    teachers = [
        read_manifest(load_config(config, [f"name={name}", f"root={tmp_path}/llm_srec"]).workspace.teacher).digest
        for name in ("finished", "order-true", "order-shuffled")
    ]
    assert teachers[0] == teachers[1] != teachers[2]
