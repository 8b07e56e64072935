"""What jobs print: progress and tables for people, JSON lines with `--log-json`.

Nothing that is printed is cut: tables are divided by columns and folded, texts continue on the next line.
"""

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from allmrec.core.masking import masked

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
            self.console.event("progress", task=self.title, done=self.done, total=self.total, eta_s=eta_s, **numbers)


class Console:
    """One console a process. Machines read `--log-json`: one JSON object a line on standard output."""

    def __init__(self, log_json: bool = False):
        self.log_json = log_json
        self.rich = RichConsole(highlight=False, soft_wrap=True)

    def event(self, name: str, **numbers: Any) -> None:
        """A line of the log."""
        if self.log_json:
            line = _finite({"event": name, "time": round(time.time(), 3), **numbers})
            print(masked(json.dumps(line, default=str)), flush=True)
        else:
            self.rich.print(f"  {_plain(name)}  [dim]{_inline(numbers)}[/dim]")

    def warning(self, text: str) -> None:
        """What a person should know, and does not end the job."""
        if self.log_json:
            self.event("warning", message=text)
        else:
            print(masked(f"warning: {text}"), file=sys.stderr)

    def failed(self, error: Exception, exit_code: int) -> None:
        """The last line of a job: the error. The traceback of a defect comes before it, or with ALLMREC_TRACEBACK=1."""
        told = isinstance(error, (ValueError, OSError))
        text = str(error) if told else f"{type(error).__name__}: {error}"
        line, trace = " ".join(text.split()), ""
        if not told or os.environ.get("ALLMREC_TRACEBACK"):
            trace = "".join(traceback.format_exception(error))
        if self.log_json:
            self.event("failed", error=line, exit_code=exit_code, **({"traceback": trace} if trace else {}))
        else:
            print(masked(f"{trace}error: {line}"), file=sys.stderr)

    def table(self, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A table for people, divided by columns where the console is narrow; machines get one event with its rows."""
        if self.log_json:
            self.event("table", title=title, rows=[dict(zip(columns, row, strict=True)) for row in rows])
            return
        cells = [[masked(_text(cell)) for cell in row] for row in rows]  # whole: what is folded is not found
        self.rich.print(f"[italic]{_plain(title)}[/italic]", soft_wrap=False)
        for part in self._parts(columns, cells):
            table = Table()
            for index in part:
                table.add_column(_plain(columns[index]), justify="right" if index else "left", overflow="fold")
            for row in cells:
                table.add_row(*[_plain(row[index]) for index in part])
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
            self.rich.print(f"[bold]{verb}[/bold] skipped: {_plain(why)}")

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


def _finite(value: Any) -> Any:
    """As JSON has it: numbers that it cannot spell (nan, inf) become null."""
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(text: str) -> str:
    """Text in which nothing is markup, and without secrets: paths and titles may hold brackets."""
    return escape(masked(text))


def _inline(numbers: dict[str, Any]) -> str:
    return _plain(", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in numbers.items()))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
