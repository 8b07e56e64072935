"""The nightly run: candidates for every user, ranked by the LLM, published as Parquet.

    allmrec nightly --config jobs/configs/demo.yaml --date 2026-11-21
    allmrec nightly --config jobs/configs/demo.yaml --from 2026-11-01 --to 2026-11-20
    ray job submit -- python -m jobs.nightly --config jobs/configs/demo.yaml --date 2026-11-21

A shard of users is the unit of work: a run that was killed resumes with the shards that are not committed. Users whose
inputs have not changed since the previous run keep its rows. What a run is made of and what results is
`allmrec.nightly`; here are its steps, and Ray.
"""

import datetime
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache

from allmrec.core.commit_log import find_json
from allmrec.core.count_drafts import CountInto
from allmrec.core.shard_tasks import Attempt, Report, read_reports
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.data.sequences import num_shards
from allmrec.nightly.counters import shown_stats
from allmrec.nightly.estimate import estimate
from allmrec.nightly.failures import Failures
from allmrec.nightly.inputs import NightlyInputs
from allmrec.nightly.progress import diagnosis
from allmrec.nightly.report import failed_advice, refuse_failed_gates
from allmrec.nightly.results import publish, published_run, write_reports
from allmrec.nightly.samples import keep_samples
from allmrec.nightly.score import NightlyJob, ScoreShards
from allmrec.nightly.statistics import AuditShards
from allmrec.nightly.status import recording_status
from allmrec.publishing.iceberg import check
from allmrec.publishing.lease import hold_lease
from allmrec.publishing.log import manifest_key
from allmrec.publishing.maintenance import TRIALS
from jobs import fit_blend, user_tables
from jobs.config import Config
from jobs.item_counts import add_up
from jobs.recommendations import mirror_of
from jobs.runtime.cluster import start_ray
from jobs.runtime.command import main
from jobs.runtime.console import Console
from jobs.runtime.preflight import Needs
from jobs.runtime.prometheus import NightlyMetrics
from jobs.runtime.ray_data import iter_results, map_actors, map_tasks, on_worker, with_timeout
from jobs.runtime.step import Context, Stats, Step, execute

_AHEAD = 2  # shards that a worker has in hand: one with the LLM, one before or behind it


def nightly(
    config: Config,
    console: Console,
    run_date: datetime.date,
    dry_run: bool = False,
    full: bool = False,
    limit: int | None = None,
    replace: bool = False,
) -> None:
    """Score and publish one date, unless it is published already.

    Args:
        full: score everyone, also users whose inputs have not changed.
        limit: a trial: about this number of users, published below `<output>/_trial`.
        replace: also if the date has a run of other inputs, begun or published.

    Raises:
        ValueError: an input is missing, another run has the date, it was published from something else, a quality gate
            fails, or the run takes longer than it may.
    """
    for step in steps(config, run_date, full, limit, replace):
        execute(step, config, console, dry_run)


def backfill(
    config: Config,
    console: Console,
    first: datetime.date,
    last: datetime.date,
    dry_run: bool = False,
    full: bool = False,
    limit: int | None = None,
    replace: bool = False,
) -> None:
    """`nightly` for each date from the first to the last that is not published; for each with `replace`.

    One after another: a date reuses rows of the one before it, and all workers score one date.
    """
    if first > last:
        raise ValueError(f"--from {first} is after --to {last}; give the earlier date first")
    for days in range((last - first).days + 1):
        run_date = first + datetime.timedelta(days)
        published = find_json(output_of(config, limit), manifest_key(run_date))
        if published and not replace:
            console.skip("nightly", f"{run_date} is published already, as run {published['run_id']}")
        else:
            nightly(config, console, run_date, dry_run, full, limit, replace)


def steps(
    config: Config, run_date: datetime.date, full: bool = False, limit: int | None = None, replace: bool = False
) -> list[Step]:
    """The run of a date, behind what it needs beside the bundle: tables by user and the weight of the blend."""
    before = user_tables.steps(config)
    before += [fit_blend.STEP] if config.nightly.is_blend else []
    names = [name for step in before for name in step.outputs]
    return [*before, nightly_step(config, run_date, full, limit, replace, names)]


def output_of(config: Config, limit: int | None) -> Storage:
    """Where a run publishes: a trial beside the others."""
    output = config.workspace.recommendations
    return output if limit is None else output.at(TRIALS)


