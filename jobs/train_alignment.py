"""Stage-1: align the teacher's item embeddings with the texts' (paper section 4.1).

    python -m jobs.train_alignment --config jobs/configs/demo.yaml

Reads `teacher`, `item_text_embeddings`, `sequences` and `items`; writes `alignment`: the network, and the joint
embeddings e and q of every item. The workers of Ray Train share every batch.
"""

from typing import Any

import numpy as np
import torch

from allmrec.alignment.network import save_alignment
from allmrec.alignment.training import AlignmentTraining, alignment_quality
from allmrec.artifacts import read_manifest, read_table, seal, unseal
from allmrec.cf.teacher import load_teacher
from allmrec.data.sequences import Sequences
from allmrec.distributed import place
from allmrec.storage import Storage
from jobs.cli import main
from jobs.step import Context, Facts, Step
from jobs.workers import device, fit, report, resume


def run(context: Context) -> Facts:
    config, storage = context.config, context.artifact("alignment")
    unseal(storage)
    facts = fit(
        context,
        "train-alignment",
        loop,
        {
            "config": config.alignment,
            "seed": config.seed,
            "teacher": context.artifact("teacher"),
            "texts": context.artifact("item_text_embeddings"),
            "sequences": context.artifact("sequences"),
            "alignment": storage,
        },
        total=config.alignment.epochs,
    )
    files = facts.pop("files")
    seal(storage, "alignment", context.made_by, files, config=context.resolved("alignment"), facts=facts)
    return facts


def loop(settings: dict[str, Any]) -> Facts:
    """On every worker: train; rank 0 measures the held-out items and writes the network and the joint embeddings."""
    training = AlignmentTraining(
        settings["config"],
        load_teacher(settings["teacher"]),
        Sequences.read_train(settings["sequences"]),
        read_texts(settings["texts"]),
        settings["seed"],
        device(),
    )
    state = resume()
    if state is not None:
        training.load_state_dict(state)
    numbers: dict[str, float] = {}
    for numbers in training.rounds():
        report(training.epoch, training.state_dict(), **numbers)
    if place()[0] != 0:
        return {}
    e_NJ, q_NJ = training.joint()
    held_out = torch.from_numpy(np.flatnonzero(training.held_out)).to(e_NJ.device)
    quality = alignment_quality(e_NJ, q_NJ, held_out)
    return {
        "files": save_alignment(settings["alignment"], training.network, e_NJ, q_NJ),
        "users": len(training.sequences),
        **numbers,
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
    users = read_manifest(context.artifact("sequences")).rows
    num_items = read_manifest(context.artifact("items")).rows
    return {
        "users": users,
        "items": num_items,
        "epochs": config.alignment.epochs,
        "steps": config.alignment.epochs * -(-users // config.alignment.batch_size),
        "workers": config.workers.num_workers,
        # E, and x^u of every user.
        "memory_mb_per_worker": round(4 * config.teacher.dim * (num_items + users) / 2**20),
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
