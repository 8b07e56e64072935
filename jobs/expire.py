"""Delete what `retention` of the config does not keep.

    allmrec expire --config jobs/configs/demo.yaml --dry-run
    allmrec expire --config jobs/configs/demo.yaml --set retention.runs=14

Plain store operations; a second time there is nothing left to do. A date that another process works on is passed over.
Which embeddings of texts are used is found out by a task of Ray, for their index grows with the items; a dry run does
without.
"""

from collections.abc import Callable, Iterator
from datetime import date
from functools import partial

from allmrec.core.machine_cache import delete_unused, unused_folders
from allmrec.core.pretrained import COPIES
from allmrec.core.storage import Storage
from allmrec.publishing import maintenance
from allmrec.publishing.lease import Lease, RunHeld
from allmrec.publishing.log import published_dates
from allmrec.retention import (
    RetentionConfig,
    delete_bundle,
    delete_checkpoints,
    delete_encoder,
    expired_bundles,
    needed_bundles,
    old_checkpoints,
    unused_encoders,
    unused_texts,
)
from allmrec.text.encoder import encoder_identity
from jobs.config import Config
from jobs.recommendations import hold_date, mirror_of
from jobs.runtime.command import main
from jobs.runtime.console import Console
from jobs.runtime.preflight import ONE_TASK, preflight
from jobs.runtime.ray_data import on_worker

Found = tuple[str, dict[str, Callable[[], None]]]  # kind, and what deletes each thing by its name


def expire(config: Config, console: Console, dry_run: bool = False) -> None:
    """Delete it, kind by kind, or list it.

    Raises:
        ValueError: the config keeps everything.
    """
    if config.retention == RetentionConfig():
        raise ValueError("nothing expires: set retention.runs, retention.bundles or another key of `retention`")
    for kind, found in expired(config, console, dry_run):
        if dry_run:
            console.plan(f"expire {kind}", {"count": len(found), "would_delete": ", ".join(found) or "none"})
            continue
        held = {}
        for name, delete in found.items():
            try:
                delete()
            except RunHeld as error:
                held[name] = str(error)
        deleted = [name for name in found if name not in held]
        console.event("expired", kind=kind, count=len(deleted), deleted=deleted, skipped=held)


def expired(config: Config, console: Console, dry_run: bool = False) -> Iterator[Found]:
    """What the config names, kind by kind; each is looked for when the one before is deleted."""
    workspace, retention = config.workspace, config.retention
    output = workspace.recommendations
    for kind, storage, keep, mirror in (
        ("runs", output, retention.runs, mirror_of(config)),
        ("trials", output.at(maintenance.TRIALS), retention.trials, lambda: None),
    ):
        if keep:
            hold = partial(_held, config, console, storage)
            old = maintenance.expired(storage, keep)
            work = [day for day in published_dates(storage) if day not in old and maintenance.untidy(storage, day)]
            yield kind, {str(day): partial(hold, day, partial(maintenance.expire, mirror=mirror)) for day in old}
            yield f"work of {kind}", {str(day): partial(hold, day, maintenance.tidy) for day in work}
    if retention.bundles:
        needed = needed_bundles(output, retention.runs)
        versions = expired_bundles(workspace, retention.bundles, needed)
        yield "bundles", {version: partial(delete_bundle, workspace, version) for version in versions}
        encoders = unused_encoders(workspace, versions)
        yield "encoders", {digest: partial(delete_encoder, workspace, digest) for digest in encoders}
    if retention.text_cache:
        device = "cuda" if config.workers.gpus_per_worker else "cpu"
        used_by = workspace, encoder_identity(config.text, device)
        if dry_run:
            keys = unused_texts(*used_by)
        else:
            with preflight(ONE_TASK, config, console):
                keys = on_worker(unused_texts, *used_by)
        yield "texts", {key: partial(workspace.text_cache.delete, key) for key in keys}
    if retention.checkpoint_days:
        folders = old_checkpoints(workspace, retention.checkpoint_days)
        yield "checkpoints", {folder: partial(delete_checkpoints, workspace, folder) for folder in folders}
    if retention.model_days:
        copies = unused_folders(COPIES, retention.model_days)
        yield "models", {path.name: partial(delete_unused, path, retention.model_days) for path in copies}


def _held(
    config: Config, console: Console, storage: Storage, day: date, change: Callable[[Storage, date, Lease], None]
) -> None:
    with hold_date(config, console, storage, day) as lease:
        change(storage, day, lease)


if __name__ == "__main__":
    main("expire")
