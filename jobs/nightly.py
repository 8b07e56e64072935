"""The nightly run: candidates for every user, ranked by the LLM, published as Parquet.

    allmrec nightly --config jobs/configs/demo.yaml --date 2026-11-21
    ray job submit -- python -m jobs.nightly --config jobs/configs/demo.yaml --date 2026-11-21

A shard of users is the unit of work: a run that was killed goes on with the shards that are not committed. Users for
whom nothing has changed since the last run keep its rows.
"""

import datetime
import json
import time
from collections import Counter
from typing import Any

import numpy as np

from allmrec.artifacts import MANIFEST, read_manifest
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import num_shards
from allmrec.llm.prompt import PromptConfig
from allmrec.nightly.estimate import cost_of, last_speed, tokens_of_a_prompt
from allmrec.nightly.inspection import InspectShards, add_up
from allmrec.nightly.lease import Lease, hold_lease
from allmrec.nightly.lists import applied, check_lists
from allmrec.nightly.log import LATEST, roll_back
from allmrec.nightly.progress import diagnosis
from allmrec.nightly.publish import Run
from allmrec.nightly.report import FOLDER, alarms, refuse_alarms, render, summarise
from allmrec.nightly.score import Night, ScoreShards
from allmrec.nightly.upkeep import TRIALS
from allmrec.nightly.users import NightlyUsers
from allmrec.storage import Storage, open_storage
from jobs import deal, fit_blend
from jobs.config import Config
from jobs.console import Console
from jobs.datasets import over, pooled, tables, watched
from jobs.metrics import NightlyMetrics
from jobs.nightly_inputs import check_inputs, item_filter, open_night
from jobs.step import Facts, execute
from jobs.workers import start_ray

INPUTS = ("bundle", "sequences", "items")
_AHEAD = 2  # shards that a worker has in hand: one with the LLM, one before or behind it


def nightly(
    config: Config,
    console: Console,
    run_date: datetime.date,
    dry_run: bool = False,
    full: bool = False,
    limit: int | None = None,
) -> None:
    """Score and publish one date, or say that it is published already.

    Args:
        full: score everyone, also users for whom nothing has changed.
        limit: a trial: about so many users, published below `<output>/_trial`.

    Raises:
        ValueError: an input is missing, another run has the date, it was published from something else, an alarm is
            raised, or the run takes longer than it may.
    """
    # Inputs.
    storage = open_storage(config.run_uri, config.storage)
    missing = [name for name in INPUTS if not storage.exists(f"{name}/{MANIFEST}")]
    if missing and dry_run:
        console.plan("nightly", {"waits for": ", ".join(missing)})
        return
    steps = [table.step for table in deal.TABLES if getattr(config.nightly, table.key)]
    steps += [fit_blend.STEP] if config.nightly.ranker == "blend" else []
    for step in steps:
        execute(step, config, console, dry_run)
    output = open_storage(config.nightly.output or f"{config.run_uri}/recommendations", config.storage)
    output = output if limit is None else output.at(TRIALS)
    if dry_run:
        console.plan("nightly", {"run date": run_date, **plan(config, storage, output, run_date, limit)})
        return

    # Score, look at the result, publish.
    night = open_night(config, storage, output, run_date, full, limit)
    run = night.run
    for count in night.lists:
        console.event("list", **count.facts)
    if run.published():
        console.skip("nightly", f"{run_date} is published already, as run {run.run_id} in {output.uri}")
        return
    with (
        console.phase("nightly") as phase,
        hold_lease(output, run_date, config.nightly.lease_s, lambda message: console.event(message)) as lease,
    ):
        start_ray(config)
        metrics = NightlyMetrics(run_date)
        until = None if config.nightly.deadline_s is None else time.monotonic() + config.nightly.deadline_s
        facts = score(config, console, night, metrics, until)
        lease.check()
        digests, sums, counted = inspect(console, night, until)
        report = report_of(config, night, sums, counted)
        metrics.reported(report["alarms"])
        where = write_report(output, report)
        if not report["figures"]["users"]:
            raise ValueError(f"nobody has a history by the end of {run_date}; look at the date and at nightly.users")
        refuse_alarms(report["alarms"], where)
        entry = publish(run, digests, lease)
        phase.facts({**facts, "run": run.run_id, "log_entry": entry["n"], "published_at": output.uri, "report": where})


def publish(run: Run, digests: dict[int, str], lease: Lease) -> dict[str, Any]:
    """Publish the run; its log entry. Behind a backfill the run of the later date is made the current one again."""
    current = json.loads(run.storage.read(LATEST)) if run.storage.exists(LATEST) else None
    entry = run.publish(len(digests), digests, lease)
    if current and current["run_date"] > str(run.run_date):
        roll_back(run.storage, datetime.date.fromisoformat(current["run_date"]))
    return entry


