"""What the console's commands share: their options, and how errors and warnings are told.

Knows no verb; `jobs.cli` lists them.
"""

import codecs
import datetime
import logging
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO
from zoneinfo import ZoneInfo

import typer
from typer.core import TyperGroup

from allmrec.core.errors import JobTimeout, exit_code
from jobs.runtime.console import Console

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="the deployment's YAML file")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        help="override a config key, section.key=value; may be repeated",
        default_factory=list,
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check config and inputs, print the plan, touch nothing")]
LogJson = Annotated[bool, typer.Option("--log-json", help="print JSON lines instead of text and progress bars")]
Force = Annotated[bool, typer.Option("--force", help="run even if nothing has changed")]
Replace = Annotated[
    bool,
    typer.Option(
        "--replace",
        help="replace a run of this date that has other inputs; readers see it until the new one is published",
    ),
]
RunDate = Annotated[
    str | None, typer.Option("--date", help="date of the run, YYYY-MM-DD; default: today (nightly.timezone)")
]
ExistingDate = Annotated[str, typer.Option("--date", help="date of the run, YYYY-MM-DD")]
PublishedDate = Annotated[
    str | None, typer.Option("--date", help="date of the run, YYYY-MM-DD; default: the current run's")
]
AnyDate = Annotated[str | None, typer.Option("--date", help="date of the run, YYYY-MM-DD; default: all dates")]
BundleVersion = Annotated[str | None, typer.Argument(help="version of the bundle; default: the one in use")]


def main(*verb: str) -> None:
    """Entry of `python -m jobs.VERB`: what `allmrec VERB` does with the same arguments."""
    sys.argv[1:1] = verb
    runpy.run_module("allmrec", run_name="__main__")


class Commands(TyperGroup):
    """Commands whose errors end the process as `errors_in_one_line` says."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        with errors_in_one_line("--log-json" in (sys.argv if args is None else args)):
            return super().main(args, *rest, **options)


@contextmanager
def errors_in_one_line(log_json: bool = False) -> Iterator[None]:
    """An error ends the process in one line, with its exit code (`allmrec.core.errors`); a defect has a traceback too.

    With `--log-json` the line is an event on standard output. No secret is printed.
    """
    for stream in (sys.stdout, sys.stderr):
        take_any_text(stream)
    console = Console(log_json)
    try:
        with warnings_on(console):
            yield
    except Exception as error:
        code = exit_code(error)
        console.failed(error, code)
        if isinstance(error, JobTimeout):
            # At once: an orderly end would stop Ray under that thread, which then waits for it and ends with code 1.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        raise SystemExit(code) from None


class Warnings(logging.Handler):
    """What libraries warn of, as lines of the console."""

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.warning(" ".join(record.getMessage().split()))


@contextmanager
def warnings_on(console: Console) -> Iterator[None]:
    """Within, warnings come to the console; to one of them."""
    handler, root = Warnings(console), logging.getLogger()
    if any(isinstance(other, Warnings) for other in root.handlers):
        yield
        return
    root.addHandler(handler)
    logging.getLogger("allmrec").setLevel(logging.WARNING)  # whatever level libraries set for the root
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)


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