def nightly_step(
    config: Config, run_date: datetime.date, full: bool, limit: int | None, replace: bool, made_before: list[str]
) -> Step:
    workspace, output = config.workspace, output_of(config, limit)
    inputs = NightlyInputs(workspace, config.nightly, config.llm, config.seed, config.storage)
    mirror = mirror_of(config) if limit is None else lambda: None

    @cache
    def job(console: Console) -> NightlyJob:
        start_ray(config)
        items = on_worker(inputs.item_sources.summary)
        if not replace:
            return inputs.prepare_job(output, run_date, items, full, limit)
        with hold_lease(output, run_date, config.nightly.lease_s, console.event) as lease:
            published_run(output, run_date, mirror)  # so that it is in the log, too
            return inputs.prepare_job(output, run_date, items, full, limit, lease)

    def finished(context: Context) -> str | None:
        """Begins no run and asks for no worker: that is for after the preflight."""
        manifest = find_json(output, manifest_key(run_date))
        if manifest is None:
            return None
        run = inputs.run(output, run_date, inputs.item_sources.summary(), limit)
        if manifest["run_id"] != run.run_id:
            if replace:
                return None
            raise run.is_another(manifest, manifest_key(run_date))
        published_run(output, run_date, mirror)
        return f"{run_date} is published already, as run {run.run_id} in {output.uri}"

    def plan(context: Context) -> Stats:
        published = find_json(output, manifest_key(run_date)) is not None
        costs = estimate(inputs, output, run_date, limit, config.workers.gpus_per_worker)
        return {"up to date": published, "run date": run_date, **costs}

    return Step(
        "nightly",
        sections=("nightly", "llm"),
        inputs=("bundle", "sequences", "items"),
        outputs=(Workspace.recommendations,),
        run=lambda context: run(context, job(context.console), output, mirror),
        plan=plan,
        late_inputs=tuple(made_before),
        needs=Needs(
            "pool",
            models=lambda config: ("llm",) if config.nightly.uses_llm else (),
            writes=lambda config: (output,),
            cuts_llm=True,
        ),
        finished=finished,
    )


def run(context: Context, job: NightlyJob, output: Storage, mirror: Callable[[], None]) -> Stats:
    """Score, audit the result, publish."""
    config, console, run_date = context.config, context.console, job.run.run_date
    for count in job.lists:
        console.event("list", **count.stats)
    check(config.nightly.iceberg, config.storage)  # before anything is scored
    with (
        hold_lease(output, run_date, config.nightly.lease_s, lambda message: console.event(message)) as lease,
        recording_status(output, run_date, job.run.run_id) as status,
    ):
        metrics = NightlyMetrics(run_date)
        until = None if config.nightly.timeout_s is None else time.monotonic() + config.nightly.timeout_s
        stats = score(config, console, job, metrics, until)
        lease.check()
        digests, total = audit(console, job, until)
        counts = add_up(console, job.item_counts, len(digests))
        report, where = on_worker(write_reports, output, job, total, counts, config.workers.gpus_per_worker)
        status.reported(report)
        if not report["figures"]["users"]:
            raise ValueError(f"no user has a history by the end of {run_date}; check the date and nightly.users")
        refuse_failed_gates(report["quality_gates"], where)
        for gate in failed_advice(report["quality_gates"]):
            bound = {f"nightly.quality_gates.{gate['name']}": gate["bound"]}
            console.event("time to train again", **{gate["figure"]: gate["value"], **bound})
        entry = publish(job.run, digests, lease, mirror)
    return {**stats, "run": job.run.run_id, "log_entry": entry["n"], "output": output.uri, "report": where}


def score(config: Config, console: Console, job: NightlyJob, metrics: NightlyMetrics, until: float | None) -> Stats:
    """Score the shards that are not committed yet, on a pool of workers with an LLM each; those that fail once more."""
    shards = range(num_shards(job.users.sequences))
    pending = left = sorted(set(shards) - job.run.finished_shards())
    total, failures = Report(), Failures(config.workers.max_failures)
    arguments = (ScoreShards, job, max(1, int(config.workers.gpus_per_worker)))
    with console.progress("score", len(pending)) as bar:
        while left:
            scored = iter_results(map_actors(left, Attempt, arguments, config.workers, _AHEAD))
            in_time = with_timeout(scored, until, config.nightly.stall_timeout_s, lambda: diagnosis(job.run, shards))
            for report in read_reports(in_time):
                if (failure := failures.take(report)) is not None:
                    console.event("a shard failed, and is tried again", shard=report.shard, **asdict(failure))
                    continue
                total.add(report)
                bar.advance(1, users=total.counts["users"])
                metrics.shard_done(report, bar.done, len(pending))
            left = failures.to_retry()
    return shown_stats(total) | {"shards": len(shards), "shards_done_before": len(shards) - len(pending)}


def audit(console: Console, job: NightlyJob, until: float | None) -> tuple[dict[int, str], Report]:
    """Every shard's sha256, once it has passed the audit; what all shards counted, with their statistics."""
    shards, digests, total = num_shards(job.users.sequences), dict[int, str](), Report()
    with console.progress("audit", shards) as bar:
        audited = iter_results(map_tasks(shards, CountInto(AuditShards(job), job.item_counts)))
        stall_timeout_s = job.config.stall_timeout_s
        in_time = with_timeout(audited, until, stall_timeout_s, lambda: f"{shards - bar.done} await the audit")
        for report in read_reports(in_time):
            digests[report.shard] = report.details["sha256"]
            total.add(report)
            keep_samples(total, report, job.config.sampled_users)
            bar.advance()
    return digests, total


if __name__ == "__main__":
    main("nightly")
