"""Score every system on the same held-out items; write evaluation_results, metrics.json and report.html.

    python -m jobs.evaluate --config jobs/configs/demo.yaml

Ray Data deals the shards to workers that hold the bundle and the LLM. They write what came of each case; sums come
back, never cases.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow.compute as pc

from allmrec.artifacts import describe, read_manifest, seal, shard_name, unseal
from allmrec.bundle import check_items, check_llm, latest_bundle, read_description
from allmrec.data.catalogue import UNTITLED, Catalogue
from allmrec.data.sequences import num_shards
from allmrec.evaluation.cases import PROTOCOLS
from allmrec.evaluation.doubts import doubts
from allmrec.evaluation.metrics import summarise
from allmrec.evaluation.report import (
    FIGURES,
    WRITTEN_FIGURES,
    Report,
    baseline_of,
    difference,
    distinct,
    figure,
    full_figures,
    render,
)
from allmrec.evaluation.results import FULL, GENERATION
from allmrec.evaluation.shards import EvaluateShards
from allmrec.evaluation.systems import IN_CATALOGUE, NEED_LLM
from allmrec.models import model_identity
from jobs.cli import main
from jobs.console import Console
from jobs.datasets import pooled, tables
from jobs.step import Context, Facts, Step
from jobs.workers import start_ray


def run(context: Context) -> Facts:
    # Read.
    config = context.config
    version = latest_bundle(context.storage)
    description = read_description(context.storage, version)
    check_llm(description, config.llm)
    check_items(description, context.artifact("items"))

    # Score.
    results = context.artifact("evaluation_results")
    unseal(results)
    started = time.monotonic()
    shards = score(context, version)
    seconds = time.monotonic() - started
    metrics = [{**row, "seed": config.seed} for row in summarise(row for shard in shards for row in shard["sums"])]
    costs = total_costs(cost for shard in shards for cost in shard["costs"])
    if not metrics:
        raise ValueError("no user has a held-out item: three interactions are the least; look at data.min_… thresholds")

    # Write.
    shard_entries = {shard_name(shard["shard"]): shard["entry"] for shard in shards}
    cases = read_manifest(context.artifact("evaluation_cases")).digest
    made_of = {"cases": cases, "bundle": version, "recall_at": config.nightly.num_candidates}
    seal(results, "evaluation_results", context.made_by, shard_entries, context.resolved(*STEP.sections), made_of)
    report = Report(
        name=config.name,
        seed=config.seed,
        chance=1 / (1 + config.evaluation.num_negatives),
        bundle=description,
        data=data_facts(context),
        metrics=metrics,
        costs=costs,
        doubts=doubts(shards, config.evaluation.num_negatives),
    )
    files = {"metrics.json": json.dumps(metrics, indent=1).encode(), "report.html": render(report).encode()}
    target = context.artifact("evaluation")
    unseal(target)
    for name, data in files.items():
        target.write(name, data)
        context.storage.write(name, data)
    scored = sum(cost["cases"] for cost in costs.values())
    facts = {"cases": scored, "cases/s": round(scored / seconds, 1), **speed(costs)}
    entries = {name: describe(data) for name, data in files.items()}
    seal(
        target,
        "evaluation",
        context.made_by,
        entries,
        context.resolved(*STEP.sections),
        {"bundle": version, **facts, "doubts": report.doubts},
    )

    show(context.console, metrics)
    for doubt in report.doubts:
        context.console.event("doubt", why=doubt)
    return {**facts, "report": context.storage.name("report.html")}


def score(context: Context, version: str) -> list[dict[str, Any]]:
    """One row a shard, by shard; see `EvaluateShards`."""
    config, count = context.config, num_shards(context.artifact("evaluation_cases"))
    start_ray(config)
    asked = config.evaluation
    writing = min(1.0, asked.generation_users / max(1, tested_users(context)))
    compared = (asked.systems, config.seed, config.nightly.num_candidates, asked.baseline, writing)
    arguments = (context.storage, version, config.llm, *compared)
    dataset = pooled(range(count), EvaluateShards, arguments, config.workers)
    rows: list[dict[str, Any]] = []
    with context.console.progress("evaluate", count) as bar:
        for table in tables(dataset):
            rows += table.to_pylist()
            bar.advance(table.num_rows)
    return sorted(rows, key=lambda row: row["shard"])


def tested_users(context: Context) -> int:
    return read_manifest(context.artifact("evaluation_cases")).facts["test"]


def total_costs(costs: Any) -> dict[str, Counter[str]]:
    """By system: cases, seconds of work, tokens and what else `EvaluateShards` counts."""
    totals: dict[str, Counter[str]] = {}
    for cost in costs:
        system = cost.pop("system")
        totals.setdefault(system, Counter()).update(cost)
    return totals


def speed(costs: dict[str, Counter[str]]) -> Facts:
    """What the LLM's systems did while ranking in their seconds, of one worker."""
    llm = sum((cost for system, cost in costs.items() if system in NEED_LLM), Counter[str]())
    if not llm["tokens"]:
        return {}
    return {
        "prompts/s of a worker": round(llm["cases"] / llm["seconds"], 1),
        "tokens/s of a worker": round(llm["tokens"] / llm["seconds"]),
        "padding %": round(100 * llm["padding"] / (llm["tokens"] + llm["padding"]), 2),
        "history items dropped": llm["dropped_history"],
        "prompts with cut titles": llm["cut_titles"],
    }


