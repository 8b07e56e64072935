"""What Stage-2 learns under one budget of prompts, variant by variant, and what the frozen LLM can be told at all.

    python -m benchmarks.learning --config jobs/configs/real-small.yaml --prompts 640 --variants paper,candidates
    python -m benchmarks.learning --config jobs/configs/real-small.yaml --probe

Needs a workspace with `prepare`, `embed`, `train-cf` and `train-alignment` done. Trains each variant in this process on
the same prompts, and ranks the same validation users by the trie (1 positive and 19 random negatives); test users are
never read. Beside Hit@1 are the share of the first loss that is about which candidate it is (the loss on the trie over
equation 8's), the norm of the gradient at the projectors, and how far another soft token moves the probabilities. With
`--probe` nothing is trained: it asks what the LLM does with given soft tokens (`learning_probe`).
"""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer

from allmrec.alignment.joint import EmbeddingChoice
from allmrec.alignment.network import load_joint
from allmrec.cf.teacher import load_teacher
from allmrec.cf.training import ValidationCases
from allmrec.core.hashing import Draw, key64
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences
from allmrec.data.trained_items import read_trained_items
from allmrec.data.training_users import Sample, TrainingUsers
from allmrec.llm.batches import SoftTokens
from allmrec.llm.loading import load_llm, load_tokenizer, max_positions
from allmrec.llm.prompt import PromptBuilder, Titles
from allmrec.llm.ranking import Ranker
from allmrec.metrics import evaluate_scores
from allmrec.projection.examples import Examples
from allmrec.projection.projectors import item_inputs
from allmrec.projection.stage2 import Stage2Model
from allmrec.projection.training import ProjectionTraining
from benchmarks.learning_probe import probe
from benchmarks.process_group import group_of_one
from benchmarks.report import ROOT, Benchmark, Row
from jobs.config import Config, load_config
from jobs.runtime.command import errors_in_one_line
from jobs.runtime.console import Console

NAME = "learning"
_CANDIDATES = ["projection.loss=candidates", "projection.warmup_steps=5", "projection.learning_rate_schedule=linear"]
_BEFORE = ["prompt.slots=before"]
_CHOICE = ["projection.user_input=choice", *_BEFORE]
_SPREAD = [*_CHOICE, "projection.start=spread", "projection.sharpness=3"]


def _candidates(rate: float, *others: str) -> list[str]:
    return [*_CANDIDATES, f"projection.learning_rate={rate}", *others]


# Over the config's own keys: where variants begin, unless they or --set say otherwise.
BEGINNING = ["projection.start=ordinary", "prompt.slots=behind"]
VARIANTS: dict[str, list[str]] = {
    "paper": ["projection.loss=title", "projection.learning_rate=1e-4"],
    "title-1e-3": [
        "projection.loss=title",
        "projection.learning_rate=1e-3",
        "projection.learning_rate_schedule=linear",
        "projection.warmup_steps=5",
    ],
    "candidates-1e-4": _candidates(1e-4),
    "candidates": _candidates(1e-3),
    "candidates-3e-3": _candidates(3e-3),
    "teacher": _candidates(1e-3, "projection.start=teacher"),
    "norm": _candidates(1e-3, "projection.start=teacher", "projection.norm_layer=true"),
    "distilled": _candidates(1e-3, "projection.start=teacher", "projection.distillation=0.5"),
    "before": _candidates(1e-3, "projection.start=teacher", *_BEFORE),
    "vocabulary": _candidates(1e-3, "projection.start=vocabulary"),
    "before-vocabulary": _candidates(1e-3, "projection.start=vocabulary", *_BEFORE),
    "before-1e-4": _candidates(1e-4, "projection.start=teacher", *_BEFORE),
    "before-vocabulary-1e-4": _candidates(1e-4, "projection.start=vocabulary", *_BEFORE),
    "before-choice-1": _candidates(1e-4, "projection.start=vocabulary", *_CHOICE, "projection.sharpness=1"),
    "before-choice-3": _candidates(1e-4, "projection.start=vocabulary", *_CHOICE, "projection.sharpness=3"),
    "before-choice-10": _candidates(1e-4, "projection.start=vocabulary", *_CHOICE, "projection.sharpness=10"),
    "before-spread": _candidates(1e-3, *_SPREAD),
    "before-spread-3e-4": _candidates(3e-4, *_SPREAD),
    "before-spread-1e-4": _candidates(1e-4, *_SPREAD),
    "before-ordinary": _candidates(1e-3, *_BEFORE),
    "before-title": ["projection.loss=title", "projection.learning_rate=1e-3", "projection.start=teacher", *_BEFORE],
    "before-distilled": _candidates(1e-3, "projection.start=teacher", "projection.distillation=0.5", *_BEFORE),
    "before-norm": _candidates(1e-3, "projection.start=teacher", "projection.norm_layer=true", *_BEFORE),
    "before-scale-2": _candidates(1e-3, "projection.start=teacher", "projection.soft_token_scale=2", *_BEFORE),
}


