"""How well and how fast the CF teachers train, beside the classic SASRec recipe on the same machine.

    python -m benchmarks.teachers --workspace runs/beauty --reference-epochs 20

`morec` and `ctrl` are SASRec by texts and SASRec with a first stage; rates are of the training after it.

Every teacher trains as `allmrec train-cf` does, on workers of one CPU each, and is measured on the workspace's stored
test cases: among their random negatives, and among all items of the catalogue that the history has not. The reference
trains before Ray starts; it is validated and measured alike. Rates are of the training loops alone: neither the
start of processes nor validation counts.
"""

import copy
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import ray
import torch
import typer
from pydantic import ValidationError

from allmrec.cf.retrieval import held_out_ranks
from allmrec.cf.teacher import Teacher, TeacherConfig, load_teacher
from allmrec.cf.training import ValidationCases, validate
from allmrec.core.artifacts import read_manifest, read_table
from allmrec.core.settings import one_line
from allmrec.core.workspace import Workspace, open_workspace
from allmrec.data.cases import Cases
from allmrec.data.catalogue import drawable_items
from allmrec.data.sequences import Sequences
from allmrec.metrics import METRICS, evaluate_scores, expected_metrics, recall
from benchmarks.report import ROOT, Benchmark, Row
from benchmarks.sasrec_reference import Recipe, ReferenceTraining
from jobs import embed, prepare, train_cf
from jobs.config import Config
from jobs.demo.sample_data import sample_data
from jobs.runtime.command import errors_in_one_line
from jobs.runtime.console import Console
from jobs.runtime.step import execute

NAME, ENCODER = "teachers", "standins/encoder"
INPUTS = (Workspace.items, Workspace.sequences, Workspace.evaluation_cases, Workspace.item_text_embeddings)
BY_TEXT: dict[str, Row] = {"morec": {"items": "text"}, "ctrl": {"pretraining": {}}}  # over SASRec
FULL: Row = {
    "models": "sasrec,morec,ctrl,gru4rec,nextitnet,ncf",
    "presets": "paper,strong",
    "seeds": "0,1,2",
    "epochs": None,
    "reference_epochs": 20,
    "users": 20_000,
    "items": 4_000,
}
QUICK: Row = {
    "models": "sasrec",
    "presets": "strong",
    "seeds": "0",
    "epochs": 2,
    "reference_epochs": 2,
    "users": 600,
    "items": 150,
}


@dataclass(frozen=True)
class Store:
    """A prepared workspace: what training and measuring read."""

    folder: Path
    num_items: int
    drawable: np.ndarray  # `Catalogue.drawable`
    train: Sequences  # the training part
    valid: ValidationCases
    test: Cases

    @classmethod
    def read(cls, folder: Path) -> "Store":
        workspace = open_workspace(str(folder))
        items, sequences = read_table(workspace.items), Sequences.read(workspace.sequences)
        cases = read_table(workspace.evaluation_cases)
        valid, test = (Cases.select(cases, sequences, split, "random") for split in ("valid", "test"))
        train = Sequences.read_train(workspace.sequences)
        return cls(folder, len(items), drawable_items(items), train, ValidationCases.of(valid), test)


def sample_store(users: int, items: int, root: Path, console: Console) -> Path:
    """A generated shop, prepared and embedded: the folder of the workspace."""
    source = root / f"sample-{users}-{items}"
    if not (source / "movies/items.parquet").exists():
        sample_data(str(source), users=users, items=items)
    tables = {name: {"paths": [str(source / f"movies/{name}.parquet")]} for name in ("interactions", "items")}
    config = Config(name=f"{source.name}-prepared", root=str(root), data=tables, text={"model": ENCODER})
    execute(prepare.STEP, config, console)
    execute(embed.STEP, config, console)
    ray.shutdown()
    return Path(config.workspace_uri)


