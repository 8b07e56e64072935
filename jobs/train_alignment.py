"""Stage-1: align the teacher's item embeddings with the texts' (paper section 4.1).

    python -m jobs.train_alignment --config jobs/configs/demo.yaml

Reads `teacher`, `item_text_embeddings`, `sequences` and `items`; writes `alignment`: the network, and the joint
embeddings e and q of every item. The workers of Ray Train share every batch.

With `alignment.text_encoder: fine-tuned` SBERT is trained along and kept in `fine_tuned`; the catalogue is then
embedded again by what it has become, as `embed` does it, in `fine_tuned_text_embeddings`.
"""

from typing import Any

import numpy as np
import torch

from allmrec.alignment.examples import held_out_items
from allmrec.alignment.network import AlignmentNetwork, load_network, save_alignment, save_network
from allmrec.alignment.texts import TrainedTexts
from allmrec.alignment.training import AlignmentTraining, alignment_quality, spread_kept
from allmrec.artifacts import MANIFEST, read_manifest, read_table, seal, unseal
from allmrec.cf.teacher import load_teacher
from allmrec.data.catalogue import Catalogue, drawable_items
from allmrec.data.sequences import Sequences
from allmrec.distributed import place
from allmrec.storage import Storage
from allmrec.text.cache import TextCache
from allmrec.text.encoder import load_encoder, save_encoder
from jobs.cli import main
from jobs.embed import embed_by
from jobs.step import Context, Facts, Step
from jobs.workers import device, fit, report, resume

ENCODER = "encoder"  # the folder of SBERT in `fine_tuned`
ARTIFACTS = ("teacher", "item_text_embeddings", "sequences", "items", "alignment", "fine_tuned")


def run(context: Context) -> Facts:
    storage = context.artifact("alignment")
    unseal(storage)
    facts = fine_tune(context) if context.config.alignment.text_encoder == "fine-tuned" else train(context)
    files = facts.pop("files")
    seal(storage, "alignment", context.made_by, files, config=context.resolved("alignment"), facts=facts)
    return facts


def train(context: Context) -> Facts:
    """Run `loop` on the workers."""
    config = context.config
    settings = {"config": config.alignment, "text": config.text, "seed": config.seed}
    settings |= {name: context.artifact(name) for name in ARTIFACTS}
    return fit(context, "train-alignment", loop, settings, total=config.alignment.epochs)


def fine_tune(context: Context) -> Facts:
    """Train with SBERT, embed the catalogue by it, and write the joint embeddings. A finished training is kept."""
    config, tuned = context.config, context.artifact("fine_tuned")
    if not (tuned.exists(MANIFEST) and read_manifest(tuned).made_by == context.made_by):
        unseal(tuned)
        facts = train(context)
        seal(tuned, "fine_tuned", context.made_by, facts.pop("files"), context.resolved("alignment", "text"), facts)
    texts = context.artifact("fine_tuned_text_embeddings")
    before = read_manifest(texts).facts["encoder"] if texts.exists(MANIFEST) else None
    encoder = embed_by(context, tuned.name(ENCODER), "fine_tuned_text_embeddings")["encoder"]
    if before not in (None, encoder):
        TextCache.of(context.storage, before).clear()  # nothing will ask that encoder again
    texts_NS = read_texts(texts)
    exported = export(
        context.artifact("alignment"),
        load_network(tuned),
        load_teacher(context.artifact("teacher")).item_embeddings,
        texts_NS,
        held_out_items(config.alignment, len(texts_NS), config.seed),
    )
    kept = spread_kept(read_texts(context.artifact("item_text_embeddings")), texts_NS)
    return read_manifest(tuned).facts | exported | kept | {"encoder": encoder}


def loop(settings: dict[str, Any]) -> Facts:
    """On every worker: train; rank 0 writes the network, and SBERT or the joint embeddings."""
    config, seed = settings["config"], settings["seed"]
    texts_NS = read_texts(settings["item_text_embeddings"])
    trained_texts = None
    if config.text_encoder == "fine-tuned":
        text = settings["text"]
        encoder = load_encoder(text.model_copy(update={"dtype": "float32"}), str(device()))
        trained_texts = TrainedTexts(config, encoder, Catalogue.read(settings["items"]).texts, text.max_chars)
    training = AlignmentTraining(
        config,
        load_teacher(settings["teacher"]),
        Sequences.read_train(settings["sequences"]),
        texts_NS,
        seed,
        device(),
        trained_texts,
        drawable_items(read_table(settings["items"])),
    )
    state = resume()
    if state is not None:
        training.load_state_dict(state)
    for numbers in training.rounds():
        report(training.epoch, training.state_dict(), **numbers)
    if place()[0] != 0:
        return {}
    facts: Facts = {"users": len(training.examples), "targets": len(training.examples.targets), **training.numbers}
    if trained_texts is not None:
        tuned = settings["fine_tuned"]
        return facts | {
            "files": save_network(tuned, training.network) | save_encoder(tuned, ENCODER, trained_texts.encoder)
        }
    held_out_N = held_out_items(config, len(texts_NS), seed)
    return facts | export(settings["alignment"], training.network, training.items_ND, texts_NS, held_out_N)


def export(
    storage: Storage,
    network: AlignmentNetwork,
    items_ND: torch.Tensor,
    texts_NS: torch.Tensor,
    held_out_N: np.ndarray,
) -> Facts:
    """Write e_i and q_i of every item, and measure how well q_i stands in for e_i on items that were held out."""
    e_NJ, q_NJ = network.joint(items_ND, texts_NS.to(items_ND.device))
    held_out = torch.from_numpy(np.flatnonzero(held_out_N)).to(e_NJ.device)
    quality = alignment_quality(e_NJ, q_NJ, held_out)
    return {
        "files": save_alignment(storage, network, e_NJ, q_NJ),
        "held_out_items": len(held_out),
        **{f"held_out_{name}": value for name, value in quality.items()},
    }


def read_texts(storage: Storage) -> torch.Tensor:
    """Q_NS of the `item_text_embeddings` table, which is ordered by item_index; row 0, padding, is zeros."""
    column = read_table(storage).column("embedding").combine_chunks()
    texts_IS = torch.from_numpy(column.flatten().to_numpy().copy()).view(len(column), column.type.list_size)
    return torch.cat([torch.zeros(1, texts_IS.shape[1]), texts_IS])


def plan(context: Context) -> Facts:
    config = context.config
    sequences = read_manifest(context.artifact("sequences"))
    users = sequences.rows
    targets = users if config.alignment.targets == "last" else sequences.facts["interactions"]
    num_items = read_manifest(context.artifact("items")).rows
    return {
        "users": users,
        "items": num_items,
        "epochs": config.alignment.epochs,
        "steps": config.alignment.epochs * -(-users // config.alignment.batch_size),
        "workers": config.workers.num_workers,
        "text_encoder": config.alignment.text_encoder,
        # E, and x^u before every target.
        "memory_mb_per_worker": round(4 * config.teacher.dim * (num_items + targets) / 2**20),
    }


STEP = Step(
    "train-alignment",
    sections=("alignment",),
    inputs=("teacher", "item_text_embeddings", "sequences", "items"),
    outputs=("alignment",),
    run=run,
    plan=plan,
)

if __name__ == "__main__":
    main(STEP)
