"""All verbs in order: from a raw log to published recommendations and their metrics.

    allmrec run --config jobs/configs/demo.yaml

The order is that of the steps' inputs and outputs. Every step skips itself when its inputs and config have not changed.
"""

import datetime
from collections.abc import Sequence

from jobs import baselines, nightly
from jobs.config import Config
from jobs.runtime.command import main
from jobs.runtime.console import Console
from jobs.runtime.preflight import refuse
from jobs.runtime.step import Step, execute, load_step

TRAINING = ("prepare", "embed", "train_cf", "train_alignment", "train_projection", "bundle")
TRANSFER = ("prepare", "embed", "transfer", "bundle")  # the models are another workspace's


def run(config: Config, console: Console, date: datetime.date, dry_run: bool = False, force: bool = False) -> None:
    """Prepare, train, score and publish, evaluate."""
    steps = ordered(steps_of(config, date))
    if dry_run:
        rows = [[step.verb, ", ".join(reads(step)) or "the log", ", ".join(step.outputs)] for step in steps]
        console.table("order (inputs → outputs)", ["step", "inputs", "outputs"], rows)
    for step in steps:
        refuse(step.needs, config)  # before the first one spends hours
    for step in steps:
        execute(step, config, console, dry_run, force)


def steps_of(config: Config, date: datetime.date) -> list[Step]:
    """The steps of a run, in any order."""
    steps = (*model_steps(config), *nightly.steps(config, date), load_step("jobs.evaluate"))
    return [step.under(config) for step in steps]


def model_steps(config: Config) -> list[Step]:
    """Those up to the bundle, of a run that trains, or that takes the models of another workspace; in any order."""
    verbs = TRANSFER if config.evaluation.split.kind == "cross-domain" else TRAINING
    modules = [load_step(f"jobs.{verb}") for verb in verbs]
    if config.systems_beside and verbs == TRAINING:
        modules += baselines.steps(config)
    return modules


def ordered(steps: Sequence[Step]) -> list[Step]:
    """The steps, each behind those whose outputs it reads; of several that could be next the first.

    What no step writes exists before the run.

    Raises:
        ValueError: steps wait for each other.
    """
    waiting, done = list(steps), list[Step]()
    while waiting:
        unwritten = {name for step in waiting for name in step.outputs}
        ready = next((step for step in waiting if unwritten.isdisjoint(reads(step))), None)
        if ready is None:
            raise ValueError(f"these steps wait for each other: {', '.join(step.verb for step in waiting)}")
        waiting.remove(ready)
        done.append(ready)
    return done


def reads(step: Step) -> tuple[str, ...]:
    return (*step.inputs, *step.late_inputs)


if __name__ == "__main__":
    main("run")
