"""The tables of the LLM-SRec paper that can be run, with the paper's numbers beside ours.

    python -m benchmarks.llm_srec --config jobs/configs/real-small.yaml --tables 6,8 --seeds 0,1,2
    python -m benchmarks.llm_srec --config jobs/configs/real-small.yaml --tables 3-5,9

    6        main: every system of the config on the test cases
    8        ablation of the losses; the rows drop them from those that the config has
    choices  what the default has beside the paper's preset, each switched back alone, and that preset
    3-5      order: training on shuffled histories, shuffled histories of a trained system, cosines of users' vectors
    9        time: an epoch's minutes, users/s ranked among a case's candidates, and a training step beside the LLM's
             layers alone on its tokens, forward and back

Needs a config that names `baselines: {llm_srec: ...}`; what its workspace lacks up to the evaluation is made first. A
row of the tables 6 (more seeds), 8 and choices trains LLM-SRec alone, in a workspace of its own over the same tables,
teacher and projectors. Table 3-5 prepares and trains everything again, on shuffled histories. Rows that were made
before are not made again. "± se" are standard errors; differences are paired by user, with the half width of their 95 %
interval ("± 95 %"). What validation found while LLM-SRec was trained is printed as its learning curve.
"""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.llm_srec_runs import Runs, small_config
from benchmarks.llm_srec_tables import changed_rows, main_table, order, times
from benchmarks.report import ROOT, Benchmark, Row
from jobs.runtime.command import errors_in_one_line
from jobs.runtime.console import Console

NAME = "llm_srec"
TABLES = ("6", "8", "choices", "3-5", "9")
FULL: Row = {"tables": "6,8,3-5,9", "users": 200, "steps": 20}
QUICK: Row = {"tables": "6,9", "users": 12, "steps": 3}


def main(
    config: Annotated[Path | None, typer.Option(help="YAML file; default: a small generated shop's")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="path.to.key=value, for every row")] = None,
    tables: Annotated[str | None, typer.Option(help=f"by commas, of {', '.join(TABLES)}; default: 6,8,3-5,9")] = None,
    seeds: Annotated[str, typer.Option(help="by commas: of LLM-SRec's training; tables and teacher stay")] = "0",
    users: Annotated[int | None, typer.Option(help="test cases of table 9; default: 200; quick: 12")] = None,
    steps: Annotated[int | None, typer.Option(help="training steps of table 9; default: 20; quick: 3")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="tables 6 and 9 in minutes; bars are not judged")] = False,
    root: Annotated[Path, typer.Option(help="where results and the rows' runs go")] = ROOT,
    log_json: Annotated[bool, typer.Option("--log-json", help="JSON lines instead of progress bars")] = False,
) -> None:
    """Train and evaluate the rows of the LLM-SRec paper's tables."""
    console = Console(log_json)
    given = {"tables": tables, "users": users, "steps": steps}
    plan = (QUICK if quick else FULL) | {name: value for name, value in given.items() if value is not None}
    benchmark = Benchmark(NAME, console, {"config": config, "seeds": seeds, **plan}, root, quick)
    with errors_in_one_line():
        requested = [name.strip() for name in plan["tables"].split(",")]
        if unknown := set(requested) - set(TABLES):
            raise ValueError(f"--tables {', '.join(sorted(unknown))}: there are {', '.join(TABLES)}")
        if config is None and not quick:
            raise ValueError("name a --config, such as jobs/configs/real-small.yaml, or try --quick")
        own = root / NAME
        own.mkdir(parents=True, exist_ok=True)
        runs = Runs(config or small_config(own, console), overrides or [], own, console)
        numbers = [int(seed) for seed in seeds.split(",")]
        for table in requested:
            if table == "6":
                main_table(benchmark, runs, numbers)
            elif table == "9":
                times(benchmark, runs, plan["users"], plan["steps"])
            elif table == "3-5":
                order(benchmark, runs)
            else:
                changed_rows(benchmark, runs, table, numbers)
    benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
