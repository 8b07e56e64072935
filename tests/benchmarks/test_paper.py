"""The tables of the A-LLMRec paper: what is said of a row, which orderings hold, and what is printed."""

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from allmrec.core.artifacts import Manifest, writing
from benchmarks import paper
from benchmarks.comparison import verdict
from benchmarks.llm_srec_runs import small_config
from benchmarks.paper_ablations import ABLATIONS
from benchmarks.paper_layout import show
from benchmarks.paper_numbers import FIRST, NAMES, TABLES
from benchmarks.paper_runs import PaperRuns
from benchmarks.paper_tables import Request, compared, figures, measure
from benchmarks.paper_times import of_prompts
from benchmarks.report import Benchmark
from benchmarks.runs import PREPARED
from jobs.config import load_config
from jobs.runtime.console import Console
from tests.benchmarks.evaluated import evaluated
from tests.jobs.in_process import jobs_in_process


def test_a_row_has_its_untrained_one_and_differences_by_user(tmp_path):
    first = evaluated(tmp_path / "first", {"a-llmrec": [1, 1, 1, 0, 1, 1], "a-llmrec-untrained": [0, 1, 0, 0, 0, 0]})
    row = evaluated(tmp_path / "row", {"a-llmrec": [0, 1, 1, 1, 0, 0], "a-llmrec-untrained": [0, 1, 0, 0, 0, 0]})
    sources = {FIRST: (first, "a-llmrec")}

    def measured(workspace, system):
        source = workspace, system
        return figures(source, "all") | compared(source, TABLES["8"], sources, "all")

    trained, untrained = (measured(row, name) for name in ("a-llmrec", "a-llmrec-untrained"))
    assert trained["Hit@1"] == trained["matched"] == 0.5 and untrained["Hit@1"] == pytest.approx(1 / 6)
    # Differences -1, 0, 0, 1, -1, -1: t of 5 degrees of freedom 2.5706, variance 0.6667.
    assert trained["Hit@1 - A-LLMRec"] == trained["matched - A-LLMRec"] == pytest.approx(-1 / 3)
    assert trained["± 95 %, Hit@1 - A-LLMRec"] == pytest.approx(2.5706 * np.sqrt(0.66667 / 6), abs=1e-3)
    assert trained["Hit@1 - untrained"] == pytest.approx(1 / 3)
    assert untrained["Hit@1 - A-LLMRec"] == pytest.approx(-4 / 6) and "Hit@1 - untrained" not in untrained
    assert "Hit@1 - A-LLMRec" not in measured(first, "a-llmrec"), "the first row is what it is compared to"


def test_a_run_without_an_untrained_row_is_refused(tmp_path):
    run = evaluated(tmp_path / "run", {"a-llmrec": [1, 0, 1]})
    with pytest.raises(ValueError, match=r"'a-llmrec-untrained'.* add the systems to evaluation\.systems"):
        compared((run, "a-llmrec-untrained"), TABLES["8"], {FIRST: (run, "a-llmrec")}, "all")


def test_the_random_row_has_no_collaborative_start():
    assert "projection.start=ordinary" in ABLATIONS["9"]["random joint embedding"]


@pytest.mark.parametrize("table", TABLES)
def test_the_papers_own_figures_are_mostly_as_it_claims(table):
    paper = TABLES[table]
    assert all(len(numbers) == len(paper.data) for numbers in paper.numbers.values())
    assert {*paper.numbers} <= {*paper.rows} and paper.reference in paper.rows
    for subset, claims in paper.claims.items():
        assert len({*claims}) == len(claims) > 0
        for claim in claims:
            agree, columns = paper.agreement(claim, subset)
            assert columns and agree > columns / 2, claim


def test_a_claim_is_held_against_the_papers_columns_of_its_subset():
    assert TABLES["1"].agreement(("tallrec", "sasrec"), "all") == (3, 4)  # not on Beauty
    assert TABLES["4"].agreement(("sasrec", "tallrec"), "cold") == (3, 3)
    assert TABLES["4"].agreement(("sasrec", "tallrec"), "warm") == (0, 3)


def test_an_interval_that_holds_zero_leaves_an_ordering_open():
    assert [verdict(*found) for found in [(0.2, 0.1), (-0.2, 0.1), (0.1, 0.1), (0.2, None), (None, None)]] == [
        "holds",
        "reversed",
        "open",
        "open",
        "open",
    ]


def test_orderings_are_judged_by_paired_intervals_and_printed_beside_the_papers_row(tmp_path, capsys):
    hits = {"teacher": [1] * 8 + [0] * 8, "morec": [0] * 8 + [1] * 8, "a-llmrec": [1] * 16}
    run = evaluated(tmp_path / "run", hits)
    sources = {name: (run, system) for name, system in (("sasrec", "teacher"), ("morec", "morec"), ("a-llmrec",) * 2)}
    benchmark = Benchmark("paper-4", Console(), {}, tmp_path)
    benchmark.console.rich.width = 400
    measure(benchmark, "4", "shop", sources, seed=0)
    judged = {
        (labels["data"], labels["row"]): numbers
        for labels, numbers in benchmark.measurements
        if labels["table"] == "4, orderings"
    }
    assert judged["shop, cold", "SASRec < MoRec"]["here"] == judged["shop, warm", "MoRec < SASRec"]["here"] == "holds"
    assert judged["shop, warm", "SASRec < A-LLMRec"] == {
        "difference": 0,
        "± 95 %, difference": 0,
        "in the paper": "3 of 3",
        "here": "open",
    }
    assert not [row for _, row in judged if "TALLRec" in row], "systems that are not there are not judged"
    show(benchmark, "4")
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if line.startswith("│ MoRec  ")]
    assert "0.2745" in row and "1.000" in row and "-1.000 ± 0.000" in row
    assert "TALLRec" in printed and "holds: +1.000" in printed


