"""Train the teacher, the CF-RecSys that stays frozen from here on (paper section 3).

    python -m jobs.train_cf --config jobs/configs/demo.yaml

Reads `sequences`, `items` and the validation part of `evaluation_cases`; writes `teacher`. The workers of Ray Train
share every batch; a worker holds at most `teacher.memory_mb` of training sequences, as flat arrays, and its share of
the cases.
"""

from typing import Any

from allmrec.artifacts import read_manifest, seal, unseal
from allmrec.cf.teacher import save_teacher
from allmrec.cf.training import TeacherTraining, ValidationCases, training_parts
from allmrec.distributed import place
from jobs.cli import main
from jobs.step import Context, Facts, Step
from jobs.workers import device, fit, report, resume


def run(context: Context) -> Facts:
    config, storage = context.config, context.artifact("teacher")
    unseal(storage)
    facts = fit(
        context,
        "train-cf",
        loop,
        {
            "config": config.teacher,
            "seed": config.seed,
            "num_items": read_manifest(context.artifact("items")).rows,
            "sequences": context.artifact("sequences"),
            "cases": context.artifact("evaluation_cases"),
            "teacher": storage,
        },
        total=config.teacher.epochs,
    )
    files = facts.pop("files")
    seal(storage, "teacher", context.made_by, files, config=context.resolved("teacher"), facts=facts)
    return facts


def loop(settings: dict[str, Any]) -> Facts:
    """On every worker: train, keep the best epoch; rank 0 writes its weights."""
    config = settings["config"]
    parts = training_parts(settings["sequences"], config.memory_mb)
    cases = ValidationCases.read(settings["cases"], settings["sequences"])
    training = TeacherTraining(config, parts, settings["num_items"], cases, settings["seed"], device())
    state = resume()
    if state is not None:
        training.load_state_dict(state)
    numbers: dict[str, float] = {}
    for numbers in training.rounds():
        report(training.epoch, training.state_dict(), **numbers)
    if place()[0] != 0:
        return {}
    return {
        "files": save_teacher(settings["teacher"], training.best_teacher()),
        "num_items": settings["num_items"],
        "users": training.users,
        "epochs": training.epoch,
        "best_epoch": training.best["epoch"],
        **{name: value for name, value in training.best.items() if name.startswith("valid")},
        "interactions_per_s": numbers.get("interactions_per_s"),
    }


def plan(context: Context) -> Facts:
    config = context.config.teacher
    num_items = read_manifest(context.artifact("items")).rows
    # Weights, gradient, Adam's two moments and the best weights: float32 each.
    model_mb = 5 * 4 * (num_items + 1) * config.dim / 2**20
    return {
        "users": read_manifest(context.artifact("sequences")).rows,
        "items": num_items,
        "model": config.model,
        "epochs": config.epochs,
        "workers": context.config.workers.num_workers,
        "parts": len(training_parts(context.artifact("sequences"), config.memory_mb)),
        "model_mb_per_worker": round(model_mb),
    }


STEP = Step(
    "train-cf",
    sections=("teacher",),
    inputs=("sequences", "items", "evaluation_cases"),
    outputs=("teacher",),
    run=run,
    plan=plan,
)

if __name__ == "__main__":
    main(STEP)
