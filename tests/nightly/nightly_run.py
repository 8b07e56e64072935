"""Nightly runs of the tiny models in one process: what the job does, without Ray."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from allmrec.core.count_drafts import CountInto, SummedCounts
from allmrec.core.shard_tasks import gather, read_reports
from allmrec.core.storage import Storage, open_storage
from allmrec.nightly.inputs import NightlyInputs
from allmrec.nightly.report import refuse_failed_gates
from allmrec.nightly.results import write_reports
from allmrec.nightly.samples import keep_samples
from allmrec.nightly.score import NightlyJob, ScoreShards
from allmrec.nightly.statistics import AuditShards
from allmrec.publishing.reader import read_recommendations
from jobs.config import Config
from tests.evaluation.tiny import NUM_SHARDS

FIRST, SECOND = date(2026, 11, 20), date(2026, 11, 21)


@dataclass
class Made:
    """A published run."""

    job: NightlyJob
    worker: ScoreShards
    report: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def figures(self) -> dict[str, Any]:
        return self.report["figures"]

    @property
    def by_user(self) -> dict[str, dict[str, Any]]:
        return {row["user_id"]: row for row in self.rows}

    def lists(self) -> dict[str, list[str]]:
        return {row["user_id"]: [item["item_id"] for item in row["items"]] for row in self.rows}


def with_nightly(config: Config, output: Path, **changes: Any) -> Config:
    settings = config.model_dump(mode="json")
    settings["nightly"] |= {"num_candidates": 8, "top_k": 5, "output": str(output), **changes}
    return Config(**settings)


def make(
    config: Config,
    storage: Storage,
    run_date: date = FIRST,
    full: bool = False,
    limit: int | None = None,
    threads: int = 1,
) -> Made:
    """Score, audit, report and publish."""
    output = open_storage(str(config.nightly.output))
    inputs = NightlyInputs(config.workspace, config.nightly, config.llm, config.seed, config.storage)
    job = inputs.prepare_job(output, run_date, inputs.item_sources.summary(), full, limit)
    worker, audit = ScoreShards(job), CountInto(AuditShards(job), job.item_counts)
    shards = [np.array([shard]) for shard in range(NUM_SHARDS)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda shard: list(worker({"id": shard})), shards))
    audited, total = gather(read_reports(table for shard in shards for table in audit({"id": shard})))
    for shard in audited:
        keep_samples(total, shard, config.nightly.sampled_users)
    report, where = write_reports(output, job, total, SummedCounts(job.item_counts, 0, NUM_SHARDS), 0)
    refuse_failed_gates(report["quality_gates"], where)
    job.run.publish(NUM_SHARDS, {report.shard: report.details["sha256"] for report in audited})
    return Made(job, worker, report, read_recommendations(output.uri, run_date).to_pylist())
