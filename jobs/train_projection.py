"""Stage-2: project the user's and the items' representations into the frozen LLM's token space (paper section 4.2).

    python -m jobs.train_projection --config jobs/configs/demo.yaml

Reads `teacher`, `alignment`, `sequences`, `items` and the validation part of `evaluation_cases`, and the LLM; writes
`projectors`. Each worker of Ray Train holds the LLM, or DeepSpeed ZeRO-3 cuts it over them (`llm.placement`); a
worker holds at most `projection.memory_mb` of the users that train, as flat arrays.
"""

from typing import Any, get_args

import numpy as np
import torch

from allmrec.alignment.joint import EmbeddingChoice
from allmrec.alignment.network import load_joint
from allmrec.cf.teacher import load_teacher
from allmrec.cf.training import ValidationCases
from allmrec.core.artifacts import read_manifest, shard_name, writing
from allmrec.core.distributed import rank_and_world_size
from allmrec.core.pretrained import model_identity
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import read_drawable, read_titles, some_titles
from allmrec.data.sequences import Sequences
from allmrec.data.trained_items import check_trained_on, read_trained_items
from allmrec.data.training_users import num_parts
from allmrec.llm.loading import LLMConfig, Placement, load_tokenizer, max_positions, torch_dtype
from allmrec.llm.prompt import PromptBuilder, Titles
from allmrec.metrics import METRICS
from allmrec.projection.engine import checksum, load_llm_with_placement
from allmrec.projection.estimate import TITLES, matmul_rate, tokens_per_prompt
from allmrec.projection.examples import EXAMPLE_BYTES, Examples, training_users
from allmrec.projection.placement import (
    Outline,
    activation_bytes,
    choose_placement,
    free_bytes,
    gathered_bytes,
    llm_outline,
    worker_bytes,
)
from allmrec.projection.projectors import item_inputs, save_projectors
from allmrec.projection.settings import Stage2Config
from allmrec.projection.stage2 import Stage2Training
from allmrec.projection.training import ProjectionTraining
from jobs.runtime.command import main
from jobs.runtime.console import Console
from jobs.runtime.preflight import Needs
from jobs.runtime.ray_data import on_worker
from jobs.runtime.ray_train import Loop, device, fit, resume, run_rounds
from jobs.runtime.step import Context, Stats, Step

SECTIONS = ("projection", "prompt", "llm", "bundle")  # bundle says which form shows an item


def run(context: Context) -> Stats:
    config, workspace = context.config, context.workspace
    for model in (workspace.teacher, workspace.alignment):
        on_worker(check_trained_on, model, workspace.items)
    settings = {
        **{name: getattr(config, name) for name in SECTIONS},
        "seed": config.seed,
        **{name: workspace.at(name) for name in (*STEP.inputs, *STEP.outputs)},
    }
    return fit_and_write(context, Workspace.projectors, SECTIONS, "train-projection", loop, settings)


def fit_and_write(
    context: Context, artifact: str, sections: tuple[str, ...], verb: str, loop: Loop, settings: dict[str, Any]
) -> Stats:
    """Run `loop` on the workers, commit the files that it wrote as `artifact`, and show the validation curve.

    Args:
        sections: of the config, kept in the manifest.
        verb: as for `fit`.
    """
    resolved = context.resolved(*sections)
    stats = fit(context, verb, loop, settings, total=100)  # per cent
    with writing(context.workspace.at(artifact), artifact, context.fingerprint, resolved) as out:
        out.add(stats.pop("files"))
        out.stats |= stats | {"llm": identity(context)}
    show_curve(context.console, out.stats["curve"])
    return {name: value for name, value in out.stats.items() if name != "curve"}


def show_curve(console: Console, curve: list[dict[str, float]]) -> None:
    """What validation found, and after how many prompts."""
    if curve:
        console.table("validation", list(curve[0]), [list(point.values()) for point in curve])


def loop(settings: dict[str, Any]) -> Stats:
    """On every worker: train, keep the best epoch; rank 0 writes its projectors."""
    # Where attention is sure, its softmax is full of numbers below 1e-38, and a CPU takes many times as long for each.
    torch.set_flush_denormal(True)
    projection, prompt, llm_config, bundle, seed = (settings[name] for name in (*SECTIONS, "seed"))
    llm_config = for_these_workers(llm_config)
    outline = llm_outline(llm_config)
    placement = placed(llm_config, projection.tokens_per_pass, projection.activation_checkpointing, outline)
    llm, tokenizer = load_llm_with_placement(llm_config, placement, outline.largest_weight), load_tokenizer(llm_config)
    titles = Titles.tokenise(read_titles(settings["items"]), tokenizer, prompt.max_title_tokens)
    builder = PromptBuilder(prompt, tokenizer, titles, soft=True, max_tokens=max_positions(llm))
    sequences, cases = settings["sequences"], None
    if projection.validation_users:
        cases = ValidationCases.read(settings["evaluation_cases"], sequences, projection.validation_users, seed)
    teacher, (e_NJ, q_NJ) = load_teacher(settings["teacher"]), load_joint(settings["alignment"])
    items_ND = teacher.item_embeddings.detach()
    popularity_N = np.append(0, read_trained_items(settings["teacher"], ["popularity"])["popularity"].to_numpy())
    choice = EmbeddingChoice.of(popularity_N, items_ND, bundle.min_interactions_for_cf)
    training = ProjectionTraining(
        projection,
        llm_config,
        placement,
        llm,
        teacher,
        item_inputs(projection, choice, e_NJ, q_NJ, items_ND, seed),
        choice.uses_text_N,
        Examples(
            training_users(sequences, projection, seed),
            builder,
            projection.num_candidates,
            seed,
            projection.targets,
            read_drawable(settings["items"]),
        ),
        cases,
        device(),
        resume(),
    )
    weights, rounds = trained(training, llm)
    if rank_and_world_size()[0] != 0:
        return {}
    files = save_projectors(settings["projectors"], weights, training.untrained)
    return {"files": files, "placement": placement, **stats_of(training, rounds)}


