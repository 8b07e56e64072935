"""Train the teacher, the CF-RecSys that stays frozen from here on (paper section 3).

    python -m jobs.train_cf --config jobs/configs/demo.yaml

Reads `sequences`, `items` and the validation part of `evaluation_cases`, with `teacher.items: text` (MoRec) also
`item_text_embeddings`; writes `teacher`. The workers of Ray Train share every batch; a worker holds at most
`teacher.memory_mb` of training sequences, as flat arrays, and its share of the cases. With `teacher.pretraining` (CTRL)
it also holds the text embeddings of its share of the users until the first stage ends. A teacher that another system
trained (`teacher.model: external`) is brought in instead, by one task.
"""

from typing import Any, Literal

from allmrec.cf.external import ImportTeacher, open_tables, table_files
from allmrec.cf.history_texts import HistoryTexts
from allmrec.cf.teacher import TeacherConfig, save_teacher
from allmrec.cf.training import TeacherTraining, ValidationCases
from allmrec.core.artifacts import read_manifest, writing
from allmrec.core.distributed import rank_and_world_size
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import is_untitled, read_drawable, read_titles
from allmrec.data.trained_items import write_trained_items
from allmrec.data.training_users import training_parts
from allmrec.text.embeddings import check_embedded, read_texts
from allmrec.text.encoder import encoder_identity
from jobs.runtime.cluster import start_ray
from jobs.runtime.command import main
from jobs.runtime.preflight import Needs
from jobs.runtime.ray_data import on_worker
from jobs.runtime.ray_train import device, fit, run_epochs
from jobs.runtime.step import Context, Stats, Step


def run(context: Context) -> Stats:
    return bring_in(context) if context.config.teacher.model == "external" else train(context)


def train(context: Context) -> Stats:
    workspace, teacher = context.workspace, context.config.teacher
    return train_into(context, teacher, workspace.teacher, Workspace.teacher, "train-cf", context.resolved("teacher"))


def train_into(
    context: Context, teacher: TeacherConfig, target: Storage, kind: str, verb: str, resolved: dict[str, Any]
) -> Stats:
    """Train a teacher and write it as an artifact. An existing one stays until the new one is written."""
    config, workspace = context.config, context.workspace
    encoders = encoders_of(context, teacher)
    settings = {
        "config": teacher,
        "text": config.text,
        "verb": config.prompt.verb_past,
        "seed": config.seed,
        "items": workspace.items,
        "sequences": workspace.sequences,
        "cases": workspace.evaluation_cases,
        "texts": workspace.item_text_embeddings,
        "teacher": target,
    }
    stats = fit(context, verb, loop, settings, total=teacher.epochs) | encoders
    with writing(target, kind, context.fingerprint, resolved) as out:
        out.add(stats.pop("files"))
        out.stats |= stats
    return out.stats


def encoders_of(context: Context, teacher: TeacherConfig) -> Stats:
    """Which encoders read the texts that the teacher is trained on; nothing for one that reads none.

    Raises:
        ValueError: the texts are missing, or of other items.
    """
    found, items, texts = Stats(), context.workspace.items, context.workspace.item_text_embeddings
    if teacher.items == "text":
        on_worker(check_embedded, texts, items)
        found["encoder"] = read_manifest(texts).stats.get("encoder")
    if teacher.is_pretrained:
        if on_worker(is_untitled, items):
            raise ValueError(
                "teacher.pretraining reads titles, and no item has one; name their column in data.items.columns.title, "
                "or leave teacher.pretraining out"
            )
        found["pretraining_encoder"] = history_encoder(context)
    return found


def history_encoder(context: Context) -> str:
    """Identity of the encoder of histories. Raises ValueError where there is no such model."""
    return encoder_identity(context.config.text, "cuda" if context.config.workers.gpus_per_worker else "cpu")


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
    return on_worker(bring)


def loop(settings: dict[str, Any]) -> Stats:
    """On every worker: train, keep the best epoch; rank 0 writes its weights."""
    config, items, encode = settings["config"], settings["items"], None
    parts = training_parts(settings["sequences"], config.memory_mb)
    cases = ValidationCases.read(settings["cases"], settings["sequences"], config.validation_users, settings["seed"])
    if config.is_pretrained:
        titles = read_titles(items)
        encode = HistoryTexts(titles, settings["verb"], config.max_history, settings["text"], device().type)
    training = TeacherTraining(
        config,
        parts,
        read_manifest(items).rows,
        cases,
        settings["seed"],
        device(),
        read_drawable(items),
        texts_NS=read_texts(settings["texts"]) if config.items == "text" else None,
        encode=encode,
    )
    run_epochs(training)
    if rank_and_world_size()[0] != 0:
        return {}
    return {
        "files": save_teacher(settings["teacher"], training.best_teacher())
        | write_trained_items(settings["teacher"], items),
        "num_items": read_manifest(items).rows,
        "users": training.users,
        "epochs": training.epoch,
        "best_epoch": training.best["epoch"],
        **{name: value for name, value in training.best.items() if name.startswith("valid")},
        "interactions_per_s": round(training.positions / training.seconds) if training.seconds else None,
        **({} if training.pretraining is None else training.pretraining.numbers),
    }


def plan(context: Context) -> Stats:
    return plan_of(context, context.config.teacher)


def plan_of(context: Context, config: TeacherConfig) -> Stats:
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


def external_inputs(context: Context) -> Any:
    """What a teacher is made of beside the workspace's tables: the files of an external one, with size and time of
    change; of one with a first stage the encoder of histories and the verb of their texts."""
    config = context.config
    if config.teacher.is_pretrained:
        return read_histories_by(context)
    if config.teacher.model != "external":
        return None
    files = table_files(config.teacher, config.storage)
    return {name: [vars(file) for file in found] for name, found in files.items()}


def texts_of(teacher: TeacherConfig) -> tuple[str, ...]:
    """What it reads beside the other tables."""
    return (Workspace.item_text_embeddings,) if teacher.items == "text" else ()


def models_of(teacher: TeacherConfig) -> tuple[Literal["text"], ...]:
    return ("text",) if teacher.is_pretrained else ()


def read_histories_by(context: Context) -> Stats:
    return {"encoder": history_encoder(context), "verb": context.config.prompt.verb_past}


STEP = Step(
    "train-cf",
    sections=("teacher",),
    inputs=(Workspace.sequences, Workspace.items, Workspace.evaluation_cases),
    outputs=(Workspace.teacher,),
    run=run,
    plan=plan,
    optional_inputs=lambda config: texts_of(config.teacher),
    external_inputs=external_inputs,
    needs=Needs("training", models=lambda config: models_of(config.teacher)),
)

if __name__ == "__main__":
    main("train-cf")
