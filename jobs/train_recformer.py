"""Train RECFORMER, a system that `baselines` names beside A-LLMRec.

    allmrec train-baselines --config my.yaml

Reads `sequences`, `items` and the validation part of `evaluation_cases`, and the encoder; writes `systems/recformer`:
the trained encoder, and all items' vectors and sentences. Every worker holds the encoder, its gradients and
Adam's moments, and takes its share of the items and of each batch's users.
"""

from functools import partial
from typing import Any

import numpy as np

from allmrec.cf.training import ValidationCases
from allmrec.core.artifacts import read_manifest, read_parts, read_rows, shard_name, writing
from allmrec.core.distributed import rank_and_world_size
from allmrec.core.pretrained import model_identity
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import parts_in_order, read_drawable
from allmrec.data.sequences import Sequences
from allmrec.data.trained_items import write_trained_items
from allmrec.recformer.artifact import save_recformer
from allmrec.recformer.build import build_recformer
from allmrec.recformer.config import RecformerConfig
from allmrec.recformer.sentences import WORDS, alone, check_texts
from allmrec.recformer.training import RecformerTraining
from jobs.config import Config
from jobs.runtime.command import main
from jobs.runtime.preflight import Model, Needs
from jobs.runtime.ray_data import on_worker
from jobs.runtime.ray_train import device, fit, run_epochs
from jobs.runtime.step import Context, Stats, Step

_SAMPLE = 2000  # items and users whose tokens are counted for a plan


def run(context: Context) -> Stats:
    config, workspace = context.config, context.workspace
    recformer = named(context)
    on_worker(check_words, workspace.items)
    settings = {
        "config": recformer,
        "seed": config.seed,
        **{name: workspace.at(name) for name in (*STEP.inputs, *STEP.outputs)},
    }
    resolved = {"seed": config.seed, "baselines": {"recformer": recformer.model_dump(mode="json")}}
    stats = fit(context, "train-baselines-recformer", loop, settings, total=2 * recformer.epochs)
    with writing(workspace.recformer, Workspace.recformer, context.fingerprint, resolved) as out:
        out.add(stats.pop("files"))
        out.stats |= stats | {"encoder": external_inputs(context)}
    return out.stats


def named(context: Context) -> RecformerConfig:
    assert context.config.recformer is not None, "only configs that name RECFORMER have this step"
    return context.config.recformer


def check_words(items: Storage) -> None:
    """In a task: `check_texts` of the stored table, one file after the other."""
    check_texts(read_parts(items, WORDS))


def loop(settings: dict[str, Any]) -> Stats:
    """On every worker: train both stages; rank 0 writes the best weights and the items."""
    config, seed = settings["config"], settings["seed"]
    items, sequences = settings[Workspace.items], settings[Workspace.sequences]
    network, sentences, tokenizer = build_recformer(config, partial(parts_in_order, items, WORDS), seed)
    training = RecformerTraining(
        config,
        network,
        sentences,
        Sequences.read_train(sequences),
        ValidationCases.read(settings[Workspace.evaluation_cases], sequences, config.validation_users, seed),
        seed,
        device(),
        read_drawable(items),
    )
    run_epochs(training)
    if rank_and_world_size()[0] != 0:
        return {}
    return {
        "files": save_recformer(
            settings[Workspace.recformer],
            training.best_users,
            training.best_items,
            training.best_vectors_ND,
            sentences,
            network.encoder,
            tokenizer,
        )
        | write_trained_items(settings[Workspace.recformer], items),
        "users": len(training),
        "epochs": training.epoch,
        "max_tokens": sentences.max_tokens,
        **{f"best_{name}": training.best.get(name) for name in ("epoch", "stage")},
        **{name: value for name, value in training.best.items() if name.startswith("valid")},
    }


def plan(context: Context) -> Stats:
    """Tokens read, counted on a sample of the items and users."""
    recformer, workspace = named(context), context.workspace
    catalogue = read_manifest(workspace.items)
    chosen = np.linspace(0, catalogue.rows - 1, min(catalogue.rows, _SAMPLE)).astype(np.int64)
    sample = read_rows(workspace.items, catalogue, chosen, WORDS)
    network, sentences, _ = build_recformer(recformer, lambda: [sample], context.config.seed)
    some, manifest = Sequences.read_train(workspace.sequences, [0]), read_manifest(workspace.sequences)
    learnable = np.flatnonzero(some.lengths >= 2)
    users = some.take(learnable[:_SAMPLE])
    halves = users.shortened((users.lengths + 1) // 2)  # as long as histories of drawn targets on average
    sampled = Sequences(halves.user_ids, halves.offsets, (halves.items % len(chosen) + 1).astype(np.int32))
    user_tokens = float(sentences.lengths(sampled).mean()) if len(sampled) else 0.0
    item_tokens = float(sentences.lengths(alone(np.arange(1, len(chosen) + 1))).mean())
    count = round(len(learnable) * manifest.rows / max(manifest.files[shard_name(0)]["rows"], 1))
    weights = sum(weight.numel() for weight in network.parameters())
    read, trained = round(catalogue.rows * item_tokens), round(count * user_tokens)
    return {
        "encoder": recformer.encoder or "a fresh BERT",
        "users": count,
        "items": catalogue.rows,
        "tokens_per_user": round(user_tokens),
        "tokens_per_item": round(item_tokens),
        "tokens_per_epoch": read + trained,
        # Users are read as they are, swapped, and for the whole catalogue.
        "tokens_per_evaluation": round(3 * read_manifest(workspace.evaluation_cases).stats["test"] * user_tokens),
        "steps": 2 * recformer.epochs * -(-count // recformer.batch_size),
        "workers": context.config.workers.num_workers,
        # Items are read in the first stage alone; gradients cost twice as much as states.
        "gpu_hours_at_100_tflops": round(2 * weights * recformer.epochs * (read + 6 * trained) / 1e14 / 3600, 4),
    }


def external_inputs(context: Context) -> Any:
    """Which encoder is trained; null for a fresh one."""
    recformer = named(context)
    return recformer.encoder and model_identity(recformer.encoder, recformer.revision)


def models(config: Config) -> tuple[Model, ...]:
    """The models that its workers load: none for a fresh encoder."""
    return ("recformer",) if config.recformer is not None and config.recformer.encoder is not None else ()


STEP = Step(
    "train-baselines recformer",
    sections=("baselines.recformer",),
    inputs=(Workspace.sequences, Workspace.items, Workspace.evaluation_cases),
    outputs=(Workspace.recformer,),
    run=run,
    plan=plan,
    external_inputs=external_inputs,
    needs=Needs("training", models=models),
)

if __name__ == "__main__":
    main("train-baselines")
