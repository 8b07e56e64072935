"""Stage-1: align the teacher's item embeddings with the texts' (paper section 4.1).

    python -m jobs.train_alignment --config jobs/configs/demo.yaml

Reads `teacher`, `item_text_embeddings`, `sequences` and `items`; writes `alignment`: the network, and the joint
embeddings e and q of every item. The workers of Ray Train share every batch; a worker holds at most
`alignment.memory_mb` of the users that train, with their x^u, and maps E and Q where they are large.

With `alignment.text_encoder: fine-tuned` SBERT is trained too and kept in `encoders`, and the network that it was
trained with in `fine_tuned`; the catalogue is then embedded by that encoder, as `embed` does it, in
`fine_tuned_text_embeddings`.
"""

from typing import Any

import numpy as np
import torch

from allmrec.alignment.estimate import hours_of_steps, hours_of_texts, steps_per_epoch
from allmrec.alignment.examples import example_bytes, held_out_items
from allmrec.alignment.network import AlignmentConfig, AlignmentNetwork, load_network, save_alignment, save_network
from allmrec.alignment.texts import DistinctTexts, TrainedTexts
from allmrec.alignment.training import AlignmentTraining, alignment_quality, spread_kept
from allmrec.alignment.tuned_encoder import DIGEST, find_tuned_encoder, save_tuned_encoder
from allmrec.cf.teacher import load_teacher
from allmrec.core.artifacts import find_manifest, read_manifest, read_part, writing
from allmrec.core.distributed import rank_and_world_size
from allmrec.core.hashing import Draw, key64
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import read_drawable
from allmrec.data.trained_items import check_trained_on, write_trained_items
from allmrec.data.training_users import Sample, TrainingUsers, num_parts
from allmrec.retention import named_encoders
from allmrec.text.cache import TextCache
from allmrec.text.embeddings import read_texts
from allmrec.text.encoder import load_encoder
from jobs.embed import embed_by
from jobs.runtime.command import main
from jobs.runtime.preflight import Needs
from jobs.runtime.ray_data import on_worker
from jobs.runtime.ray_train import device, fit, run_epochs
from jobs.runtime.step import Context, Stats, Step

INPUTS = (Workspace.teacher, Workspace.item_text_embeddings, Workspace.sequences, Workspace.items)


def run(context: Context) -> Stats:
    workspace, config = context.workspace, context.resolved("alignment")
    on_worker(check_trained_on, workspace.teacher, workspace.items)
    stats = fine_tune(context) if context.config.alignment.text_encoder == "fine-tuned" else train(context)
    with writing(workspace.alignment, Workspace.alignment, context.fingerprint, config) as out:
        out.add(stats.pop("files"))
        out.stats |= stats
        out.stats.setdefault("encoder", read_manifest(workspace.item_text_embeddings).stats.get("encoder"))
    return out.stats


def train(context: Context) -> Stats:
    """Run `loop` on the workers."""
    config = context.config
    settings = {"config": config.alignment, "text": config.text, "seed": config.seed, "workspace": context.workspace}
    settings |= {name: context.workspace.at(name) for name in (*INPUTS, Workspace.fine_tuned)}
    return fit(context, "train-alignment", loop, settings, total=config.alignment.epochs)


def fine_tune(context: Context) -> Stats:
    """Train with SBERT, embed the catalogue by it, and write the joint embeddings. A finished training is kept."""
    config, workspace, tuned = context.config, context.workspace, context.workspace.fine_tuned
    before = find_manifest(tuned)
    finished = before is not None and before.fingerprint == context.fingerprint
    if before is None or not finished or find_tuned_encoder(workspace, before) is None:
        resolved = context.resolved("alignment", "text")
        stats = train(context)
        with writing(tuned, Workspace.fine_tuned, context.fingerprint, resolved) as out:
            out.add(stats.pop("files"))
            out.stats |= stats
    trained, texts = read_manifest(tuned), workspace.fine_tuned_text_embeddings
    former, found = find_manifest(texts), find_tuned_encoder(workspace, trained)
    assert found is not None, "it is trained again where it is gone"
    encoder = embed_by(context, found.model, found.embeddings)["encoder"]
    exported = on_worker(export_tuned, workspace, config.alignment, config.seed)
    # The former alignment, which named its encoder, is gone by now.
    if former is not None and former.stats["encoder"] not in (encoder, *named_encoders(workspace).values()):
        TextCache.of(context.storage, former.stats["encoder"]).clear()  # nothing uses that encoder again
    return trained.stats | exported | {"encoder": encoder}


