"""What jobs print: progress and tables for people, JSON lines with `--log-json`."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


class Phase:
    """A running step: takes the numbers to close it with."""

    def __init__(self) -> None:
        self.numbers: dict[str, Any] = {}

    def stats(self, numbers: dict[str, Any]) -> None:
        self.numbers.update(numbers)


class Bar:
    """A progress bar, or JSON lines at most every five seconds. `advance` takes numbers worth showing."""

    def __init__(self, console: "Console", title: str, total: int, progress: Progress | None):
        self.console, self.title, self.total, self.progress = console, title, total, progress
        self.done, self.started, self.spoke = 0, time.monotonic(), time.monotonic()
        self.task = progress.add_task(title, total=total, numbers="") if progress else None

    def advance(self, count: int = 1, **numbers: Any) -> None:
        self.done += count
        now = time.monotonic()
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=self.done, numbers=_inline(numbers))
        elif now - self.spoke >= 5 or self.done >= self.total:
            self.spoke = now
            rate = self.done / max(now - self.started, 1e-9)
            eta_s = round((self.total - self.done) / rate) if rate else None
            self.console.event("progress", what=self.title, done=self.done, total=self.total, eta_s=eta_s, **numbers)


class Console:
    """One console a process. Machines read `--log-json`: one JSON object a line on standard output."""

    def __init__(self, log_json: bool = False):
        self.log_json = log_json
        self.rich = RichConsole(highlight=False, soft_wrap=True)

    def event(self, name: str, **numbers: Any) -> None:
        """A line of the log."""
        if self.log_json:
            print(json.dumps({"event": name, "time": round(time.time(), 3), **numbers}, default=str), flush=True)
        else:
            self.rich.print(f"  {escape(name)}  [dim]{_inline(numbers)}[/dim]")

    def table(self, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A table for people; machines get one event with its rows."""
        if self.log_json:
            self.event("table", title=title, rows=[dict(zip(columns, row, strict=True)) for row in rows])
            return
        table = Table(title=escape(title), title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*[escape(_text(cell)) for cell in row])
        self.rich.print(table)

    def plan(self, verb: str, stats: dict[str, Any]) -> None:
        if self.log_json:
            self.event("plan", verb=verb, **stats)
        else:
            self.rich.print(f"[bold]{verb}[/bold] would run: {_inline(stats)}")

    def skip(self, verb: str, why: str) -> None:
        if self.log_json:
            self.event("skip", verb=verb, why=why)
        else:
            self.rich.print(f"[bold]{verb}[/bold] skipped: {escape(why)}")

    @contextmanager
    def phase(self, verb: str) -> Iterator[Phase]:
        """Around a step: says that it begins, and with what numbers it ended."""
        started, phase = time.monotonic(), Phase()
        if self.log_json:
            self.event("start", verb=verb)
        else:
            self.rich.print(f"[bold]{verb}[/bold]")
        yield phase
        seconds = round(time.monotonic() - started, 1)
        if self.log_json:
            self.event("done", verb=verb, seconds=seconds, **phase.numbers)
        else:
            self.rich.print(f"  done in {seconds} s  [dim]{_inline(phase.numbers)}[/dim]")

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Bar]:
        """A bar over `total` units of work."""
        if self.log_json or not sys.stdout.isatty():
            yield Bar(self, title, total, None)
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        with Progress(*columns, console=self.rich) as progress:
            yield Bar(self, title, total, progress)


def _inline(numbers: dict[str, Any]) -> str:
    """As text in which nothing is markup: paths and titles may hold brackets."""
    return escape(", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in numbers.items()))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
