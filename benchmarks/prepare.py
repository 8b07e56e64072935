"""`prepare` beside DuckDB and Polars, which make the same tables from the same generated log.

    python -m benchmarks.prepare --rows 20_000_000
    python -m benchmarks.prepare --rows 20_000_000 --rows 100_000_000 --memory-only

Each engine is a process of its own (`ENGINES` says what each does). Before times are compared the tables are:
every user's sequence, every item's popularity, and how many rows were rejected for which reason. "MB" is the most that
the process and all it started held at once, shared pages counted once; Ray's object store, which is a part of it, is
told apart. Memory is of a run of its own: to look at that of Ray's processes takes a seventh of two cores. Our seconds
have Ray's start in them, and not the drawing of evaluation cases, which the others leave out.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import polars as pl
import typer

from benchmarks.generated_log import GeneratedLog
from benchmarks.memory import peak
from benchmarks.prepare_engines import ENGINES
from benchmarks.report import ROOT, Benchmark, Row
from jobs.runtime.command import errors_in_one_line
from jobs.runtime.console import Console

T = TypeVar("T")

NAME = "prepare"
FULL, QUICK = 20_000_000, 200_000


def measure(engine: str, log: GeneratedLog, output: Path, threads: int) -> Row:
    """Run an engine twice, in processes of its own: for its memory, and for its time. Raises ValueError if it fails."""
    memory = _run(engine, log, output, threads, peak)
    _run(engine, log, output, threads, subprocess.Popen.wait)
    numbers = json.loads((output / "numbers.json").read_text())
    seconds = numbers.pop("seconds")
    return {
        "seconds": seconds,
        "rows/s": log.rows / seconds,
        "MB": memory.total,
        "MB object store": memory.shared,
        "MB without it": memory.private,
        **numbers,
    }


def _run(engine: str, log: GeneratedLog, output: Path, threads: int, wait: Callable[[subprocess.Popen], T]) -> T:
    """Returns what `wait` did."""
    for file in log.files():
        file.read_bytes()  # no engine waits for the disk
    command = [sys.executable, "-m", "benchmarks.prepare_engines", engine, str(log.folder), str(output)]
    process = subprocess.Popen([*command, "--threads", str(threads)])
    found = wait(process)
    if process.returncode:
        raise ValueError(f"{engine} ended with code {process.returncode} on {log.rows:,} rows; see above")
    return found


def refuse_difference(output: Path, ours: Path) -> None:
    """Raises ValueError if an engine's tables are not ours."""
    for name, read in (("sequences", sequences), ("items", popularity), ("rejected", reasons)):
        mine, theirs = read(_table(ours, name)), read(_table(output, name))
        if not mine.equals(theirs):
            raise ValueError(f"{name} of {output.name} are not ours; look at {output} and {ours}")


def sequences(path: Path) -> pl.DataFrame:
    """By user; times as microseconds since 1970."""
    table = pl.scan_parquet(path).select("user_id", "item_index", pl.col("timestamp").cast(pl.List(pl.Int64)))
    return table.sort("user_id").collect(engine="streaming")


def popularity(path: Path) -> pl.DataFrame:
    table = pl.scan_parquet(path).select("item_id", "item_index", pl.col("popularity").cast(pl.Int64))
    return table.sort("item_index").collect()


def reasons(path: Path) -> pl.DataFrame:
    return pl.scan_parquet(path).group_by("reason").agg(pl.len()).sort("reason").collect()


def _table(output: Path, name: str) -> Path:
    """Ours is an artifact of a run, theirs is a file."""
    folder = output / "run" / name
    return folder / "*.parquet" if folder.is_dir() else output / f"{name}.parquet"


def main(
    rows: Annotated[list[int] | None, typer.Option(help="of the log; several for several; quick: 200,000")] = None,
    engines: Annotated[str, typer.Option(help="beside ours, which comes first")] = "duckdb,polars",
    memory_only: Annotated[bool, typer.Option("--memory-only", help="ours alone")] = False,
    trials: Annotated[int, typer.Option(help="of each engine")] = 1,
    threads: Annotated[int, typer.Option(help="of each engine")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="sizes for a minute; bars are not judged")] = False,
    root: Annotated[Path, typer.Option(help="folder that holds what benchmarks write")] = ROOT,
    log_json: Annotated[bool, typer.Option("--log-json", help="JSON lines instead of progress bars")] = False,
) -> None:
    """Prepare generated logs: ours, DuckDB's and Polars's way."""
    sizes = sorted(rows or [QUICK if quick else FULL])
    names = ["ours", *([] if memory_only else [name for name in engines.split(",") if name])]
    settings = {"rows": sizes, "engines": names, "trials": trials, "threads": threads}
    benchmark = Benchmark(NAME, Console(log_json), settings, root, quick, repeat="trial")
    work = (root / NAME).absolute()
    with errors_in_one_line():
        if unknown := set(names) - set(ENGINES):
            raise ValueError(f"no engine {', '.join(unknown)}; there are {', '.join(ENGINES)}")
        for size in sizes:
            log = GeneratedLog(size, work)
            log.write()
            for trial in range(trials):
                for name in names:
                    numbers = measure(name, log, work / name, threads)
                    benchmark.measured({"engine": name, "rows": size, "trial": trial}, numbers)
                    refuse_difference(work / name, work / "ours")
    for size in sizes:
        ours = benchmark.mean("seconds", engine="ours", rows=size)
        if "duckdb" in names:
            theirs = benchmark.mean("seconds", engine="duckdb", rows=size)
            benchmark.at_most(f"seconds of {size:,} rows: ours / DuckDB", ours / theirs, 1.3)
    memory = [benchmark.mean("MB", engine="ours", rows=size) for size in sizes]
    benchmark.at_most(f"MB of ours, {sizes[0]:,} rows", memory[0], 4096)
    if len(sizes) > 1:
        benchmark.at_most(f"MB of ours: {sizes[-1]:,} / {sizes[0]:,} rows", memory[-1] / memory[0], 1.1)
    benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