class Bench:
    """A prepared workspace and its LLM, from which trainings are made."""

    def __init__(self, config: Config):
        self.workspace, self.llm, self.tokenizer = config.workspace, load_llm(config.llm), load_tokenizer(config.llm)
        self.teacher, (self.e_NJ, self.q_NJ) = (
            load_teacher(self.workspace.teacher),
            load_joint(self.workspace.alignment),
        )
        popularity = read_trained_items(self.workspace.teacher).column("popularity").to_numpy()
        self.popularity_N = np.append(0, popularity)
        self.catalogue = Catalogue.read(self.workspace.items)
        self.sequences = Sequences.read_train(self.workspace.sequences)

    def builder(self, config: Config, soft: bool = True) -> PromptBuilder:
        titles = Titles.tokenise(self.catalogue.titles, self.tokenizer, config.prompt.max_title_tokens)
        return PromptBuilder(config.prompt, self.tokenizer, titles, soft, max_tokens=max_positions(self.llm))

    def cases(self, config: Config, users: int) -> ValidationCases:
        return ValidationCases.read(self.workspace.evaluation_cases, self.workspace.sequences, users, config.seed)

    def training(self, config: Config, cases: ValidationCases | None = None) -> ProjectionTraining:
        projection = config.projection
        items_ND = self.teacher.item_embeddings.detach()
        choice = EmbeddingChoice.of(self.popularity_N, items_ND, config.bundle.min_interactions_for_cf)
        sample = Sample(projection.max_users, key64(config.seed, Draw.PROJECTION_USERS))
        return ProjectionTraining(
            projection,
            config.llm,
            "replicated",
            self.llm,
            self.teacher,
            item_inputs(projection, choice, self.e_NJ, self.q_NJ, items_ND, config.seed),
            choice.uses_text_N,
            Examples(
                TrainingUsers.of(self.sequences, sample),
                self.builder(config),
                projection.num_candidates,
                config.seed,
                projection.targets,
                self.catalogue.drawable,
            ),
            cases,
        )


def variant(bench: Bench, config: Config, cases: ValidationCases) -> Row:
    """Train once; what came of it."""
    run = bench.training(config, cases)
    numbers: Row = first_step(bench, config)
    rounds = list(run.rounds())
    last = run.curve[-1]["hit@1"]
    return numbers | {
        "loss": rounds[-1]["loss"],
        "prompts/s": float(np.mean([row["prompts_per_s"] for row in rounds])),
        "Hit@1": last,
        "± se": (last * (1 - last) / max(len(cases), 1)) ** 0.5,
        "NDCG@10": run.curve[-1]["ndcg@10"],
        "calibrated Hit@1": calibrated(bench, config, run),
        "curve": " ".join(f"{point['hit@1']:.3f}" for point in run.curve),
        "another token moves": another_token(run),
    }


@torch.no_grad()
def untrained(bench: Bench, config: Config, cases: ValidationCases) -> tuple[SoftTokens, np.ndarray]:
    """Soft tokens of the cases' users and of all items before any step, and the teacher's scores of the candidates."""
    run = bench.training(config)
    inputs = run._inputs(cases.histories, np.arange(len(bench.popularity_N)), cases.candidates)
    x_BD = bench.teacher.represent(cases.histories)
    score_BC = bench.teacher.scores(x_BD, torch.from_numpy(cases.candidates).long())
    return run.projectors.soft(*inputs), score_BC.numpy()


@torch.no_grad()
def calibrated(bench: Bench, config: Config, run: ProjectionTraining) -> float:
    """Hit@1 by log P less that of the prompt without soft tokens: contextual calibration (Zhao et al. 2021)."""
    plain = Ranker(bench.llm, bench.builder(config, soft=False), config.llm.tokens_per_batch)
    hits = []
    for batch in run.validation:
        log_p_BC = run.engine(batch, *run._inputs(batch.histories, batch.items, batch.candidates)).numpy()
        prior_BC = plain.log_probabilities(batch.histories, batch.order.shown(batch.candidates))
        hits.append(evaluate_scores(batch.order.unshuffled(log_p_BC - prior_BC), batch.candidates)[:, 0])
    return float(np.concatenate(hits).mean())


