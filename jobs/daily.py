"""The scheduled job of one date: prepare, embed, refresh the bundle, nightly, expire.

    allmrec daily --config jobs/configs/demo.yaml
    ray job submit -- python -m jobs.daily --config jobs/configs/demo.yaml --date 2026-11-21

Every step is skipped when there is nothing to do, and all of them when the date is published; a date that failed or
was killed is continued by the same command. Nothing is trained: the models stay until another bundle is promoted.
"""

import datetime
from collections.abc import Sequence

from allmrec.core.commit_log import find_json, newest_entry
from allmrec.nightly.results import published_run
from allmrec.publishing.lease import hold
from allmrec.publishing.log import manifest_key
from allmrec.retention import RetentionConfig
from jobs.config import Config
from jobs.expire import expire
from jobs.nightly import nightly
from jobs.pipeline import TRANSFER
from jobs.recommendations import mirror_of
from jobs.runtime.command import main
from jobs.runtime.console import Console
from jobs.runtime.step import execute, load_step

LEASE = "_daily"  # in the workspace, whose tables one process at a time prepares


def daily(
    config: Config, console: Console, run_date: datetime.date, dry_run: bool = False, replace: bool = False
) -> None:
    """Publish a date, from whatever of the log, the catalogue and the config has changed since the last one.

    What was begun for the date from other inputs and never published is replaced: nothing else can come of it.

    Args:
        replace: also if the date is published.

    Raises:
        RunHeld: another process runs `daily` in this workspace.
    """
    if dry_run:
        _publish(config, console, run_date, dry_run, replace)
    else:
        with hold(config.workspace.storage.at(LEASE), config.nightly.lease_s, console.event):
            _publish(config, console, run_date, dry_run, replace)


def _publish(config: Config, console: Console, run_date: datetime.date, dry_run: bool, replace: bool) -> None:
    output = config.workspace.recommendations
    published = (
        find_json(output, manifest_key(run_date)) if dry_run else published_run(output, run_date, mirror_of(config))
    )
    if published and not replace:
        console.skip("daily", f"{run_date} is published already, as run {published['run_id']}")
    else:
        for name in step_names(config):
            execute(load_step(f"jobs.{name}"), config, console, dry_run)
        nightly(config, console, run_date, dry_run, replace=True)
    if config.retention != RetentionConfig():
        expire(config, console, dry_run)


def step_names(config: Config) -> Sequence[str]:
    """What comes before `nightly`. The models in use stay those that were promoted, whatever has been trained since."""
    if config.evaluation.split.kind == "cross-domain":
        return TRANSFER
    return "prepare", "embed", "bundle" if newest_entry(config.workspace.bundles) is None else "bundle:REFRESH"


if __name__ == "__main__":
    main("daily")
