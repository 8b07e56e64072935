"""The retrieval benchmark: all ways find the same in a small catalogue, and the whole command runs."""

import json

import torch
import typer
from typer.testing import CliRunner

from allmrec.cf.approximate import ApproximateIndex, ItemLists
from allmrec.cf.retrieval import retrieve
from benchmarks.retrieval import Case, Vectors, main, recall, reference


def test_the_ways_agree_and_recall_tells_when_they_do_not():
    teacher = Vectors(Case("exact", users=30, items=400))
    exact, _ = retrieve(teacher, teacher.users_UD, teacher.seen, teacher.available_I, 10)
    assert reference(teacher, 10).tolist() == exact.tolist()
    lists = ItemLists.of(teacher, teacher.available_I, 0)
    index = ApproximateIndex(teacher, teacher.available_I, lists)
    found, _ = index.retrieve(teacher.users_UD, teacher.seen, 10)
    assert recall(teacher, found, 10) == 1
    assert abs(recall(teacher, torch.where(torch.arange(10) < 7, found, 0), 10) - 0.7) < 1e-6


def test_the_command(tmp_path):
    app = typer.Typer()
    app.command()(main)
    arguments = ["--quick", "--users", "40", "--items", "300", "--threads", "1", "--root", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "retrieval.json").read_text())
    assert [row["way"] for row in content["measurements"]] == ["reference", "exact", "exact", "exact", "index"]
    assert all(row["users/s"] > 0 for row in content["measurements"])
    assert {bar["holds"] for bar in content["bars"]} == {None}
    assert content["bars"][-1]["name"] == "recall of the index" and content["bars"][-1]["value"] == 1
