"""What is printed: JSON lines for machines, and text that cannot pretend to be markup for people."""

import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from allmrec.evaluation.report import FIGURES, WRITTEN_FIGURES
from allmrec.evaluation.results import FULL, GENERATION
from allmrec.evaluation.systems import SOFT
from jobs.evaluate import show
from jobs.runtime.command import run_date
from jobs.runtime.console import Console

HOSTILE = "[red]not a colour[/red] [/] [link=x]"


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(log_json=True)
    with console.phase("verb") as phase:
        with console.progress("work", 2) as bar:
            bar.advance(1, loss=0.5)
            bar.advance(1, loss=0.25)
        phase.stats({"rows": 3})
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
        phase.stats({"path": HOSTILE})
    assert capsys.readouterr().out.count(HOSTILE) == 6


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("COLUMNS", "80")
    return Console()


def metrics_rows() -> list[dict[str, Any]]:
    """Of every system under every protocol, with figures as long as they get."""
    full = [("full", subset, metric) for subset in ("all", "warm", "cold") for metric in ("ndcg@10", "recall@100")]
    numbers = {"value": 0.3123, "stderr": 0.0141, "difference": -0.0312, "low": -0.0513, "high": -0.0121}
    return [
        {
            "system": system,
            "protocol": protocol,
            "subset": subset,
            "metric": metric,
            "baseline": "popularity",
            **numbers,
        }
        for system in ("random", "popularity", "teacher", *SOFT)
        for protocol, subset, metric in (*FIGURES.values(), *full, *WRITTEN_FIGURES.values())
    ]


def test_the_evaluation_fits_80_columns_with_every_name_whole(
    narrow: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = metrics_rows()
    assert {row["protocol"] for row in metrics} >= {"random", "matched", "swap", FULL, GENERATION}
    show(narrow, metrics)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    heads = [cell.strip() for line in lines if line.startswith("┃") for cell in line.strip("┃").split("┃")]
    full = [f"{subset}{metric}" for subset in ("", "warm ", "cold ") for metric in ("ndcg@10", "recall@100")]
    assert [head for head in heads if head != "system"] == [*FIGURES, *FIGURES, *full, *WRITTEN_FIGURES]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    parts = heads.count("system")
    assert [row[0] for row in rows] == ["random", "popularity", "teacher", *SOFT] * parts
    assert {cell for row in rows for cell in row[1:]} == {"0.312 ± 0.014", "-0.031 [-0.051, -0.012]"}


def test_a_cell_wider_than_the_console_is_folded(narrow: Console, capsys: pytest.CaptureFixture[str]) -> None:
    item, uri = "".join(map(str, range(60))), f"s3://bucket/{'very/' * 30}long"
    narrow.table("items", ["item_id", "rank", "score"], [[item, 1, 0.25]])
    narrow.table("bundle", ["what", "value"], [["folder", uri]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    columns = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert "".join(row[0] for row in columns if len(row) == 3) == item
    assert "".join(row[1] for row in columns if len(row) == 2) == uri


def test_a_wide_console_has_one_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    Console().table("t", ["system", *FIGURES], [["a-llmrec", *["0.312 ± 0.014"] * len(FIGURES)]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "t" and len(lines) == 6


def test_people_get_a_bar_and_pipes_get_lines(narrow: Console, capsys: pytest.CaptureFixture[str]) -> None:
    with narrow.progress("work", 1) as bar:
        bar.advance(loss=0.5)
    assert "progress  task work, done 1, total 1" in capsys.readouterr().out
    program = (
        "from jobs.runtime.console import Console\nfor log_json in (False, True):\n"
        " with Console(log_json).progress('work', 2) as bar:\n  bar.advance(2, loss=0.5)"
    )
    shown = on_a_terminal([sys.executable, "-c", program])
    bar, line = shown.split("{", 1)
    assert "2/2" in bar and "loss 0.5" in bar and "━" in bar
    assert json.loads("{" + line)["done"] == 2


def on_a_terminal(command: list[str]) -> str:
    """What a command prints where its output is a terminal."""
    reader, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "PYTHONUTF8": "1"}
    process = subprocess.Popen(command, stdout=terminal, stderr=subprocess.DEVNULL, env=environment)
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(reader, 4096):
            shown += part
    except OSError:  # Linux's end of file of a terminal
        pass
    os.close(reader)
    assert process.wait() == 0
    return shown.decode()


def test_a_console_that_is_not_utf8_is_told_and_kills_nothing(tmp_path: Path) -> None:
    """Names of files and items are any text; what cannot be shown is escaped."""
    (tmp_path / "c.yaml").write_text(f"name: x\nroot: {tmp_path}/lädchen\n")
    command = [sys.executable, "-m", "allmrec", "recommendations", "list", "--config", str(tmp_path / "c.yaml")]
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