def test_minutes_of_training_are_those_of_its_steps():
    manifest = Manifest("projectors", "", {}, {"projection": {"batch_size": 4}}, {"steps": 300, "prompts_per_s": 2.0})
    assert of_prompts(manifest, ("projection",)) == 10
    assert of_prompts(Manifest("projectors", "", {}), ("projection",)) is None


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(paper.main)
    return lambda *options: CliRunner().invoke(app, [*map(str, options), "--log-json"], catch_exceptions=False)


def test_sizes_are_those_of_the_prepared_tables(tmp_path, command):
    path = tmp_path / "config.yaml"
    path.write_text(f"name: shop\nroot: {tmp_path}\n")
    for name in PREPARED:
        with writing(load_config(path, []).workspace.at(name), name, "") as out:
            out.stats |= {"users": 4, "items": 3, "interactions": 10}
    assert command("--table", "2", "--config", path, "--root", tmp_path).exit_code == 0
    rows = {row["row"]: row for row in json.loads((tmp_path / "paper-2.json").read_text())["measurements"]}
    assert rows["shop"]["a user"] == 2.5 and rows["paper: Beauty"]["users"] == 9930


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--table", "3"], "there are 1, 2, 4"),
        (["--table", "5", "--systems", "bert"], "--systems bert: table 5 has sasrec, morec"),
        (["--table", "7"], "table 7 takes two configs"),
    ],
)
def test_what_a_table_is_not_made_of_is_refused(tmp_path, command, options, message):
    path = tmp_path / "config.yaml"
    path.write_text(f"name: shop\nroot: {tmp_path}\n")
    done = command(*options, "--config", path, "--root", tmp_path)
    assert done.exit_code == 2 and message in done.output and not (tmp_path / "shop").exists()


def test_a_split_that_tests_no_user_is_refused_before_anything_is_trained(tmp_path, command):
    path = tmp_path / "config.yaml"
    path.write_text(f"name: shop\nroot: {tmp_path}\n")
    for name in PREPARED:
        with writing(
            load_config(path, ["name=shop-cold-users", f"root={tmp_path}/paper"]).workspace.at(name), name, ""
        ) as out:
            out.stats |= {"test": 0}
    done = command("--table", "5", "--config", path, "--root", tmp_path)
    assert done.exit_code == 2 and "its split tests no user" in done.output


def test_a_tables_reference_is_always_among_its_rows(tmp_path):
    request = Request(Benchmark("x", Console(log_json=True), {}, tmp_path), [], systems=("morec",))
    assert request.wanted("5") == ["morec", "a-llmrec"]


@pytest.mark.benchmark
def test_the_command(tmp_path, command):
    path = small_config(tmp_path, Console(log_json=True))
    recformer = "{epochs: 1, max_items: 3, max_tokens: 32}"
    tallrec = "{epochs: 1, batch_size: 32, num_candidates: 6}"
    baselines = f"baselines={{morec: {{}}, tallrec: {tallrec}, recformer: {recformer}}}"
    fast = ["--set", baselines, "--root", tmp_path, "--config", path]
    with jobs_in_process():
        for table, *more in (
            ("1",),
            ("4",),
            ("5",),
            ("6", "--systems", "morec"),
            ("7", "--config", path),
            ("9", "--systems", "MLP-LLM"),
            ("10", "--users", "12"),
            ("11", "--systems", "ncf"),
        ):
            done = command("--table", table, *fast, *more)
            assert done.exit_code == 0, done.output

    def of(table):
        rows = json.loads((tmp_path / f"paper-{table.split(',')[0]}.json").read_text())["measurements"]
        return {row["row"]: row for row in rows if row["table"] == table}

    main = of("1")
    missing = {NAMES[name] for name in ("ctrl", "llm-srec")}
    assert {NAMES.get(name, name) for name in TABLES["1"].rows} - missing == {*main}
    assert main["NCF"]["Hit@1"] != main["SASRec"]["Hit@1"] and "± 95 %, Hit@1 - A-LLMRec" in main["MLP-LLM"]
    assert main["SASRec"]["Hit@1"] == of("11")["SASRec"]["Hit@1"]
    assert {"MoRec", "RECFORMER", "SASRec", "TALLRec", "A-LLMRec", "A-LLMRec (SBERT)"} == {*of("7")}
    times = of("10, time")
    assert {*times} == {"TALLRec", "A-LLMRec", "A-LLMRec_all"} and times["TALLRec"]["seconds a batch"] > 0
    assert all(row["minutes"] > 0 for row in times.values())
    again = PaperRuns(path, [baselines], tmp_path / "paper", Console(log_json=True))
    assert again.finished().storage.uri == again.base.workspace.storage.uri
