"""Train LLM-SRec, a system that `baselines` names beside A-LLMRec.

    python -m jobs.train_baselines --config jobs/configs/real-small.yaml

Reads `teacher`, `sequences`, `items` and the validation part of `evaluation_cases`, the LLM, and for `item_input:
joint` the `alignment`; writes `systems/llm-srec`: the readout's weights and all items' vectors. The LLM is held as by
`train-projection`.
"""

from typing import Any

import numpy as np
import torch

from allmrec.alignment.joint import EmbeddingChoice
from allmrec.alignment.network import load_joint
from allmrec.cf.teacher import Teacher, load_teacher
from allmrec.cf.training import ValidationCases
from allmrec.core.artifacts import read_manifest, shard_name, writing
from allmrec.core.distributed import rank_and_world_size
from allmrec.core.rows import Table
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import read_drawable, read_titles, some_titles
from allmrec.data.sequences import Sequences
from allmrec.data.trained_items import check_trained_on, read_trained_items
from allmrec.llm.loading import load_tokenizer, max_positions
from allmrec.llm.prompt import Titles
from allmrec.projection.engine import checksum, load_llm_with_placement
from allmrec.projection.examples import training_users
from allmrec.projection.placement import llm_outline
from allmrec.readout.examples import ReadoutExamples
from allmrec.readout.network import ReadoutConfig, save_readout
from allmrec.readout.prompts import ReadoutPrompts
from allmrec.readout.training import ReadoutTraining
from jobs.config import Config
from jobs.runtime.command import main
from jobs.runtime.preflight import Needs
from jobs.runtime.ray_data import on_worker
from jobs.runtime.ray_train import device, fit, resume, run_rounds
from jobs.runtime.step import Context, Stats, Step
from jobs.train_projection import for_these_workers, identity, placed

SECTIONS = ("baselines", "prompt", "llm")
_SAMPLE = 2000  # items and users whose prompts are counted for a plan


def run(context: Context) -> Stats:
    config, workspace, readout = context.config, context.workspace, named(context)
    inputs = STEP.under(config).inputs
    for model in {Workspace.teacher, Workspace.alignment}.intersection(inputs):
        on_worker(check_trained_on, workspace.at(model), workspace.items)
    settings = {
        "readout": readout,
        **{name: getattr(config, name) for name in ("prompt", "llm", "bundle", "seed")},
        **{name: workspace.at(name) for name in (*inputs, *STEP.outputs)},
    }
    resolved = context.resolved(*SECTIONS)
    stats = fit(context, "train-baselines", loop, settings, total=100)  # per cent
    with writing(workspace.llm_srec, Workspace.llm_srec, context.fingerprint, resolved) as out:
        out.add(stats.pop("files"))
        out.stats |= stats | {"llm": identity(context), "teacher": read_manifest(workspace.teacher).digest}
        if readout.item_input == "joint":
            out.stats |= {"alignment": read_manifest(workspace.alignment).digest, **_form(config)}
    return out.stats


def named(context: Context) -> ReadoutConfig:
    """Raises ValueError where the config names no system."""
    if context.config.llm_srec is None:
        raise ValueError("`baselines` names no system to train; set baselines: {llm_srec: {}}")
    return context.config.llm_srec


def loop(settings: dict[str, Any]) -> Stats:
    """On every worker: train, keep the best weights, read all items by them; rank 0 writes both."""
    torch.set_flush_denormal(True)  # as for Stage-2
    config, llm_config, seed = settings["readout"], settings["llm"], settings["seed"]
    llm_config = for_these_workers(llm_config)
    outline = llm_outline(llm_config)
    placement = placed(llm_config, config.tokens_per_pass, config.activation_checkpointing, outline)
    llm, tokenizer = load_llm_with_placement(llm_config, placement, outline.largest_weight), load_tokenizer(llm_config)
    items, sequences = settings[Workspace.items], settings[Workspace.sequences]
    titles = Titles.tokenise(read_titles(items), tokenizer, settings["prompt"].max_title_tokens)
    prompts, cases = ReadoutPrompts(settings["prompt"], tokenizer, titles, max_positions(llm)), None
    if config.validation_users:
        cases = ValidationCases.read(settings[Workspace.evaluation_cases], sequences, config.validation_users, seed)
    teacher = load_teacher(settings[Workspace.teacher])
    training = ReadoutTraining(
        config,
        llm_config,
        placement,
        llm,
        teacher,
        item_inputs(settings, teacher),
        ReadoutExamples(config, training_users(sequences, config, seed), prompts, seed, read_drawable(items)),
        cases,
        device(),
        resume(),
    )
    rounds = run_rounds(training)
    weights = training.best_weights()
    vectors_NV, frozen_checksum = training.best_vectors(weights), checksum(llm)
    assert frozen_checksum == training.frozen_checksum, "training must not touch the LLM"
    if rank_and_world_size()[0] != 0:
        return {}
    speeds = ("users_per_s", "tokens_per_s", "padding %")
    return {
        "files": save_readout(settings[Workspace.llm_srec], weights, training.readout.fixed(), vectors_NV),
        "placement": placement,
        "users": len(training.examples),
        "steps": training.step,
        "losses": [round(loss, 5) for loss in training.epoch_losses()],
        "curve": training.curve,
        **{f"best_{name}": value for name, value in training.best.items() if name in ("epoch", "hit@1", "ndcg@10")},
        **{name: round(float(np.mean([numbers[name] for numbers in rounds])), 2) for name in speeds if rounds},
        "frozen_checksum": frozen_checksum,
    }