def train(store: Store, root: Path, seed: int, teacher: TeacherConfig, workers: int, console: Console) -> Row:
    """Train a teacher by the verb `train-cf`, in a fresh folder over the prepared tables, and measure it."""
    settings = {"text": {"model": ENCODER}, "workers": {"num_workers": workers}}
    config = Config(name="run", root=str(root), seed=seed, teacher=teacher, **settings)
    folder = Path(config.workspace_uri)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for table in INPUTS:
        if (store.folder / table).exists():
            (folder / table).symlink_to((store.folder / table).resolve())
    started = time.perf_counter()
    execute(train_cf.STEP, config, console)
    seconds = time.perf_counter() - started
    trained = config.workspace.teacher
    stats = read_manifest(trained).stats
    return {
        "epochs": stats["epochs"],
        "best epoch": stats["best_epoch"],
        "interactions/s": stats["interactions_per_s"],
        "seconds": seconds,
        **measured(load_teacher(trained), store.test, store.drawable),
    }


def train_reference(store: Store, seed: int, teacher: TeacherConfig, console: Console) -> Row:
    """Train the classic recipe for `teacher.epochs`, keep the best by `teacher`'s validation, and measure it."""
    started, epochs = time.perf_counter(), teacher.epochs
    training = ReferenceTraining(Recipe(), store.train, store.num_items, store.drawable, seed)
    best, best_epoch, best_ndcg = training.model, 0, -1.0
    with console.progress("reference", epochs) as bar:
        for epoch, loss in enumerate(training.epochs(epochs), start=1):
            bar.advance(1, loss=loss, interactions_per_s=training.positions / training.seconds)
            if epoch % teacher.eval_every and epoch < epochs:
                continue
            ndcg = validate(training.model, store.valid, teacher.validation, store.drawable)["valid_ndcg@10"]
            if ndcg > best_ndcg:
                best, best_epoch, best_ndcg = copy.deepcopy(training.model), epoch, ndcg
    return {
        "epochs": epochs,
        "best epoch": best_epoch,
        "interactions/s": round(training.positions / training.seconds),
        "seconds": time.perf_counter() - started,
        **measured(best.eval(), store.test, store.drawable),
    }


@torch.inference_mode()
def measured(teacher: Teacher, cases: Cases, drawable: np.ndarray) -> Row:
    """Hit@1 and NDCG@10 among the cases' negatives, NDCG@10 and Recall@20 among drawable items not in the history."""
    x_BD = teacher.represent(cases.histories)
    score_BC = teacher.scores(x_BD, torch.from_numpy(cases.candidates_BC).long())
    sampled_BM = evaluate_scores(score_BC.numpy(), cases.candidates_BC)
    better_B, tied_B = held_out_ranks(teacher, x_BD, cases.histories, cases.candidates_BC[:, 0], drawable)
    full_BM = expected_metrics(better_B, tied_B, len(teacher.item_embeddings))
    hit, ndcg = METRICS.index("hit@1"), METRICS.index("ndcg@10")
    return {
        "hit@1": float(sampled_BM[:, hit].mean()),
        "ndcg@10": float(sampled_BM[:, ndcg].mean()),
        "full ndcg@10": float(full_BM[:, ndcg].mean()),
        "recall@20": float(recall(better_B, tied_B, 20).mean()),
    }


