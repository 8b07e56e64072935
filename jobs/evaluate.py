"""Score every system on the same held-out items; write evaluation_results, metrics.json and report.html.

    python -m jobs.evaluate --config jobs/configs/demo.yaml

Ray Data assigns the shards to workers that hold the bundle and the LLM. They write what came of each case; sums come
back, never cases. What is asked of all items, a task finds out.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from allmrec.bundle.description import check_items, check_llm, check_system, read_description
from allmrec.bundle.versions import latest_bundle
from allmrec.core import tracking
from allmrec.core.artifacts import read_manifest, writing
from allmrec.core.pretrained import model_identity
from allmrec.core.shard_tasks import Report as ShardReport
from allmrec.core.shard_tasks import gather
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import count_untitled
from allmrec.data.evaluation_cases import PROTOCOLS, TRAINED_BESIDE
from allmrec.data.sequences import num_shards
from allmrec.evaluation.caveats import caveats
from allmrec.evaluation.report import (
    WRITTEN_FIGURES,
    Report,
    baseline_of,
    difference,
    distinct,
    figure,
    full_figures,
    render,
    sampled_figures,
)
from allmrec.evaluation.results import FULL, GENERATION
from allmrec.evaluation.shards import EvaluateShards
from allmrec.evaluation.systems import IN_CATALOGUE, NEED_LLM
from allmrec.llm.adapter import check_peft
from allmrec.metrics import summarise
from jobs.runtime.cluster import start_ray
from jobs.runtime.command import main
from jobs.runtime.console import Console
from jobs.runtime.preflight import Needs
from jobs.runtime.ray_data import iter_reports, map_actors, on_worker
from jobs.runtime.step import Context, Stats, Step

Costs = dict[tuple[str, bool], Counter[str]]  # by system, and whether it writes its answers


def run(context: Context) -> Stats:
    # Read.
    tracking.check(context.config.mlflow)
    config = context.config
    if not read_manifest(context.workspace.evaluation_cases).stats["test"]:
        raise ValueError("no user has a held-out item: it takes three interactions; check the data.min_… thresholds")
    version = latest_bundle(context.storage)
    description = read_description(context.storage, version)
    check_llm(description, config.llm)
    start_ray(config)
    on_worker(check_items, description, context.workspace.items)
    for system in set(compared(context)) & set(TRAINED_BESIDE):
        check_system(description, system)
    if "tallrec" in compared(context):
        check_peft()

    # Score.
    workspace, resolved = context.workspace, context.resolved(*STEP.sections)
    with writing(workspace.evaluation_results, "evaluation_results", context.fingerprint, resolved) as out:
        started = time.monotonic()
        shards, total = score(context, version)
        seconds = time.monotonic() - started
        sums = summarise(row for shard in shards for row in shard.details["sums"])
        out.add(total.files)
        cases = read_manifest(workspace.evaluation_cases).digest
        out.stats |= {"cases": cases, "bundle": version, "recall_at": config.nightly.num_candidates}

    # Write.
    metrics = [{**row, "seed": config.seed} for row in sums]
    costs = total_costs(cost for shard in shards for cost in shard.details["costs"])
    report = Report(
        name=config.name,
        seed=config.seed,
        chance=1 / (1 + config.evaluation.num_negatives),
        bundle=description,
        data=data_stats(context),
        metrics=metrics,
        costs={_label(*key): cost for key, cost in costs.items()},
        caveats=caveats([total.counts], config.evaluation.num_negatives),
    )
    files = {"metrics.json": json.dumps(metrics, indent=1).encode(), "report.html": render(report).encode()}
    scored = sum(cost["cases"] for cost in costs.values())
    stats = {"cases": scored, "cases/s": round(scored / seconds, 1), **speed(costs)}
    with writing(workspace.evaluation, "evaluation", context.fingerprint, resolved) as out:
        for name, data in files.items():
            out.file(name, data)
            context.storage.write(name, data)
        out.stats |= {"bundle": version, **stats, "caveats": report.caveats}

    record(context, version, metrics, files["report.html"].decode())
    show(context.console, metrics)
    for caveat in report.caveats:
        context.console.event("caveat", text=caveat)
    return {**stats, "report": context.storage.name("report.html")}


def score(context: Context, version: str) -> tuple[list[ShardReport], ShardReport]:
    """The reports of `EvaluateShards` by shard, and their sum."""
    config, count = context.config, num_shards(context.workspace.evaluation_cases)
    evaluation = config.evaluation
    systems = compared(context)
    writing = min(1.0, evaluation.generation_users / max(1, tested_users(context)))
    how = (systems, config.seed, config.nightly.num_candidates, evaluation.baseline, writing, evaluation.shuffle)
    arguments = (context.storage, version, config.llm, *how)
    dataset = map_actors(range(count), EvaluateShards, arguments, config.workers)
    with context.console.progress("evaluate", count) as bar:
        return gather(iter_reports(dataset, bar))


def compared(context: Context) -> tuple[str, ...]:
    """The systems that the config names; without any the built-in ones and those of `baselines`."""
    requested = context.config.evaluation
    own = () if "systems" in requested.model_fields_set else context.config.systems_beside
    return (*requested.systems, *own)


def tested_users(context: Context) -> int:
    return read_manifest(context.workspace.evaluation_cases).stats["test"]


def record(context: Context, version: str, metrics: list[dict[str, Any]], report: str) -> None:
    """Add the figures over all cases, and the report, to MLflow's run of the training of Stage-2."""
    identity = read_manifest(Workspace(context.workspace.bundles.at(version)).projectors).fingerprint
    config, whole = context.config, (row for row in metrics if row["subset"] == "all")
    name, settings = f"{config.name} train-projection", config.model_dump(mode="json")
    run = tracking.tracked_run(config.mlflow, name, identity, settings)
    figures = {f"{row['protocol']}/{row['system']}/{row['metric']}": row["value"] for row in whole}
    run.metrics(figures, prefix="evaluation/")
    run.text("report.html", report)