def trained(training: Stage2Training, llm: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """On every worker: train to the end; the best weights, and what each round said."""
    rounds = run_rounds(training)
    weights = training.best_weights()
    assert checksum(llm) == training.frozen_checksum, "training must not touch the LLM"
    return weights, rounds


def stats_of(training: Stage2Training, rounds: list[dict[str, float]]) -> Stats:
    """What there is to say of a finished training."""
    speeds = ("prompts_per_s", "tokens_per_s", "padding %")
    return {
        "users": len(training.examples.users),
        "prompts": len(training.examples),
        **training.examples.shortened(),
        "steps": training.step,
        "losses": [round(loss, 5) for loss in training.epoch_losses()],
        "curve": training.curve,
        **{f"best_{name}": training.best[name] for name in ("epoch", "prompts", *METRICS) if name in training.best},
        **{name: round(float(np.mean([numbers[name] for numbers in rounds])), 2) for name in speeds if rounds},
        "frozen_checksum": training.frozen_checksum,
    }


def for_these_workers(config: LLMConfig) -> LLMConfig:
    """Without groups that do not divide them: nodes were lost, and the groups are for speed, not for the result."""
    divided = rank_and_world_size()[1] % config.hpz_group == 0
    return config if divided else config.model_copy(update={"hpz_group": 1})


def placed(
    llm: LLMConfig, tokens_per_pass: int, checkpointing: bool, outline: Outline, weight_inputs: int = 0
) -> Placement:
    """On a worker: where the weights go; `auto` asks for the workers' free memory."""
    if llm.placement != "auto":
        return llm.placement
    activations = activation_bytes(outline, tokens_per_pass, checkpointing, weight_inputs)
    return choose_placement(outline, rank_and_world_size()[1], activations, free_bytes())


def plan(context: Context) -> Stats:
    return plan_of(context, context.config.projection)


def plan_of(context: Context, training: Stage2Config, soft: bool = True) -> Stats:
    """Of a training by Stage-2's loop, whose prompts have slots or are of text alone."""
    config = context.config
    outline, world = llm_outline(config.llm), config.workers.num_workers
    table = context.workspace.sequences
    sample, manifest = Sequences.read_train(table, [0]), read_manifest(table)
    sampled = sample.lengths[sample.lengths >= 2]
    share = manifest.files[shard_name(0)]["rows"] / max(manifest.rows, 1)
    users = round(len(sampled) / max(share, 1e-9))
    per_user = 1 if training.targets == "last" else float((sampled - 1).mean())
    users = min(users, training.max_users or users)
    prompts = round(users * per_user)
    titles = some_titles(context.workspace.items, TITLES)
    length = tokens_per_prompt(config.llm, config.prompt, training, outline.positions, sample, titles, soft)
    tokens = round(prompts * length)
    checkpointing = training.activation_checkpointing
    kept = activation_bytes(outline, training.tokens_per_pass, checkpointing, training.weight_inputs)
    placements = get_args(Placement) if config.llm.placement == "auto" else (config.llm.placement,)
    # Forward and backward to the inputs, two operations a weight each; no weight of the LLM has a gradient.
    operations = 4 * outline.parameters * tokens * training.epochs
    on_cpus = {}
    if not config.workers.gpus_per_worker:
        rate = world * matmul_rate(outline.token_dim, torch_dtype(config.llm), config.workers.cpus_per_worker)
        on_cpus["hours_at_this_hosts_matmul"] = round(operations / rate / 3600, 2)
    return {
        "llm": config.llm.name,
        "llm_parameters": outline.parameters,
        "weights_mb": round(outline.weight_bytes / 2**20),
        "activations_mb_per_worker": round(kept / 2**20),
        **{f"{name}_mb_per_worker": round(worker_bytes(outline, name, world, kept) / 2**20) for name in placements},
        **{f"{name}_gathers_mb_per_pass": round(gathered_bytes(outline, name, world) / 2**20) for name in placements},
        "users": users,
        "parts": num_parts(manifest, training.memory_mb, training.max_users, training.targets, EXAMPLE_BYTES),
        "prompts": prompts,
        "tokens_per_prompt": round(length),
        "tokens_per_epoch": tokens,
        "steps": training.epochs * -(-prompts // training.batch_size),
        "workers": world,
        **on_cpus,
        "gpu_hours_at_100_tflops": round(operations / 1e14 / 3600, 4),
    }


def identity(context: Context) -> str:
    return model_identity(context.config.llm.name, context.config.llm.revision)


STEP = Step(
    "train-projection",
    sections=SECTIONS,
    inputs=(
        Workspace.teacher,
        Workspace.alignment,
        Workspace.sequences,
        Workspace.items,
        Workspace.evaluation_cases,
    ),
    outputs=(Workspace.projectors,),
    run=run,
    plan=plan,
    external_inputs=identity,
    needs=Needs("training", models=lambda config: ("llm",)),
)

if __name__ == "__main__":
    main("train-projection")
