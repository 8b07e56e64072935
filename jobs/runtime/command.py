"""What the console's commands share: their options, one-line errors, and how a step becomes a command.

Knows no verb; `jobs.cli` lists them.
"""

import codecs
import datetime
import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO
from zoneinfo import ZoneInfo

import typer

from allmrec.core.errors import JobTimeout

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="YAML file of the deployment")]
Overrides = Annotated[list[str], typer.Option("--set", help="override a key: section.key=value")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check config and inputs, print the plan, touch nothing")]
LogJson = Annotated[bool, typer.Option("--log-json", help="JSON lines instead of progress bars")]
Force = Annotated[bool, typer.Option("--force", help="run even if nothing has changed")]
RunDate = Annotated[
    str | None, typer.Option("--date", help="date of the run, YYYY-MM-DD; default: today (nightly.timezone)")
]
PublishedDate = Annotated[str | None, typer.Option("--date", help="date of the run, YYYY-MM-DD; default: the current")]


def main(*verb: str) -> None:
    """Entry of `python -m jobs.VERB`: what `allmrec VERB` does with the same arguments."""
    sys.argv[1:1] = verb
    runpy.run_module("allmrec", run_name="__main__")


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """What a user can get wrong ends in one line and exit code 2; anything else keeps its traceback."""
    for stream in (sys.stdout, sys.stderr):
        take_any_text(stream)
    try:
        yield
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, JobTimeout):
            # At once: an orderly end would stop Ray under that thread, which then waits for it and ends with code 1.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(2)
        if os.environ.get("ALLMREC_TRACEBACK"):
            raise
        raise typer.Exit(2) from None


def take_any_text(stream: TextIO) -> None:
    """Let a console that is not UTF-8 show what it cannot as escapes, and say so: a job must not die of it."""
    encoding = codecs.lookup(stream.encoding or "ascii").name
    if not encoding.startswith("utf") and stream.errors != "backslashreplace":
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
        if stream is sys.stdout:
            print(
                f"note: this console is {encoding}, so some characters are escaped; PYTHONUTF8=1 helps", file=sys.stderr
            )


def run_date(text: str | None, timezone: str = "UTC") -> datetime.date:
    """The date, or today in a time zone."""
    if text is None:
        return datetime.datetime.now(ZoneInfo(timezone)).date()
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"--date {text!r}: write it as YYYY-MM-DD") from None
