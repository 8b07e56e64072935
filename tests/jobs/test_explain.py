"""`explain`: the table, the counts, and who is asked."""

import json

import pytest

from allmrec.core.artifacts import read_manifest, read_table
from jobs.explain import explain
from jobs.runtime.console import Console
from tests.evaluation.tiny import tiny_config
from tests.jobs.in_process import driver_reads_no_table

TASK = "favourite-genre"

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture(scope="module")
def tiny(tiny_workspace):
    _, storage = tiny_workspace
    return tiny_config(storage.root.parent, explain={"max_new_tokens": 4}), storage


def test_explain(tiny, capsys):
    config, storage = tiny
    console = Console(log_json=True)
    explain(config, console, TASK, 7, [], dry_run=True)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["prompts"] == 14
    assert not storage.exists("explanations/manifest.json")

    with driver_reads_no_table():
        explain(config, console, TASK, 7, [])
    rows = read_table(storage.at("explanations"))
    assert rows.num_rows == 14 and len(set(rows.column("user_id").to_pylist())) == 7
    systems = {row["system"]: row for row in read_manifest(storage.at("explanations")).stats["systems"]}
    chose = [row["chose_favourite"] for row in rows.to_pylist() if row["system"] == "a-llmrec"]
    assert systems["a-llmrec"]["chooses a favourite"] == pytest.approx(sum(chose) / 7)
    assert '"skip"' not in capsys.readouterr().out
    explain(config, console, TASK, 7, [])
    assert '"skip"' in capsys.readouterr().out, "nothing has changed"

    requested = ["user-40", "user-03", "user-40"]
    explain(config, console, TASK, 7, requested)
    some = read_table(storage.at("explanations"))
    assert some.column("user_id").to_pylist() == ["user-03"] * 2 + ["user-40"] * 2


def test_what_users_can_get_wrong(tiny):
    config, _ = tiny
    with pytest.raises(ValueError, match="favourite-genre"):
        explain(config, Console(log_json=True), "poem", 7, [])
    with pytest.raises(ValueError, match="'no-user'"):
        explain(config, Console(log_json=True), TASK, 7, ["user-03", "no-user"])
