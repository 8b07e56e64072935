"""The verbs that manage published runs, as a user types them."""

import contextlib
import json
import socket
import time
import urllib.request
from datetime import timedelta
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from allmrec.core.storage import LocalStorage
from allmrec.publishing.maintenance import TRIALS
from allmrec.publishing.reader import read_recommendations
from allmrec.publishing.run import Run
from jobs.cli import app
from jobs.config import load_config
from jobs.recommendations import metrics
from jobs.runtime.console import Console
from tests.nightly.conftest import DAY, Shop
from tests.publishing.test_run import IDENTITY, NEXT_DAY, nightly


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A deployment that has published two days."""
    for day in (DAY, NEXT_DAY):
        nightly(LocalStorage(tmp_path / "out"), Shop(), day)
    path = tmp_path / "config.yaml"
    settings = {"name": "shop", "root": str(tmp_path), "nightly": {"output": str(tmp_path / "out"), "lease_s": 0.2}}
    path.write_text(yaml.safe_dump(settings))
    return path


def call(verb: str, config: Path, *arguments: str) -> Result:
    command = ["recommendations", verb, "--config", str(config), "--log-json", *arguments]
    return CliRunner().invoke(app, command, catch_exceptions=False)


def event(result: Result) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def by_date(result: Result) -> list[dict]:
    events = [json.loads(line) for line in result.stdout.splitlines()]
    return [event for event in events if event["event"] == "suppressed"]


def refusal(result: Result) -> str:
    failed = json.loads(result.stdout.splitlines()[-1])
    assert result.exit_code == 2 and failed["event"] == "failed" and failed["exit_code"] == 2
    return failed["error"]


def test_show_reads_only_the_users_shard(config: Path) -> None:
    output = LocalStorage(config.parent / "out")
    row = read_recommendations(output.uri).to_pylist()[0]
    for entry in list(output.list(f"run_date={NEXT_DAY}/part-")):
        users = pq.read_table(output.root / entry.key).column("user_id").to_pylist()
        if row["user_id"] not in users:
            output.write(entry.key, b"damage")
    shown = event(call("show", config, "--user", row["user_id"]))
    assert shown["rows"] == row["items"] and str(NEXT_DAY) in shown["title"]
    assert str(DAY) in event(call("show", config, "--user", row["user_id"], "--date", str(DAY)))["title"]
    assert "has no user 'stranger'" in refusal(call("show", config, "--user", "stranger", "--date", str(DAY)))
    assert "nothing is published for 2026-01-01" in refusal(
        call("show", config, "--user", "u1", "--date", "2026-01-01")
    )
    assert "write it as YYYY-MM-DD" in refusal(call("show", config, "--user", "u1", "--date", "yesterday"))
    assert "part-0000" in refusal(call("verify", config)) and event(call("verify", config, "--date", str(DAY)))["rows"]


def test_list_and_rollback(config: Path) -> None:
    rows = event(call("list", config))["rows"]
    assert [(row["run_date"], row["current"]) for row in rows] == [(str(NEXT_DAY), True), (str(DAY), False)]
    assert rows[0]["rows"] == Shop.num_users and rows[0]["bundle"] == "v1"
    assert event(call("rollback", config, "--date", str(DAY)))["log_entry"] == 3
    assert [row["current"] for row in event(call("list", config))["rows"]] == [False, True]
    assert "nothing was published for 2026-03-05" in refusal(call("rollback", config, "--date", "2026-03-05"))


def test_discard_takes_only_what_was_never_published(config: Path) -> None:
    output, day = LocalStorage(config.parent / "out"), NEXT_DAY + timedelta(1)
    before = [entry.key for entry in output.list()]
    assert f"no run of {day} was begun" in refusal(call("discard", config, "--date", str(day)))
    assert [entry.key for entry in output.list()] == before
    killed = Run.open(output, day, IDENTITY)
    killed.commit_shard(0, Shop().table(0, killed.run_id, day))
    assert event(call("list", config))["dates"] == str(day)
    assert event(call("discard", config, "--date", str(day)))["run_date"] == str(day)
    assert [entry.key for entry in output.list()] == before
    message = refusal(call("discard", config, "--date", str(DAY)))
    assert f"{DAY} is published" in message and "--replace" in message and "rollback" in message
    assert read_recommendations(output.uri, DAY).num_rows == Shop.num_users


def test_suppress_takes_a_file_or_the_configs_lists(config: Path) -> None:
    assert "nothing to suppress" in refusal(call("suppress", config))
    assert "--users: no such path" in refusal(call("suppress", config, "--users", str(config.parent / "nowhere")))
    trial = LocalStorage(config.parent / "out").at(TRIALS)
    nightly(trial, Shop(), DAY)
    (config.parent / "users.txt").write_text("u3\nu4\n")
    listed = ("--users", str(config.parent / "users.txt"), "--date")
    assert "there is no run of 2026-01-01" in refusal(call("suppress", config, *listed, "2026-01-01"))
    found = by_date(call("suppress", config, *listed, str(DAY)))[-1]
    assert found["users"] == 2 and found["run_date"] == str(DAY) and found["output"] == trial.uri, "trials come last"
    assert {"u3", "u4"}.isdisjoint(read_recommendations(trial.uri).column("user_id").to_pylist())
    assert "has no user 'u3'" in refusal(call("show", config, "--user", "u3", "--date", str(DAY)))
    pq.write_table(pa.table({"user_id": ["u3"]}), config.parent / "excluded.parquet")
    excluded = f"data.excluded_users.paths=[{config.parent}/excluded.parquet]"
    days = by_date(call("suppress", config, "--set", excluded))
    assert [day["users"] for day in days] == [0, 1, 0], "the other day, and no trial of it"
    assert "has no user 'u3'" in refusal(call("show", config, "--user", "u3"))
    pq.write_table(pa.table({"user_id": ["u5"]}), config.parent / "suppressed.parquet")
    item = event(call("show", config, "--user", "u6"))["rows"][0]["item_id"]
    suppressed = (
        f"nightly.suppressed_users={config.parent}/suppressed.parquet",
        f"nightly.suppressed_items.ids=[{item}]",
    )
    days = by_date(call("suppress", config, "--set", suppressed[0], "--set", suppressed[1]))
    assert [day["users"] for day in days] == [1, 1, 1] and all(day["items"] for day in days)


def test_a_list_may_spell_ids_as_a_spreadsheet_does(config: Path) -> None:
    """A mark before UTF-8, CRLF, a blank behind an id, quotes: all are taken out, and who is in no run is counted."""
    (config.parent / "users.txt").write_bytes('\ufeffu3\r\nu4 \r\n"u5"\r\nstranger\r\n'.encode())
    listed = event(call("suppress", config, "--users", str(config.parent / "users.txt")))
    assert (listed["listed"], listed["known"]) == (4, 3)
    left = read_recommendations(str(config.parent / "out")).column("user_id").to_pylist()
    assert {"u3", "u4", "u5"}.isdisjoint(left) and len(left) == Shop.num_users - 3


def test_a_list_of_which_nothing_is_known_is_an_error(config: Path) -> None:
    (config.parent / "users.jsonl").write_text('{"user_id": "U3"}\n{"user_id": "nl\\nuser"}\n')
    arguments = ("--users", str(config.parent / "users.jsonl"))
    message = "--users: of 2 users listed, 0 are known"
    assert message in refusal(call("suppress", config, *arguments))
    assert event(call("suppress", config, *arguments, "--min-known-fraction", "0"))["known"] == 0
    (config.parent / "users.txt").write_text('u3\n"u4\n')
    unread = refusal(call("suppress", config, "--users", str(config.parent / "users.txt")))
    assert "1 lines of" in unread and "number 2" in unread


def test_metrics_are_printed_and_served(config: Path) -> None:
    printed = call("metrics", config)
    assert printed.exit_code == 0 and f"allmrec_current_rows {float(Shop.num_users)}" in printed.stdout
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Thread(target=metrics, args=(load_config(config), Console(log_json=True), port), daemon=True).start()
    served = ""
    while "allmrec_current_rows" not in served:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            served = answer.read().decode()
        time.sleep(0.05)
    assert served == printed.stdout
