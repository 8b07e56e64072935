"""Stage-2: project the user's and the items' representations into the frozen LLM's token space (paper section 4.2).

    python -m jobs.train_projection --config jobs/configs/demo.yaml

Reads `teacher`, `alignment`, `sequences` and `items`, and the LLM; writes `projectors`. The LLM is cut over the
workers of Ray Train by DeepSpeed ZeRO-3, or replicated (`llm.placement`); a worker holds all training sequences as
flat arrays (4 bytes an interaction).
"""

from typing import Any

import numpy as np

from allmrec.alignment.network import load_joint
from allmrec.artifacts import read_manifest, seal, shard_name, unseal
from allmrec.cf.teacher import load_teacher
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences
from allmrec.distributed import place
from allmrec.llm.loading import load_tokenizer, max_positions, model_identity
from allmrec.llm.prompt import PromptBuilder, Titles
from allmrec.projection.engine import checksum, load_placed_llm
from allmrec.projection.estimate import llm_outline, tokens_per_prompt
from allmrec.projection.examples import Examples
from allmrec.projection.projectors import save_projectors
from allmrec.projection.training import ProjectionTraining
from jobs.cli import main
from jobs.step import Context, Facts, Step
from jobs.workers import device, fit, report, resume

SECTIONS = ("projection", "prompt", "llm")


def run(context: Context) -> Facts:
    config, storage = context.config, context.artifact("projectors")
    unseal(storage)
    facts = fit(
        context,
        "train-projection",
        loop,
        {
            **{name: getattr(config, name) for name in SECTIONS},
            "seed": config.seed,
            **{name: context.artifact(name) for name in ("teacher", "alignment", "sequences", "items", "projectors")},
        },
        total=100,  # per cent
    )
    facts |= {"llm": identity(context), "placement": config.llm.placement}
    files = facts.pop("files")
    seal(storage, "projectors", context.made_by, files, config=context.resolved(*SECTIONS), facts=facts)
    return facts


def loop(settings: dict[str, Any]) -> Facts:
    """On every worker: train; rank 0 writes the projectors."""
    prompt, llm_config = settings["prompt"], settings["llm"]
    llm, tokenizer = load_placed_llm(llm_config), load_tokenizer(llm_config)
    titles = Titles.tokenise(Catalogue.read(settings["items"]).titles, tokenizer, prompt.max_title_tokens)
    # Prompt and answer (a title and the end token) share the LLM's positions.
    room = max_positions(llm) - prompt.max_title_tokens - 1
    builder = PromptBuilder(prompt, tokenizer, titles, soft=True, max_tokens=room)
    sequences = Sequences.read_train(settings["sequences"])
    training = ProjectionTraining(
        settings["projection"],
        llm_config.placement,
        llm,
        load_teacher(settings["teacher"]),
        load_joint(settings["alignment"])[0],
        Examples(sequences, builder, settings["projection"].num_candidates, settings["seed"]),
        device(),
        resume(),
    )
    rounds: list[dict[str, float]] = []
    for numbers in training.rounds():
        rounds.append(numbers)
        report(100 * training.step // training.total_steps, training.state_dict(), step=training.step, **numbers)
    weights, frozen_checksum = training.weights(), checksum(llm)
    assert frozen_checksum == training.frozen_checksum, "training must not touch the LLM"
    if place()[0] != 0:
        return {}
    speeds = ("prompts_per_s", "tokens_per_s", "padding %")
    return {
        "files": save_projectors(settings["projectors"], weights),
        "prompts": len(training.examples),
        "steps": training.step,
        "losses": [round(loss, 5) for loss in training.epoch_losses()],
        **{name: round(float(np.mean([numbers[name] for numbers in rounds])), 2) for name in speeds if rounds},
        "frozen_checksum": frozen_checksum,
    }


def plan(context: Context) -> Facts:
    config = context.config
    outline = llm_outline(config.llm)
    table = context.artifact("sequences")
    sample, manifest = Sequences.read_train(table, [0]), read_manifest(table)
    prompts = round(manifest.rows * int((sample.lengths >= 2).sum()) / max(manifest.files[shard_name(0)]["rows"], 1))
    titles = Catalogue.read(context.artifact("items")).titles
    length = tokens_per_prompt(config.llm, config.prompt, config.projection, outline["positions"], sample, titles)
    tokens = round(prompts * length)
    shares = config.workers.num_workers if config.llm.placement == "sharded" else 1
    # Forward and backward to the inputs, two operations a weight each; no weight of the LLM has a gradient.
    operations = 4 * outline["parameters"] * tokens * config.projection.epochs
    return {
        "llm": config.llm.name,
        "llm_parameters": outline["parameters"],
        "placement": config.llm.placement,
        "llm_mb_per_worker": round(outline["bytes"] / shares / 2**20),
        "prompts": prompts,
        "tokens_per_prompt": round(length),
        "tokens_per_epoch": tokens,
        "steps": config.projection.epochs * -(-prompts // config.projection.batch_size),
        "workers": config.workers.num_workers,
        "gpu_hours_at_100_tflops": round(operations / 1e14 / 3600, 4),
    }


def identity(context: Context) -> str:
    return model_identity(context.config.llm.name, context.config.llm.revision)


STEP = Step(
    "train-projection",
    sections=SECTIONS,
    inputs=("teacher", "alignment", "sequences", "items"),
    outputs=("projectors",),
    run=run,
    plan=plan,
    outside=identity,
)

if __name__ == "__main__":
    main(STEP)