def data_facts(context: Context) -> dict[str, int]:
    """The numbers of paper Table 2, and what preparation left out or had to make up."""
    sizes = read_manifest(context.artifact("sequences")).facts
    titles = Catalogue.read(context.artifact("items")).titles
    return {
        **{name: sizes[name] for name in ("users", "items", "interactions")},
        "evaluated users": tested_users(context),
        "rejected rows": read_manifest(context.artifact("rejected")).rows,
        "items without a title": pc.sum(pc.equal(titles, UNTITLED)).as_py(),
    }


def show(console: Console, metrics: list[dict[str, Any]]) -> None:
    """One row a system: against the negatives, against the baseline, in the whole catalogue, and by what it writes."""
    _show(console, metrics, "held-out item among its negatives", "random", FIGURES)
    if baseline := baseline_of(metrics):
        title = f"difference to {baseline} by user [95 % interval]; swap: to itself without the swap"
        _show(console, metrics, title, "random", FIGURES, difference)
    if figures := full_figures(metrics):
        _show(console, metrics, "held-out item in the whole catalogue", FULL, figures)
    if distinct(metrics, "system", GENERATION):
        _show(console, metrics, "held-out item in what the LLM writes", GENERATION, WRITTEN_FIGURES)


def _show(
    console: Console,
    metrics: list[dict[str, Any]],
    title: str,
    protocol: str,
    figures: dict[str, tuple[str, str, str]],
    cell: Callable[..., str] = figure,
) -> None:
    rows = [
        [system, *[cell(metrics, system, *key) for key in figures.values()]]
        for system in distinct(metrics, "system", protocol)
    ]
    console.table(title, ["system", *figures], rows)


def plan(context: Context) -> Facts:
    cases, settings = tested_users(context), context.config.evaluation
    systems = {*settings.systems}
    return {
        "shards": num_shards(context.artifact("evaluation_cases")),
        "cases": cases * ((len(PROTOCOLS) + 1) * len(systems) + len(IN_CATALOGUE & systems)),
        "systems": ", ".join(settings.systems),
        "answers": min(settings.generation_users, cases) * len(NEED_LLM & systems),
    }


STEP = Step(
    "evaluate",
    sections=("evaluation", "llm"),
    inputs=("bundle", "evaluation_cases", "sequences", "items", "rejected"),
    outputs=("evaluation", "evaluation_results"),
    run=run,
    plan=plan,
    outside=lambda context: [
        model_identity(context.config.llm.name, context.config.llm.revision),
        context.config.nightly.num_candidates,  # N of Recall@N
        latest_bundle(context.storage),
    ],
)

if __name__ == "__main__":
    main(STEP)
