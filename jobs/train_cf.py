"""Train the teacher, the CF-RecSys that stays frozen from here on (paper section 3).

    python -m jobs.train_cf --config jobs/configs/demo.yaml

Reads `sequences`, `items` and the validation part of `evaluation_cases`; writes `teacher`. The workers of Ray Train
share every batch; a worker holds at most `teacher.memory_mb` of training sequences, as flat arrays, and its share of
the cases. A teacher that another system trained (`teacher.model: external`) is brought in instead, by one task.
"""

import json
from typing import Any

from allmrec.cf.external import ImportTeacher, open_tables, table_files
from allmrec.cf.teacher import save_teacher
from allmrec.cf.training import TeacherTraining, ValidationCases, training_parts
from allmrec.core.artifacts import read_manifest, read_table, writing
from allmrec.core.distributed import rank_and_world_size
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import drawable_items
from allmrec.data.trained_items import write_trained_items
from jobs.runtime.cluster import start_ray
from jobs.runtime.command import main
from jobs.runtime.preflight import Needs
from jobs.runtime.ray_data import iter_results, map_tasks
from jobs.runtime.ray_train import device, fit, run_epochs
from jobs.runtime.step import Context, Stats, Step


def run(context: Context) -> Stats:
    return bring_in(context) if context.config.teacher.model == "external" else train(context)


def train(context: Context) -> Stats:
    config, workspace = context.config, context.workspace
    settings = {
        "config": config.teacher,
        "seed": config.seed,
        "items": workspace.items,
        "sequences": workspace.sequences,
        "cases": workspace.evaluation_cases,
        "teacher": workspace.teacher,
    }
    with writing(workspace.teacher, Workspace.teacher, context.fingerprint, context.resolved("teacher")) as out:
        out.stats |= fit(context, "train-cf", loop, settings, total=config.teacher.epochs)
        out.add(out.stats.pop("files"))
        write_trained_items(out, read_table(workspace.items))
    return out.stats


def bring_in(context: Context) -> Stats:
    """Another system's vectors. An existing teacher stays until they prove good."""
    config, workspace = context.config, context.workspace
    item_embeddings, user_representations = open_tables(config.teacher, config.storage)
    bring = ImportTeacher(
        item_embeddings,
        user_representations,
        sequences=workspace.sequences,
        items=workspace.items,
        cases=workspace.evaluation_cases,
        teacher=workspace.teacher,
        config=config.teacher,
        seed=config.seed,
        fingerprint=context.fingerprint,
        resolved=context.resolved("teacher"),
    )
    start_ray(config)
    (table,) = iter_results(map_tasks(1, bring))
    stats: Stats = json.loads(table.column("report")[0].as_py())
    return stats


def loop(settings: dict[str, Any]) -> Stats:
    """On every worker: train, keep the best epoch; rank 0 writes its weights."""
    config = settings["config"]
    parts = training_parts(settings["sequences"], config.memory_mb)
    cases = ValidationCases.read(settings["cases"], settings["sequences"], config.validation_users, settings["seed"])
    items = read_table(settings["items"])
    drawable = drawable_items(items)
    training = TeacherTraining(config, parts, len(items), cases, settings["seed"], device(), drawable)
    run_epochs(training)
    if rank_and_world_size()[0] != 0:
        return {}
    return {
        "files": save_teacher(settings["teacher"], training.best_teacher()),
        "num_items": len(items),
        "users": training.users,
        "epochs": training.epoch,
        "best_epoch": training.best["epoch"],
        **{name: value for name, value in training.best.items() if name.startswith("valid")},
        "interactions_per_s": round(training.positions / training.seconds) if training.seconds else None,
    }


def plan(context: Context) -> Stats:
    config = context.config.teacher
    num_items = read_manifest(context.workspace.items).rows
    if config.model == "external":
        sources = open_tables(config, context.config.storage)
        return {
            "users": read_manifest(context.workspace.sequences).rows,
            "items": num_items,
            "model": config.model,
            **{f"{source.name} rows": source.rows for source in sources},
        }
    # Weights, gradient, Adam's two moments and the best weights: float32 each.
    model_mb = 5 * 4 * (num_items + 1) * config.dim / 2**20
    return {
        "users": read_manifest(context.workspace.sequences).rows,
        "items": num_items,
        "model": config.model,
        "epochs": config.epochs,
        "workers": context.config.workers.num_workers,
        "parts": len(training_parts(context.workspace.sequences, config.memory_mb)),
        "model_mb_per_worker": round(model_mb),
    }


def input_files(context: Context) -> Any:
    """What an external teacher is made of: path, size and time of change of its tables' files."""
    config = context.config
    if config.teacher.model != "external":
        return None
    files = table_files(config.teacher, config.storage)
    return {name: [vars(file) for file in found] for name, found in files.items()}


STEP = Step(
    "train-cf",
    sections=("teacher",),
    inputs=(Workspace.sequences, Workspace.items, Workspace.evaluation_cases),
    outputs=(Workspace.teacher,),
    run=run,
    plan=plan,
    external_inputs=input_files,
    needs=Needs("training"),
)

if __name__ == "__main__":
    main("train-cf")
