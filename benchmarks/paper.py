"""The tables of the A-LLMRec paper, with the paper's numbers beside ours and the orderings that it claims.

    python -m benchmarks.paper --table 1 --config jobs/configs/real-small.yaml --config jobs/configs/demo.yaml
    python -m benchmarks.paper --table 9 --config jobs/configs/demo.yaml --seeds 0,1,2

    1    all systems of every config: teachers, those of `baselines`, LLM-Only, MLP-LLM, A-LLMRec
    2    the data
    4    the same systems on cold and on warm items
    5    cold users        6   few-shot, 256 and 128 users: prepared and trained under that split
    7    cross-domain: the models of the first config on the catalogue of the second
    8    ablation of Stage-1's losses        9   of Stage-2's inputs        all   training on all items
    10   minutes of training and seconds a batch
    11   A-LLMRec over other teachers

Figures on disk that belong to this config are used. Missing ones are computed first: the config's own by the steps of
`allmrec run` in its workspace, those of other rows in workspaces under --root, on the same prepared tables (in 8, 9 and
all with the same teacher, too). "± se" are standard errors; differences are to the table's A-LLMRec, paired by user,
with the half width of their 95 % interval ("± 95 %"). With several seeds the tables show the mean and the standard
deviation. An ordering that the paper claims holds or is reversed if the interval excludes zero; otherwise it is open.
The models are those that the config names: figures of stand-ins are not comparable with the paper's.
"""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.paper_ablations import ABLATIONS
from benchmarks.paper_layout import TIMES, show, show_rows
from benchmarks.paper_runs import PaperRuns
from benchmarks.paper_tables import Request, ablations, cross_domain, other_teachers, sizes, systems_table
from benchmarks.paper_times import times
from benchmarks.report import ROOT, WIDTH, Benchmark
from jobs.runtime.command import errors_in_one_line
from jobs.runtime.console import Console

NAME = "paper"
MORE = ("swap", "cold", "Hit@1 - untrained")  # columns of the ablations
TABLES = ("1", "2", "4", "5", "6", "7", "8", "9", "all", "10", "11")


def main(
    config: Annotated[list[Path], typer.Option(help="YAML file; each adds a block of columns")],
    table: Annotated[str, typer.Option(help=f"one of {', '.join(TABLES)}")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="path.to.key=value, for every row")] = None,
    systems: Annotated[
        str | None, typer.Option(help="comma-separated rows beside A-LLMRec; default: the table's")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="comma-separated, of training; tables are shared (8, 9, all: the teacher, too)")
    ] = None,
    users: Annotated[int, typer.Option(help="test cases that table 10 times")] = 200,
    root: Annotated[Path, typer.Option(help="folder for results and the rows' runs")] = ROOT,
    log_json: Annotated[bool, typer.Option("--log-json", help="JSON lines instead of progress bars")] = False,
) -> None:
    """Compute the missing figures of a table, and print it beside the paper's."""
    console = Console(log_json)
    settings = {"config": [str(path) for path in config], "systems": systems, "seeds": seeds, "set": overrides}
    benchmark = Benchmark(f"{NAME}-{table}", console, settings, root)
    console.rich.width = max(console.rich.width, WIDTH)
    with errors_in_one_line():
        if table not in TABLES:
            raise ValueError(f"--table {table!r}: there are {', '.join(TABLES)}")
        runs = [PaperRuns(path, overrides or [], root / NAME, console) for path in config]
        names = tuple(name.strip() for name in systems.split(",")) if systems else None
        numbers = tuple(int(seed) for seed in seeds.split(",")) if seeds else None
        make(table, Request(benchmark, runs, names, numbers, users))
        benchmark.write()


def make(table: str, request: Request) -> None:
    benchmark = request.benchmark
    if table == "2":
        sizes(request)
        show_rows(benchmark, table)
        return
    if table == "7":
        cross_domain(request)
    elif table == "10":
        times(request)
        show_rows(benchmark, table, TIMES)
    elif table == "11":
        other_teachers(request)
    elif table in ABLATIONS:
        ablations(request, table)
    else:
        systems_table(request, table)
    show(benchmark, table, MORE if table in ABLATIONS else ())


if __name__ == "__main__":
    typer.run(main)
