"""What is printed: JSON lines for machines, and text that cannot pretend to be markup for people."""

import json

import pytest

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