def loop(settings: dict[str, Any]) -> Stats:
    """On every worker: train; rank 0 writes the network, and SBERT or the joint embeddings."""
    config, seed = settings["config"], settings["seed"]
    texts_NS = read_texts(settings["item_text_embeddings"])
    trained_texts = None
    if config.text_encoder == "fine-tuned":
        text = settings["text"]
        encoder = load_encoder(text.model_copy(update={"dtype": "float32"}), str(device()))
        trained_texts = TrainedTexts(config, encoder, DistinctTexts.read(settings["items"]), text.max_chars)
    teacher = load_teacher(settings["teacher"])
    training = AlignmentTraining(
        config,
        teacher,
        TrainingUsers.read(
            settings["sequences"],
            config.memory_mb,
            Sample(config.max_users, key64(seed, Draw.ALIGNMENT_USERS)),
            config.targets,
            example_bytes(teacher.item_embeddings.shape[1]),
        ),
        texts_NS,
        seed,
        device(),
        trained_texts,
        read_drawable(settings["items"]),
    )
    run_epochs(training)
    if rank_and_world_size()[0] != 0:
        return {}
    stats: Stats = {"users": len(training.examples), "targets": training.examples.num_targets, **training.numbers}
    if trained_texts is not None:
        return stats | {
            "files": save_network(settings["fine_tuned"], training.network),
            DIGEST: save_tuned_encoder(settings["workspace"], trained_texts.encoder),
        }
    held_out_N = held_out_items(config, len(texts_NS), seed)
    return stats | export(settings["workspace"], training.network, training.items_ND, texts_NS, held_out_N)


def export_tuned(workspace: Workspace, config: AlignmentConfig, seed: int) -> Stats:
    """In a task: `export` by the network in `fine_tuned`, and what is left of the spread of Q."""
    texts_NS, network = read_texts(workspace.fine_tuned_text_embeddings), load_network(workspace.fine_tuned)
    items_ND = load_teacher(workspace.teacher).item_embeddings
    exported = export(workspace, network, items_ND, texts_NS, held_out_items(config, len(texts_NS), seed))
    return exported | spread_kept(read_texts(workspace.item_text_embeddings), texts_NS)


def export(
    workspace: Workspace,
    network: AlignmentNetwork,
    items_ND: torch.Tensor,
    texts_NS: torch.Tensor,
    held_out_N: np.ndarray,
) -> Stats:
    """Write e_i and q_i of every item, and measure how well q_i replaces e_i on items that were held out."""
    e_NJ, q_NJ = network.joint(items_ND, texts_NS.to(items_ND.device))
    held_out = torch.from_numpy(np.flatnonzero(held_out_N)).to(e_NJ.device)
    quality = alignment_quality(e_NJ, q_NJ, held_out)
    return {
        "files": save_alignment(workspace.alignment, network, e_NJ, q_NJ)
        | write_trained_items(workspace.alignment, workspace.items),
        "held_out_items": len(held_out),
        **{f"held_out_{name}": value for name, value in quality.items()},
    }


def plan(context: Context) -> Stats:
    config, dim, world = context.config, context.config.teacher.dim, context.config.workers.num_workers
    alignment, sequences = config.alignment, read_manifest(context.workspace.sequences)
    users = min(sequences.rows, alignment.max_users or sequences.rows)
    targets = users
    if alignment.targets == "all":
        targets = round(sequences.stats["interactions"] * users / max(sequences.rows, 1))
    num_items, target_bytes = read_manifest(context.workspace.items).rows, example_bytes(dim)
    parts = num_parts(sequences, alignment.memory_mb, alignment.max_users, alignment.targets, target_bytes)
    texts = read_manifest(context.workspace.item_text_embeddings)
    first = read_part(context.workspace.item_text_embeddings, texts, next(iter(texts.files)))
    text_dim, items_per_s = first.schema.field("embedding").type.list_size, texts.stats.get("items/s of a worker")
    hours: Stats = {}
    if alignment.text_encoder == "frozen":
        spent = hours_of_steps(alignment, dim, text_dim, users, targets, world)
        hours["hours_at_this_hosts_steps"] = round(spent, 3)
    elif items_per_s:
        hours["hours_at_the_speed_of_embed"] = round(hours_of_texts(alignment, targets, world, items_per_s), 2)
    return {
        "users": users,
        "items": num_items,
        "epochs": alignment.epochs,
        "steps": alignment.epochs * steps_per_epoch(alignment, users),
        "parts": parts,
        "workers": world,
        "text_encoder": alignment.text_encoder,
        # E, and the users with x^u before every target.
        "memory_mb_per_worker": round((4 * dim * num_items + target_bytes * targets / parts) / 2**20),
        **hours,
    }


STEP = Step(
    "train-alignment",
    sections=("alignment",),
    inputs=INPUTS,
    outputs=(Workspace.alignment,),
    run=run,
    plan=plan,
    needs=Needs("training", models=lambda config: ("text",) if config.alignment.text_encoder == "fine-tuned" else ()),
)

if __name__ == "__main__":
    main("train-alignment")