def first_step(bench: Bench, config: Config) -> Row:
    """Before any step, of one batch: both losses, and the norm of the gradient at the projectors."""
    found: Row = {}
    for loss in ("title", "candidates"):
        changed = config.projection.model_copy(update={"loss": loss, "distillation": 0.0, "validation_users": 0})
        run = bench.training(config.model_copy(update={"projection": changed}))
        projectors = copy.deepcopy(run.projectors)
        # Without DeepSpeed, which takes every gradient for a step's.
        run.engine = Stage2Model(bench.llm, projectors, run.engine.module.padding)
        users, prompts = run.examples.global_batch(0, 0, config.projection.batch_size)
        terms = len(users)  # of both, so that they can be compared
        total = torch.stack([run._forward(batch) for batch in run._passes(users, prompts)]).sum() / terms
        gradients = torch.autograd.grad(total, list(projectors.parameters()))
        found[f"{loss} loss"] = total.item()
        found[f"{loss} gradient"] = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    return found | {"about which, %": 100 * found["candidates loss"] / found["title loss"]}


@torch.no_grad()
def another_token(run: ProjectionTraining) -> float:
    """Mean total variation of P when the target's soft token becomes that of another item of the batch."""
    batch = run.validation[0]
    x_BD, e_IJ = run._inputs(batch.histories, batch.items, batch.candidates)
    before = run.engine(batch, x_BD, e_IJ).exp()
    targets = np.searchsorted(batch.items, batch.candidates[:, 0])
    e_IJ[targets] = e_IJ[np.roll(targets, 1)]
    after = run.engine(batch, x_BD, e_IJ).exp()
    return float((before - after).abs().sum(1).mean() / 2)


def main(
    config: Annotated[Path, typer.Option(help="YAML file of a run with Stage-1 done")] = Path(
        "jobs/configs/real-small.yaml"
    ),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="path.to.key=value, for every variant")] = None,
    variants: Annotated[str, typer.Option(help=f"by commas, of {', '.join(VARIANTS)}")] = ",".join(VARIANTS),
    prompts: Annotated[int, typer.Option(help="that each variant is trained on")] = 640,
    every: Annotated[int | None, typer.Option(help="prompts between validations; default: a quarter")] = None,
    users: Annotated[int, typer.Option(help="about how many validation users")] = 200,
    only_probe: Annotated[bool, typer.Option("--probe", help="train nothing; ask what the LLM follows")] = False,
    threads: Annotated[int, typer.Option(help="of torch")] = 2,
    root: Annotated[Path, typer.Option(help="folder that holds what benchmarks write")] = ROOT,
    log_json: Annotated[bool, typer.Option("--log-json", help="JSON lines instead of progress bars")] = False,
) -> None:
    """Train the variants one after another, or probe the LLM."""
    settings = {"config": config, "set": overrides, "prompts": prompts, "users": users}
    benchmark = Benchmark(NAME, Console(log_json), settings, root)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    with errors_in_one_line(), TemporaryDirectory() as folder, group_of_one(folder):
        if unknown := set(variants.split(",")) - set(VARIANTS):
            raise ValueError(f"--variants {sorted(unknown)}: there are {', '.join(VARIANTS)}")
        base = load_config(config, overrides or [])
        bench = Bench(base)
        budget = [
            f"projection.max_users={prompts}",
            "projection.epochs=1",
            f"projection.validate_every_prompts={every or max(prompts // 4, 1)}",
        ]
        if only_probe:
            for slots in ("behind", "before"):
                changed = load_config(config, [*(overrides or []), f"prompt.slots={slots}"])
                cases = bench.cases(changed, users)
                probe(benchmark, slots, bench.llm, bench.builder, changed, cases, *untrained(bench, changed, cases))
        else:
            for name in variants.split(","):
                changed = load_config(config, [*BEGINNING, *(overrides or []), *budget, *VARIANTS[name]])
                numbers = variant(bench, changed, bench.cases(changed, users))
                benchmark.measured({"variant": name, "prompts": prompts}, numbers)
    torch.set_flush_denormal(False)
    benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
