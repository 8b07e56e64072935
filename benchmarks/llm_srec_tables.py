"""What `benchmarks.llm_srec` reads off its runs, table by table, with the paper's numbers beside ours."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import ray
import torch

from allmrec.bundle.loading import load_bundle
from allmrec.bundle.versions import latest_bundle
from allmrec.core.artifacts import read_manifest
from allmrec.core.workspace import Workspace
from allmrec.evaluation.results import compare
from allmrec.evaluation.systems import Systems
from allmrec.model import ALLMRec
from benchmarks.clock import now
from benchmarks.comparison import beside, difference, rows_by_key, systems_of
from benchmarks.llm_srec_paper import (
    ABLATION,
    COSINE,
    MAIN,
    MINUTES,
    NDCG,
    ORDER,
    TRAINED_SHUFFLED,
    TRAINED_SHUFFLED_HITS,
)
from benchmarks.llm_srec_runs import ALLMREC, SYSTEM, TEACHER, Runs, rows_of
from benchmarks.nightly import stored_cases
from benchmarks.process_group import group_of_one
from benchmarks.readout_rates import ReadoutSteps
from benchmarks.report import Benchmark, Row

# The column: protocol, subset and metric.
FIGURES = {
    "NDCG@10": ("random", "all", "ndcg@10"),
    "Hit@1": ("random", "all", "hit@1"),
    "cold NDCG@10": ("random", "cold", "ndcg@10"),
    "matched Hit@1": ("matched", "all", "hit@1"),
    "swap Hit@1": ("swap", "all", "hit@1"),
    "full NDCG@10": ("full", "all", "ndcg@10"),
}


def main_table(benchmark: Benchmark, runs: Runs, seeds: list[int]) -> None:
    """Table 6."""
    finished = runs.finished()
    for system in systems_of(finished):
        paper = beside("NDCG@10", NDCG.get(system), MAIN)
        benchmark.measured({"table": "6", "row": system, "seed": runs.base.seed}, figures(finished, system) | paper)
    learning_curve(benchmark, "6", SYSTEM, finished, runs.base.seed)
    for seed in seeds:
        if seed != runs.base.seed:
            workspace = runs.row([f"seed={seed}"])
            paper = beside("NDCG@10", NDCG[SYSTEM], MAIN)
            benchmark.measured({"table": "6", "row": SYSTEM, "seed": seed}, figures(workspace, SYSTEM) | paper)
            learning_curve(benchmark, "6", SYSTEM, workspace, seed)
    rows = {"table": "6", "row": SYSTEM}
    ours, teachers = benchmark.mean("NDCG@10", **rows), benchmark.mean("NDCG@10", table="6", row=TEACHER)
    benchmark.at_least("NDCG@10: LLM-SRec / its teacher", ours / teachers, 0.95)


def changed_rows(benchmark: Benchmark, runs: Runs, table: str, seeds: list[int]) -> None:
    """Table 8, or the choices: each row beside the first."""
    runs.finished()
    for seed in seeds:
        first = None
        for name, changes in rows_of(table, runs.config).items():
            workspace = runs.row([f"seed={seed}", *changes])
            first = first or workspace
            numbers = figures(workspace, SYSTEM)
            if workspace != first:
                rows = compare(workspace.evaluation_results, SYSTEM, first.evaluation_results, SYSTEM)
                numbers |= differences(rows, "NDCG@10 - first")
            paper = beside("NDCG@10", ABLATION.get(name) if table == "8" else None, MAIN)
            benchmark.measured({"table": table, "row": name, "seed": seed}, numbers | paper)
            learning_curve(benchmark, table, name, workspace, seed)


def order(benchmark: Benchmark, runs: Runs) -> None:
    """Tables 3 to 5, and what shuffling takes from a system that was trained on true histories."""
    systems = [name for name in (TEACHER, ALLMREC, SYSTEM) if name in systems_of(runs.finished())]
    true, shuffled = runs.shown_shuffled(systems), runs.trained_shuffled(systems)
    for system in systems:
        rows = compare(shuffled.evaluation_results, system, true.evaluation_results, system)
        before, after = (figures(workspace, system) for workspace in (true, shuffled))
        numbers = {
            f"{name}{what}": value
            for name in ("NDCG@10", "Hit@1")
            for what, value in (
                ("", before[name]),
                (", trained on shuffled", after[name]),
                (", change %", 100 * (after[name] / before[name] - 1)),
            )
        }
        numbers |= differences(rows, "NDCG@10, change")
        shown = rows_by_key(true)
        for name, metric in (("NDCG@10, shown shuffled", "ndcg@10"), ("cosine", "cosine")):
            row = shown.get((system, "shuffle", "all", metric))
            numbers |= {name: row["value"], f"± se, {name}": row["stderr"]} if row else {}
        hits = tuple(100 * (b / a - 1) for a, b in TRAINED_SHUFFLED_HITS.get(system, ()))
        paper = beside("NDCG@10, change %", TRAINED_SHUFFLED.get(system), ORDER)
        paper |= beside("Hit@1, change %", hits, ORDER) | beside("cosine", COSINE.get(system), MAIN)
        benchmark.measured({"table": "3-5", "row": system, "seed": runs.base.seed}, numbers | paper)


def times(benchmark: Benchmark, runs: Runs, users: int, steps: int) -> None:
    """Table 9."""
    finished = runs.finished()
    ray.shutdown()
    cases = stored_cases(Path(runs.base.workspace_uri), users)
    model = ALLMRec(load_bundle(finished.storage, latest_bundle(finished.storage)), runs.base.llm)
    systems = Systems(model, runs.base.seed)
    for system, artifact, unit in ((ALLMREC, Workspace.projectors, "prompts"), (SYSTEM, Workspace.llm_srec, "users")):
        stats = read_manifest(finished.at(artifact)).stats
        systems.score(system, cases.take(np.arange(min(2, len(cases)))))
        started = now()
        systems.score(system, cases)
        numbers = {
            "minutes an epoch": stats[unit] / stats[f"{unit}_per_s"] / 60,
            "users/s, ranked": len(cases) / (now() - started),
        }
        epoch, inference = MINUTES[system]
        paper = {"paper's minutes an epoch, Scientific": epoch, "paper's minutes of inference, Scientific": inference}
        benchmark.measured({"table": "9", "row": system, "seed": runs.base.seed}, numbers | paper)
    with TemporaryDirectory() as folder, group_of_one(folder):
        sides = ReadoutSteps(Path(runs.base.workspace_uri), runs.base.llm, runs.base.prompt, runs.config)
        compare_steps(benchmark, sides, steps)


def compare_steps(benchmark: Benchmark, sides: ReadoutSteps, steps: int) -> None:
    """Training steps and the layers alone on their tokens, in turns."""
    torch.set_flush_denormal(True)  # as the job does
    seconds = {"training step": 0.0, "layers alone": 0.0}
    for number in range(-1, steps):  # the first is a warm-up
        for name, run in (("training step", sides.step), ("layers alone", sides.layers)):
            started = now()
            run(number % sides.training.steps_per_epoch)
            seconds[name] += (now() - started) * (number >= 0)
    torch.set_flush_denormal(False)
    for name, spent in seconds.items():
        numbers = {"users/s": steps * sides.config.batch_size / spent}
        benchmark.measured({"table": "9", "row": f"LLM-SRec, {name}", "seed": ""}, numbers)
    rate = seconds["layers alone"] / seconds["training step"]
    benchmark.at_least("users/s: LLM-SRec's training step / the LLM's layers alone", rate, 0.95)


def figures(workspace: Workspace, system: str) -> Row:
    """Of one system of an evaluated run, with standard errors and the difference to the teacher."""
    rows, results = rows_by_key(workspace), workspace.evaluation_results
    found: Row = {}
    for name, key in FIGURES.items():
        row = rows.get((system, *key))
        if row is not None:
            found |= {name: row["value"]} | ({f"± se, {name}": row["stderr"]} if name in ("NDCG@10", "Hit@1") else {})
    if system == TEACHER:
        return found
    return found | differences(compare(results, system, results, TEACHER), "NDCG@10 - teacher")


def differences(rows: list[Row], name: str) -> Row:
    """Of NDCG@10 over all users, and the half width of its 95 % interval."""
    return difference(rows, FIGURES["NDCG@10"], name)


def learning_curve(benchmark: Benchmark, table: str, row: str, workspace: Workspace, seed: int) -> None:
    """What validation found, after how many users."""
    for point in read_manifest(workspace.llm_srec).stats["curve"]:
        labels = {"table": f"{table}, learning curve", "row": row, "users": point["users"], "seed": seed}
        numbers = {name: point[key] for name, key in (("NDCG@10", "ndcg@10"), ("Hit@1", "hit@1"))}
        benchmark.measured(labels, numbers)