def score(config: Config, console: Console, night: Night, metrics: NightlyMetrics, until: float | None) -> Facts:
    """Score the shards that are not committed yet, on a pool of workers with an LLM each."""
    shards = range(num_shards(night.users.sequences))
    pending = sorted(set(shards) - night.run.finished_shards())
    totals: Counter[str] = Counter()
    if pending:
        scored = watched(
            tables(pooled(pending, ScoreShards, (night,), config.workers, _AHEAD)),
            until,
            config.nightly.stalled_s,
            lambda: diagnosis(night.run, shards),
        )
        with console.progress("score", len(pending)) as bar:
            for table in scored:
                for row in table.to_pylist():
                    facts = {name: value for name, value in row.items() if name != "shard" and value is not None}
                    totals.update(facts)
                    bar.advance(1, users=totals["users"])
                    metrics.shard_done(facts, bar.done, len(pending))
    return speed(totals) | {"shards": len(shards), "shards_done_before": len(shards) - len(pending)}


def speed(totals: Counter[str]) -> Facts:
    """What a shard's facts add up to, per second of a worker's work."""
    left_out = ("padding", "index_compared", "index_found")
    facts: Facts = {
        name: count
        for name, count in sorted(totals.items())
        if name not in left_out and not name.startswith(("seconds_", "worker_seconds"))
    }
    if totals["worker_seconds"]:
        facts["users/s of a worker"] = round(totals["users"] / totals["worker_seconds"], 1)
    if totals["tokens"]:
        facts["tokens/s of a worker"] = round(totals["tokens"] / totals["seconds_rank"])
        facts["padding %"] = round(100 * totals["padding"] / (totals["tokens"] + totals["padding"]), 2)
    if totals["index_compared"]:
        facts["recall of the index"] = round(totals["index_found"] / totals["index_compared"], 4)
    return facts


def inspect(
    console: Console, night: Night, until: float | None
) -> tuple[dict[int, str], dict[str, np.ndarray], Counter[str]]:
    """Every shard's sha256, once it has passed the audit; statistics and facts of all shards together."""
    shards, digests = num_shards(night.users.sequences), dict[int, str]()
    sums: dict[str, np.ndarray] = {}
    facts: Counter[str] = Counter()
    with console.progress("audit", shards) as bar:
        inspected = tables(over(shards, InspectShards(night)))
        for table in watched(inspected, until, night.config.stalled_s, lambda: f"{shards - bar.done} await the audit"):
            digests |= dict(zip(table.column("shard").to_pylist(), table.column("sha256").to_pylist(), strict=True))
            for text in table.column("facts").to_pylist():
                facts.update(json.loads(text))
            add_up(table, sums)
            bar.advance(table.num_rows)
    return digests, sums, facts


def report_of(config: Config, night: Night, sums: dict[str, np.ndarray], facts: Counter[str]) -> dict[str, Any]:
    """report.json: what the run was made of, its figures and its alarms."""
    last = night.last.manifest if night.last else None
    figures = summarise(
        sums,
        facts,
        Catalogue.read(night.storage.at("items")),
        night.filter,
        last["rows"] if last else None,
        config.workers.gpus_per_worker,
        config.nightly.price_per_gpu_hour,
    )
    identity = night.run.identity
    return {
        "run_date": str(night.run.run_date),
        "run_id": night.run.run_id,
        **{name: identity[name] for name in ("bundle", "weight", "code")},
        "llm": config.llm.name,
        "ranker": config.nightly.ranker,
        "last": last and {name: last[name] for name in ("run_date", "run_id")},
        "alarms": alarms(figures, config.nightly.alarms),
        "lists": applied(night.lists, figures),
        "figures": figures,
    }


def write_report(output: Storage, report: dict[str, Any]) -> str:
    """Put report.json and report.html beside the dates' folders; returns where the page is."""
    target = output.at(f"{FOLDER}/run_date={report['run_date']}")
    target.write("report.json", json.dumps(report, indent=1).encode())
    target.write("report.html", render(report).encode())
    return target.name("report.html")


def plan(config: Config, storage: Storage, output: Storage, run_date: datetime.date, limit: int | None) -> Facts:
    """What a run would do at most: users, prompts, shards, tokens and what those cost."""
    description = check_inputs(config, storage)
    _, lists = item_filter(config, storage)
    check_lists(lists)
    shards = num_shards(storage.at("sequences"))
    asked = config.nightly.users and storage.exists(f"{deal.USERS.artifact}/{MANIFEST}")
    listed = read_manifest(storage.at(deal.USERS.artifact if asked else "sequences")).rows
    count = min(listed, limit or listed)
    known = {count.name: f"{count.known:,} of {count.listed:,} known" for count in lists}
    facts: Facts = {"users": count, "shards": shards, "prompts": 0, "output": output.uri, **known}
    if config.nightly.ranker == "teacher":
        return facts
    prompt = PromptConfig(**description["config"]["prompt"])
    sample = NightlyUsers(storage.at("sequences"), run_date, timezone=config.nightly.timezone).read(0).users
    catalogue = Catalogue.read(storage.at("items"))
    tokens = count * tokens_of_a_prompt(sample, catalogue, config.llm, prompt, config.nightly.num_candidates)
    tokens_per_second = last_speed(output, run_date)
    costs = cost_of(tokens, tokens_per_second, config.workers.gpus_per_worker, config.nightly.price_per_gpu_hour)
    return {**facts, "prompts": count, "tokens": round(tokens), **costs}


if __name__ == "__main__":
    import typer

    from jobs.cli import nightly as command

    typer.run(command)