def item_inputs(settings: dict[str, Any], teacher: Teacher) -> Table:
    """What f_I reads, by item index."""
    items_ND = teacher.item_embeddings.detach()
    if settings["readout"].item_input == "teacher":
        return items_ND
    trained = read_trained_items(settings[Workspace.teacher], ["popularity"])
    popularity_N = np.append(0, trained.column("popularity").to_numpy())
    choice = EmbeddingChoice.of(popularity_N, items_ND, settings["bundle"].min_interactions_for_cf)
    return choice.joint(*load_joint(settings[Workspace.alignment]))


def plan(context: Context) -> Stats:
    config, readout, workspace = context.config, named(context), context.workspace
    outline, num_items = llm_outline(config.llm), read_manifest(workspace.items).rows
    tokenizer, shown = load_tokenizer(config.llm), some_titles(workspace.items, _SAMPLE)
    titles = Titles.tokenise(shown, tokenizer, config.prompt.max_title_tokens)
    prompts = ReadoutPrompts(config.prompt, tokenizer, titles, outline.positions)
    some, manifest = Sequences.read_train(workspace.sequences, [0]), read_manifest(workspace.sequences)
    share = manifest.files[shard_name(0)]["rows"] / max(manifest.rows, 1)
    learnable = np.flatnonzero(some.lengths >= 2)
    users = some.take(learnable[:_SAMPLE]).shortened(some.lengths[learnable[:_SAMPLE]] - 1)
    sampled = Sequences(users.user_ids, users.offsets, (users.items % (len(shown) - 1) + 1).astype(np.int32))
    built = prompts.of_users(sampled)
    branches = prompts.branches(built, readout.readouts_per_prompt - 1)[1]
    user_tokens = float((built.lengths + 1 + branches.tokens(len(built))).mean())
    item_tokens = float(prompts.of_items(np.arange(1, len(shown))).lengths.mean()) + 1
    examples = len(learnable) if readout.targets == "last" else int((some.lengths[learnable] - 1).sum())
    count = round(examples / max(share, 1e-9))
    count = min(count, readout.max_users or count)
    steps = -(-count // readout.batch_size)
    items = _items_read(readout, num_items, count * (1 + len(branches) / len(built)), steps)
    tokens = round(count * user_tokens + items * item_tokens)
    return {
        "llm": config.llm.name,
        "users": count,
        "tokens_per_user": round(user_tokens),
        "tokens_per_item": round(item_tokens),
        "tokens_per_epoch": tokens,
        "tokens_of_all_items": round(num_items * item_tokens),
        "steps": readout.epochs * steps,
        "workers": config.workers.num_workers,
        "gpu_hours_at_100_tflops": round(4 * outline.parameters * tokens * readout.epochs / 1e14 / 3600, 4),
    }


def _items_read(readout: ReadoutConfig, num_items: int, readouts: float, steps: int) -> float:
    """Prompts of items in an epoch, an upper bound."""
    if readout.negatives != "round":
        return readouts * (1 + readout.num_negatives)
    rounds = -(-steps // readout.checkpoint_every_steps)
    return rounds * min(num_items, readout.round_items + readouts / rounds)


def external_inputs(context: Context) -> Any:
    """The LLM, and where the form of an item counts what decides it."""
    joint = named(context).item_input == "joint"
    return [identity(context), _form(context.config)] if joint else identity(context)


def _form(config: Config) -> Stats:
    return {"bundle.min_interactions_for_cf": config.bundle.min_interactions_for_cf}


def _alignment(config: Config) -> tuple[str, ...]:
    joint = config.llm_srec is not None and config.llm_srec.item_input == "joint"
    return (Workspace.alignment,) if joint else ()


STEP = Step(
    "train-baselines",
    algorithm=2,
    sections=("baselines.llm_srec", "prompt", "llm"),
    inputs=(Workspace.teacher, Workspace.sequences, Workspace.items, Workspace.evaluation_cases),
    outputs=(Workspace.llm_srec,),
    run=run,
    plan=plan,
    optional_inputs=_alignment,
    external_inputs=external_inputs,
    needs=Needs("training", models=lambda config: ("llm",)),
)

if __name__ == "__main__":
    main("train-baselines")
