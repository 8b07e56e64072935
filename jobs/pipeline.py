"""All verbs in order: from a raw log to published recommendations and their metrics.

    allmrec run --config jobs/configs/demo.yaml

Every step skips itself when its inputs and config have not changed.
"""

import datetime

from jobs.config import Config
from jobs.nightly import nightly
from jobs.runtime.command import main
from jobs.runtime.console import Console
from jobs.runtime.step import execute, load_step

TRAINING = ("prepare", "embed", "train_cf", "train_alignment", "train_projection", "bundle")
TRANSFER = ("prepare", "embed", "transfer", "bundle")  # the models are another run's


def run(config: Config, console: Console, date: datetime.date, dry_run: bool = False, force: bool = False) -> None:
    """Prepare, train, score and publish, evaluate."""
    for module in TRANSFER if config.evaluation.split.kind == "cross-domain" else TRAINING:
        execute(load_step(f"jobs.{module}"), config, console, dry_run, force)
    nightly(config, console, date, dry_run)
    execute(load_step("jobs.evaluate"), config, console, dry_run, force)


if __name__ == "__main__":
    main("run")
