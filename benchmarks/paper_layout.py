"""How `benchmarks.paper` prints its measurements: as the paper's tables, and every ordering that the paper claims."""

from statistics import fmean, stdev

from benchmarks.paper_numbers import NAMES, TABLES
from benchmarks.report import Benchmark, Row

HIT = "Hit@1"
ORDERINGS, TIMES = "orderings", "time"  # behind the table's number

Found = dict[tuple[str, str], list[Row]]  # by row and data set: the numbers with each seed


def show(benchmark: Benchmark, table: str, more: tuple[str, ...] = ()) -> None:
    """One row per system: the paper's columns, and a block of columns for each data set."""
    paper, found = TABLES[table], measurements(benchmark, table)
    printed = {NAMES.get(name, name): numbers for name, numbers in paper.numbers.items()}
    names = dict.fromkeys([*(NAMES.get(name, name) for name in paper.rows), *(name for name, _ in found)])
    data = list(dict.fromkeys(data for _, data in found))
    columns = (HIT, f"{HIT} - {NAMES.get(paper.reference, paper.reference)}", "matched", *more)
    shown = [column for column in columns if any(column in row for rows in found.values() for row in rows)]
    blocks = [(one, column) for one in data for column in shown]
    rows = []
    for name in names:
        own = [f"{number:.4f}" for number in printed.get(name, ())] or [""] * len(paper.data)
        rows.append([name, *own, *(cell(found.get((name, one), []), column) for one, column in blocks)])
    heads = [*(f"paper: {one}" for one in paper.data), *(f"{one}: {column}" for one, column in blocks)]
    benchmark.console.table(f"Table {table}", ["row", *heads], rows)
    show_orderings(benchmark, table, data)


def show_orderings(benchmark: Benchmark, table: str, data: list[str]) -> None:
    """The number of the paper's columns in which its own figures agree, and what ours show."""
    rows: dict[str, list[str]] = {}
    for (claim, one), repetitions in measurements(benchmark, table, ORDERINGS).items():
        row = rows.setdefault(claim, [claim, repetitions[0]["in the paper"], *[""] * len(data)])
        verdicts = ", ".join(numbers["here"] for numbers in repetitions)
        row[2 + data.index(one)] = f"{verdicts}: {cell(repetitions, 'difference')}"
    if rows:
        benchmark.console.table("orderings", ["ordering", "in the paper", *data], list(rows.values()))


def show_rows(benchmark: Benchmark, table: str, part: str = "") -> None:
    """Measurements as they are."""
    found = measurements(benchmark, table, part)
    columns = list(dict.fromkeys(column for rows in found.values() for row in rows for column in row))
    cells = [[name, *(row.get(column, "") for column in columns)] for (name, _), rows in found.items() for row in rows]
    benchmark.console.table(name_of(table, part), ["row", *columns], cells)


def name_of(table: str, part: str = "") -> str:
    """The label `table` of measurements."""
    return f"{table}, {part}" if part else table


def measurements(benchmark: Benchmark, table: str, part: str = "") -> Found:
    found: Found = {}
    for labels, numbers in benchmark.measurements:
        if labels["table"] == name_of(table, part):
            found.setdefault((labels["row"], labels["data"]), []).append(numbers)
    return found


def cell(repetitions: list[Row], column: str) -> str:
    """A figure and its error; for several seeds the mean and the standard deviation."""
    values = [row[column] for row in repetitions if column in row]
    if not values:
        return ""
    errors = [error for key, error in repetitions[0].items() if key.startswith("±") and key.endswith(f", {column}")]
    error = stdev(values) if len(values) > 1 else next(iter(errors), None)
    sign = "+" if " - " in column or column == "difference" else ""
    return f"{fmean(values):{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")
