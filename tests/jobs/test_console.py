"""What is printed: JSON lines for machines, and text that cannot pretend to be markup for people."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.cli import run_date
from jobs.console import Console

HOSTILE = "[red]not a colour[/red] [/] [link=x]"


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(log_json=True)
    with console.phase("verb") as phase:
        with console.progress("work", 2) as bar:
            bar.advance(1, loss=0.5)
            bar.advance(1, loss=0.25)
        phase.facts({"rows": 3})
    console.table("t", ["system", "hit"], [["a", 1]])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["start", "progress", "done", "table"]
    assert events[1] | {"done": 2, "total": 2, "eta_s": 0, "loss": 0.25} == events[1]
    assert events[2]["rows"] == 3 and events[3]["rows"] == [{"system": "a", "hit": 1}]


def test_text_is_never_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.table(HOSTILE, ["title"], [[HOSTILE]])
    console.event("event", what=HOSTILE)
    console.skip("verb", HOSTILE)
    console.plan("verb", {"path": HOSTILE})
    with console.phase("verb") as phase:
        phase.facts({"path": HOSTILE})
    assert capsys.readouterr().out.count(HOSTILE) == 6


def test_a_console_that_is_not_utf8_is_told_and_kills_nothing(tmp_path: Path) -> None:
    """Names of files and items are any text; what cannot be shown is escaped."""
    (tmp_path / "c.yaml").write_text(f"name: x\nroot: {tmp_path}/lädchen\n")
    command = [sys.executable, "-m", "jobs.cli", "recommendations", "list", "--config", str(tmp_path / "c.yaml")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 2 and "Traceback" not in found.stderr
    note, error = found.stderr.splitlines()
    assert note.startswith("note: this console is ascii") and error.startswith("error: ") and "l\\xe4dchen" in error


def test_today_is_a_day_of_the_time_zone() -> None:
    now = datetime.now(UTC)
    east, west = run_date(None, "Pacific/Kiritimati"), run_date(None, "Etc/GMT+12")
    assert east - west >= timedelta(days=1) and west <= now.date() <= east
    assert str(run_date("2026-11-21", "Asia/Tokyo")) == "2026-11-21"
