"""What becomes of a run whose shards are all audited: its report, and its publication."""

import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from allmrec.core.artifacts import read_table
from allmrec.core.commit_log import find_json
from allmrec.core.count_drafts import SummedCounts
from allmrec.core.shard_tasks import Report
from allmrec.core.storage import Storage
from allmrec.core.version import __version__
from allmrec.core.workspace import Workspace
from allmrec.nightly.lists import applied
from allmrec.nightly.report import FOLDER, quality_gates, render, summarise
from allmrec.nightly.samples import sample_key, sample_new_items
from allmrec.nightly.score import NightlyJob
from allmrec.nightly.statistics import ITEMS
from allmrec.publishing.lease import Lease
from allmrec.publishing.log import announce, manifest_key, restore_later
from allmrec.publishing.maintenance import tidy
from allmrec.publishing.run import Run
from allmrec.publishing.suppression import users_page


def write_reports(
    output: Storage, job: NightlyJob, total: Report, counts: SummedCounts, gpus_per_worker: float
) -> tuple[dict[str, Any], str]:
    """Make and write all that tells of a run, on a worker: the report, and where its page is.

    Args:
        total: the sum of what `AuditShards` reported, but for the counts by item.
        counts: those.
    """
    total = replace(total, item_counts=counts.read())
    report = report_of(job, total, gpus_per_worker)
    where = write_report(output, report)
    write_samples(output, job, total)
    return report, where


def report_of(job: NightlyJob, total: Report, gpus_per_worker: float = 0) -> dict[str, Any]:
    """report.json: what the run was made of, its figures and its quality gates.

    Args:
        total: the sum of what `AuditShards` reported.
    """
    last, items = job.previous.manifest if job.previous else None, job.items()
    figures = summarise(
        total,
        items.catalogue,
        items.filter,
        last["rows"] if last else None,
        gpus_per_worker,
        job.config.price_per_gpu_hour,
        items.new_I,
        not_in_bundle(job),
    )
    identity = job.run.identity
    return {
        "run_date": str(job.run.run_date),
        "run_id": job.run.run_id,
        **{name: identity[name] for name in ("bundle", "weight")},
        "code": __version__,
        "llm": job.llm.name,
        "ranker": job.config.ranker,
        "retriever": job.config.retriever,
        "last": last and {name: last[name] for name in ("run_date", "run_id")},
        "sampled_users": len(total.details.get("samples", [])),
        "quality_gates": quality_gates(figures, job.config.quality_gates),
        "lists": applied(job.lists, figures),
        "figures": figures,
    }


def not_in_bundle(job: NightlyJob) -> int:
    """How many items are in the catalogue, available, and not in the bundle: `bundle build` takes them."""
    column = read_table(Workspace(job.storage).items, columns=["available"]).column("available")
    available = pc.fill_null(column, True).to_numpy()
    return int(np.count_nonzero(available & (job.items().index_P[1:] == 0)))


def write_report(output: Storage, report: Mapping[str, Any]) -> str:
    """Put report.json and report.html beside the dates' folders; returns where the page is."""
    target = output.at(f"{FOLDER}/run_date={report['run_date']}")
    target.write("report.json", json.dumps(report, indent=1).encode())
    target.write("report.html", render(report).encode())
    return target.name("report.html")


def write_samples(output: Storage, job: NightlyJob, total: Report) -> None:
    """Put users.html beside the report, which links to it, unless none are to be shown."""
    samples, name = total.details.get("samples", []), users_page(job.run.run_date)
    if not samples:
        output.delete(name)
        return
    key, items, users_I = sample_key(job.seed, job.run.run_date), job.items(), total.item_counts[ITEMS]
    new_I = items.filter.allowed_I & items.new_I
    new_items = sample_new_items(job.config.sampled_users, key, new_I, users_I, items.catalogue)
    previous = job.previous.manifest["run_date"] if job.previous else None
    page = {"run_date": str(job.run.run_date), "run_id": job.run.run_id, "previous": previous}
    output.write(name, render({**page, "users": samples, "new_items": new_items}, "users.html.jinja").encode())


def publish(run: Run, digests: Mapping[int, str], lease: Lease, mirror: Callable[[], None]) -> dict[str, Any]:
    """Publish the run; its log entry. Behind a backfill the run of the later date is made the current one again.

    Args:
        digests: of every shard, as the audit found it.
        mirror: see `maintenance.expire`.
    """
    entry = run.publish(len(digests), digests, lease)
    restore_later(run.storage, entry)
    mirror()
    tidy(run.storage, run.run_date, lease)
    return entry


def published_run(storage: Storage, run_date: datetime.date, mirror: Callable[[], None]) -> dict[str, Any] | None:
    """The manifest of a date's published run, if there is one.

    What comes behind publishing is completed where the run was killed before that.
    """
    manifest = find_json(storage, manifest_key(run_date))
    if manifest is not None:
        restore_later(storage, announce(storage, manifest))
        mirror()
    return manifest