def total_costs(costs: Iterable[Mapping[str, Any]]) -> Costs:
    """Cases, seconds of work, tokens and what else `EvaluateShards` counts; ranking apart from writing."""
    totals: Costs = {}
    for cost in costs:
        key = cost["system"], cost["protocol"] == GENERATION
        counts = {name: count for name, count in cost.items() if name not in ("system", "protocol")}
        totals.setdefault(key, Counter()).update(counts)
    return totals


def _label(system: str, writes: bool) -> str:
    return f"{system}, writing" if writes else system


def speed(costs: Costs) -> Stats:
    """What the LLM's systems did while ranking in their seconds, of one worker."""
    ranking = [cost for (system, writes), cost in costs.items() if system in NEED_LLM and not writes]
    llm = sum(ranking, Counter[str]())
    if not llm["tokens"]:
        return {}
    return {
        "prompts/s of a worker": round(llm["cases"] / llm["seconds"], 1),
        "tokens/s of a worker": round(llm["tokens"] / llm["seconds"]),
        "padding %": round(100 * llm["padding"] / (llm["tokens"] + llm["padding"]), 2),
        "history items dropped": llm["dropped_history"],
        "prompts with cut titles": llm["cut_titles"],
    }


def data_stats(context: Context) -> dict[str, int]:
    """The numbers of paper Table 2, and what preparation left out or had to make up."""
    sizes = read_manifest(context.workspace.sequences).stats
    return {
        **{name: sizes[name] for name in ("users", "items", "interactions")},
        "evaluated users": tested_users(context),
        "rejected rows": read_manifest(context.workspace.rejected).rows,
        "items without a title": on_worker(count_untitled, context.workspace.items),
    }


def show(console: Console, metrics: list[dict[str, Any]]) -> None:
    """One row a system: against the negatives, against the baseline, in the whole catalogue, and by what it writes."""
    sampled = sampled_figures(metrics)
    _show(console, metrics, "held-out item among its negatives", "random", sampled)
    if baseline := baseline_of(metrics):
        title = f"difference to {baseline} by user [95 % interval]; swap: to itself without the swap"
        title += "; shuffle: to itself with the true order" if "shuffle" in sampled else ""
        sampled = {name: key for name, key in sampled.items() if name != "cosine"}
        _show(console, metrics, title, "random", sampled, difference)
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


def plan(context: Context) -> Stats:
    cases, settings = tested_users(context), context.config.evaluation
    systems = {*compared(context)}
    return {
        "shards": num_shards(context.workspace.evaluation_cases),
        "cases": cases * ((len(PROTOCOLS) + 1 + settings.shuffle) * len(systems) + len(IN_CATALOGUE & systems)),
        "systems": ", ".join(compared(context)),
        "answers": min(settings.generation_users, cases) * len(NEED_LLM & systems),
    }


STEP = Step(
    "evaluate",
    sections=("evaluation", "llm"),
    inputs=("bundle", "evaluation_cases", "sequences", "items", "rejected"),
    outputs=("evaluation", "evaluation_results"),
    run=run,
    plan=plan,
    needs=Needs("pool", models=lambda config: ("llm",) if NEED_LLM & {*config.evaluation.systems} else ()),
    external_inputs=lambda context: [
        model_identity(context.config.llm.name, context.config.llm.revision),
        context.config.nightly.num_candidates,  # N of Recall@N
        latest_bundle(context.storage),
        *([compared(context)] if context.config.systems_beside else []),
    ],
)

if __name__ == "__main__":
    main("evaluate")