def main(
    workspace: Annotated[Path | None, typer.Option(help="a prepared workspace; default: a generated store")] = None,
    models: Annotated[
        str | None, typer.Option(help="default: sasrec,morec,ctrl,gru4rec,nextitnet,ncf; quick: sasrec")
    ] = None,
    presets: Annotated[str | None, typer.Option(help="default: paper,strong; quick: strong")] = None,
    seeds: Annotated[str | None, typer.Option(help="default: 0,1,2; quick: 0")] = None,
    epochs: Annotated[int | None, typer.Option(help="of every teacher; default: the preset's; quick: 2")] = None,
    validation: Annotated[
        str | None, typer.Option(help="what the best epoch is chosen by: random or full; default: the preset's")
    ] = None,
    reference_epochs: Annotated[
        int | None,
        typer.Option(help="of SASRec beside the classic recipe, 0 for none; default: 20; quick: 2"),
    ] = None,
    workers: Annotated[int, typer.Option(help="of one CPU each, for our own training")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="sizes for a minute; bars are not judged")] = False,
    root: Annotated[Path, typer.Option(help="folder that holds what benchmarks write")] = ROOT,
    log_json: Annotated[bool, typer.Option("--log-json", help="JSON lines instead of progress bars")] = False,
) -> None:
    """Train every teacher in every preset and with every seed; compare SASRec with the classic recipe."""
    given = {
        "models": models,
        "presets": presets,
        "seeds": seeds,
        "epochs": epochs,
        "reference_epochs": reference_epochs,
    }
    plan = (QUICK if quick else FULL) | {name: value for name, value in given.items() if value is not None}
    console, work = Console(log_json), root / NAME
    benchmark = Benchmark(NAME, console, {"workspace": workspace, **plan}, root, quick)
    with errors_in_one_line():
        pairs = [(model, preset) for model in plan["models"].split(",") for preset in plan["presets"].split(",")]
        teachers = [
            teacher_config(
                **BY_TEXT.get(model, {"model": model}),
                preset=preset,
                epochs=plan["epochs"],
                validation=validation,
            )
            for model, preset in pairs
        ]
        numbers = [int(seed) for seed in plan["seeds"].split(",")]
        store = Store.read(workspace or sample_store(plan["users"], plan["items"], work, console))
        if plan["reference_epochs"]:
            compare(benchmark, store, numbers, plan["reference_epochs"], workers)
        for (model, preset), teacher in zip(pairs, teachers, strict=True):
            for seed in numbers:
                labels = {"model": model, "preset": preset, "seed": seed}
                benchmark.measured(labels, train(store, work, seed, teacher, workers, console))
        for model, preset in pairs:
            if model in BY_TEXT and ("sasrec", preset) in pairs:
                rate, by_ids = (
                    benchmark.mean("interactions/s", model=name, preset=preset) for name in (model, "sasrec")
                )
                benchmark.at_least(f"interactions/s, {preset}: {model} / sasrec", rate / by_ids, 0.8)
    if {("sasrec", "paper"), ("sasrec", "strong")} <= set(pairs):
        paper, strong = (benchmark.mean("full ndcg@10", model="sasrec", preset=name) for name in ("paper", "strong"))
        benchmark.at_least("sasrec, full NDCG@10: strong / paper", strong / paper, 1.10)
    benchmark.finish()


def teacher_config(**given: Any) -> TeacherConfig:
    """What is None keeps its default. Raises ValueError, in one line, for a model or a preset that is not known."""
    try:
        return TeacherConfig(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise ValueError(one_line(error)) from None


def compare(benchmark: Benchmark, store: Store, seeds: list[int], epochs: int, workers: int) -> None:
    """Our SASRec and the classic recipe for the same number of epochs, none cut short."""
    classic, ours = "classic", f"strong, {epochs} epochs"
    teacher = teacher_config(epochs=epochs, patience=epochs)
    for seed in seeds:
        numbers = train_reference(store, seed, teacher, benchmark.console)
        benchmark.measured({"model": "sasrec", "preset": classic, "seed": seed}, numbers)
    for seed in seeds:
        numbers = train(store, benchmark.root / NAME, seed, teacher, workers, benchmark.console)
        benchmark.measured({"model": "sasrec", "preset": ours, "seed": seed}, numbers)
    rate, classic_rate = (benchmark.mean("interactions/s", preset=preset) for preset in (ours, classic))
    ndcg, classic_ndcg = (benchmark.mean("ndcg@10", preset=preset) for preset in (ours, classic))
    benchmark.at_least("sasrec, interactions/s: strong / classic", rate / classic_rate, 5)
    benchmark.at_least(f"sasrec, NDCG@10 after {epochs} epochs: strong - classic", ndcg - classic_ndcg, 0)


if __name__ == "__main__":
    typer.run(main)
