"""What becomes of a run whose shards are all audited: its report, and its publication."""

import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any

from allmrec.bundle.items import renumbering
from allmrec.core.commit_log import find_json
from allmrec.core.shard_tasks import Report
from allmrec.core.storage import Storage
from allmrec.core.version import __version__
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import Catalogue
from allmrec.nightly.lists import applied
from allmrec.nightly.report import FOLDER, quality_gates, render, summarise
from allmrec.nightly.samples import sample_key, sample_new_items
from allmrec.nightly.score import NightlyJob
from allmrec.publishing.lease import Lease
from allmrec.publishing.log import announce, manifest_key, restore_later
from allmrec.publishing.maintenance import tidy
from allmrec.publishing.run import Run
from allmrec.publishing.suppression import users_page


def report_of(job: NightlyJob, total: Report, gpus_per_worker: float = 0) -> dict[str, Any]:
    """report.json: what the run was made of, its figures and its quality gates.

    Args:
        total: the sum of what `AuditShards` reported.
    """
    last = job.previous.manifest if job.previous else None
    figures = summarise(
        total,
        job.catalogue(),
        job.filter,
        last["rows"] if last else None,
        gpus_per_worker,
        job.config.price_per_gpu_hour,
        job.new_I,
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
    items = Catalogue.read(job.storage.at(Workspace.items))
    return int((items.available & (renumbering(job.storage, job.run.identity["bundle"]) == 0)).sum())


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
    key, new_I = sample_key(job.seed, job.run.run_date), job.filter.allowed_I & job.new_I
    items = sample_new_items(job.config.sampled_users, key, new_I, total.sums["items"], job.catalogue())
    previous = job.previous.manifest["run_date"] if job.previous else None
    page = {"run_date": str(job.run.run_date), "run_id": job.run.run_id, "previous": previous}
    output.write(name, render({**page, "users": samples, "new_items": items}, "users.html.jinja").encode())


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
