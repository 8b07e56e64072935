"""What jobs print: progress and tables for people, JSON lines with `--log-json`.

Nothing that is printed is cut: tables are divided by columns and folded, texts continue on the next line.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_FRAME = 3  # characters around a cell: a border and two spaces


class Phase:
    """A running step: collects the numbers of its last line."""

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
        """A table for people, divided by columns where the console is narrow; machines get one event with its rows."""
        if self.log_json:
            self.event("table", title=title, rows=[dict(zip(columns, row, strict=True)) for row in rows])
            return
        cells = [[_text(cell) for cell in row] for row in rows]
        self.rich.print(f"[italic]{escape(title)}[/italic]", soft_wrap=False)
        for part in self._parts(columns, cells):
            table = Table()
            for index in part:
                table.add_column(escape(columns[index]), justify="right" if index else "left", overflow="fold")
            for row in cells:
                table.add_row(*[escape(row[index]) for index in part])
            self.rich.print(table, soft_wrap=False)

    def _parts(self, columns: list[str], cells: list[list[str]]) -> list[list[int]]:
        """Columns side by side in one table: as many as fit behind the first one. A very wide cell is folded."""
        most = (self.rich.width - 1) // 2 - _FRAME
        widths = [
            _FRAME + min(most, max(cell_len(text) for text in column)) for column in zip(columns, *cells, strict=True)
        ]
        parts = [[0]]
        for index in range(1, len(columns)):
            taken = 1 + sum(widths[column] for column in parts[-1])
            if len(parts[-1]) > 1 and taken + widths[index] > self.rich.width:
                parts.append([0])
            parts[-1].append(index)
        return parts

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
        """Around a step: prints that it starts, and the numbers with which it ends."""
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
