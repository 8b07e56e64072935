"""Train TALLRec, a system that `baselines` names beside A-LLMRec: low-rank weights in the LLM, on prompts of titles.

    allmrec train-baselines --config jobs/configs/real-small.yaml

Reads `sequences`, `items` and the validation part of `evaluation_cases`, and the LLM: no teacher. Writes
`systems/tallrec`, in PEFT's layout. The LLM is placed as in `train-projection`.
"""

from typing import Any

import torch

from allmrec.cf.training import ValidationCases
from allmrec.core.distributed import rank_and_world_size
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import read_drawable, read_titles
from allmrec.llm.adapter import check_peft, refuse_unknown_modules, save_adapter
from allmrec.llm.loading import load_tokenizer, max_positions
from allmrec.llm.prompt import PromptBuilder, Titles
from allmrec.projection.engine import load_llm_with_placement
from allmrec.projection.examples import Examples, training_users
from allmrec.projection.placement import llm_outline, llm_without_weights
from allmrec.projection.tallrec import TALLRecConfig, TALLRecTraining
from jobs.config import Config
from jobs.runtime.preflight import Needs
from jobs.runtime.ray_train import device, resume
from jobs.runtime.step import Context, Stats, Step
from jobs.train_projection import fit_and_write, for_these_workers, identity, placed, plan_of, stats_of, trained

SECTIONS = ("baselines", "prompt", "llm")


def run(context: Context) -> Stats:
    config, workspace = context.config, context.workspace
    settings = {
        "tallrec": checked(config),
        **{name: getattr(config, name) for name in ("prompt", "llm", "seed")},
        **{name: workspace.at(name) for name in (*STEP.inputs, *STEP.outputs)},
    }
    return fit_and_write(context, Workspace.tallrec, SECTIONS, "train-baselines-tallrec", loop, settings)


def checked(config: Config) -> TALLRecConfig:
    """Raises ValueError if the config does not name TALLRec, PEFT is missing, or the LLM has no such layers."""
    if config.tallrec is None:
        raise ValueError("`baselines` does not name TALLRec; set baselines: {tallrec: {}}")
    check_peft()
    refuse_unknown_modules(llm_without_weights(config.llm), config.tallrec)
    return config.tallrec


def loop(settings: dict[str, Any]) -> Stats:
    """On every worker: train, keep the best weights; rank 0 writes them."""
    torch.set_flush_denormal(True)  # as for Stage-2
    config, prompt, llm_config, seed = (settings[name] for name in ("tallrec", "prompt", "llm", "seed"))
    llm_config = for_these_workers(llm_config)
    outline = llm_outline(llm_config)
    passes = (config.tokens_per_pass, config.activation_checkpointing)
    placement = placed(llm_config, *passes, outline, config.weight_inputs)
    llm, tokenizer = load_llm_with_placement(llm_config, placement, outline.largest_weight), load_tokenizer(llm_config)
    items, sequences, cases = settings[Workspace.items], settings[Workspace.sequences], None
    titles = Titles.tokenise(read_titles(items), tokenizer, prompt.max_title_tokens)
    builder = PromptBuilder(prompt, tokenizer, titles, soft=False, max_tokens=max_positions(llm))
    if config.validation_users:
        cases = ValidationCases.read(settings[Workspace.evaluation_cases], sequences, config.validation_users, seed)
    examples = Examples(
        training_users(sequences, config, seed),
        builder,
        config.num_candidates,
        seed,
        config.targets,
        read_drawable(items),
    )
    training = TALLRecTraining(config, llm_config, placement, llm, examples, cases, device(), resume())
    weights, rounds = trained(training, llm)
    if rank_and_world_size()[0] != 0:
        return {}
    return {
        "files": save_adapter(settings[Workspace.tallrec], weights, config, llm_config.name),
        "placement": placement,
        "trained_weights": sum(weight.numel() for weight in weights.values()),
        **stats_of(training, rounds),
    }


def plan(context: Context) -> Stats:
    return plan_of(context, checked(context.config), soft=False)


STEP = Step(
    "train-baselines tallrec",
    sections=("baselines.tallrec", "prompt", "llm"),
    inputs=(Workspace.sequences, Workspace.items, Workspace.evaluation_cases),
    outputs=(Workspace.tallrec,),
    run=run,
    plan=plan,
    external_inputs=identity,
    needs=Needs("training", models=lambda config: ("llm",)),
)
