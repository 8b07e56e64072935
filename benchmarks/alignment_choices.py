"""What each departure of Stage-1's default from the paper's preset changes, on validation users and withheld items.

    python -m benchmarks.alignment_choices --workspace runs/beauty

Each is switched alone, from the paper's preset and back from the default, with SBERT frozen in all of them; a tenth of
the items is withheld everywhere but in "nothing withheld". What Stage-2 could make of e and q is measured without an
LLM: F_U and F_I, MLPs of two layers, are trained so that their dot product chooses a user's last training item among
as many random ones as a prompt has, and choose among validation candidates then.

e Hit@1      all validation targets, items by e. The row "teacher" is the teacher's own product.
q Hit@1      targets that were withheld, items by q, through the same F_I: how q replaces e.
q closer     `alignment_quality` of withheld items: the share of items whose q is closer to e_i than q_i (chance: 0.5).
e spread     share of the mean square of e that is variation between items.
Q in e,      share of the variance of Q, and of E, in withheld items that the best linear map from e, and from q, gives
E in q       back: what the joint embeddings have of the other side.
Q variance,  `spread_kept` of the texts when the stand-in encoder is fine-tuned along, for a number of steps; it takes
Q dims       seconds, which SBERT does not.

Dimensions: N = n + 1 items (0 is padding), D = teacher.dim, S of texts, J of joint embeddings, H of the projections,
U users, B cases, C candidates
"""

from itertools import chain, count, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from torch.nn import functional as F

from allmrec.alignment.examples import held_out_items
from allmrec.alignment.network import AlignmentConfig
from allmrec.alignment.texts import DistinctTexts, TrainedTexts
from allmrec.alignment.training import AlignmentTraining, alignment_quality, spread_kept
from allmrec.cf.teacher import Teacher, load_teacher
from allmrec.cf.training import ValidationCases
from allmrec.core.workspace import open_workspace
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences
from allmrec.projection.projectors import ProjectionConfig
from allmrec.text.embeddings import read_texts
from allmrec.text.encoder import TextConfig, load_encoder
from benchmarks.report import ROOT, Benchmark
from jobs.runtime.command import errors_in_one_line
from jobs.runtime.console import Console

NAME = "alignment_choices"
WITHHELD = 0.1
_HIDDEN, _EPOCHS, _BATCH = 256, 2, 32  # of the projections
CHOICES: dict[str, dict[str, Any]] = {
    "unseen items at full weight": {"unseen_weight": 1},
    "standardised": {"standardise": True},
    "GELU": {"activation": "gelu"},
}


def settings() -> dict[str, dict[str, Any]]:
    """Of each variant, the keys of `alignment`."""
    paper: dict[str, Any] = {"preset": "paper", "text_encoder": "frozen", "held_out": WITHHELD}
    default: dict[str, Any] = {"held_out": WITHHELD}
    printed = AlignmentConfig(preset="paper")
    back = {
        f"default, not {name}": default | {key: getattr(printed, key) for key in keys} for name, keys in CHOICES.items()
    }
    return (
        {"paper": paper}
        | {f"paper, {name}": paper | keys for name, keys in CHOICES.items()}
        | {"default": default, "default, nothing withheld": {"held_out": 0}}
        | back
    )


class Measure:
    """A workspace's validation cases, and what e and q are worth on them."""

    def __init__(self, teacher: Teacher, sequences: Sequences, texts_NS: torch.Tensor, cases: ValidationCases):
        self.items_ND, self.texts_NS = teacher.item_embeddings.detach(), texts_NS
        self.x_BD = teacher.represent(cases.histories).clone()
        self.candidates_BC = torch.from_numpy(cases.candidates).long()
        known = sequences.take(np.flatnonzero(sequences.lengths >= 2))
        self.target_U = torch.from_numpy(known.items[known.offsets[1:] - 1]).long()
        self.x_UD = teacher.represent(known.shortened(known.lengths - 1)).clone()

    def __call__(self, e_NJ: torch.Tensor, q_NJ: torch.Tensor, withheld_N: torch.Tensor) -> dict[str, float]:
        known_N = ~withheld_N
        known_N[0] = False
        user, item = self.projections(e_NJ, known_N)
        numbers = {
            "e Hit@1": hits(user(self.x_BD), item(e_NJ), self.candidates_BC),
            "e spread": spread(e_NJ[known_N]),
        }
        if withheld_N.any():
            tested_B = withheld_N[self.candidates_BC[:, 0]]
            numbers |= {
                "q Hit@1": hits(user(self.x_BD[tested_B]), item(q_NJ), self.candidates_BC[tested_B]),
                "q closer": alignment_quality(e_NJ, q_NJ, withheld_N.nonzero()[:, 0])["mean_rank_fraction"],
            }
            for name, of_N, from_NJ in (("Q in e", self.texts_NS, e_NJ), ("E in q", self.items_ND, q_NJ)):
                found = linear_map(from_NJ[known_N], of_N[known_N])(from_NJ[withheld_N])
                numbers[name] = explained(of_N[withheld_N], found)
        return numbers

    def projections(self, e_NJ: torch.Tensor, known_N: torch.Tensor) -> tuple[nn.Module, nn.Module]:
        """F_U and F_I, trained as Stage-2 is, on users whose last item was not withheld."""
        torch.manual_seed(0)
        user, item = (
            nn.Sequential(nn.Linear(size, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, _HIDDEN))
            for size in (self.x_UD.shape[1], e_NJ.shape[1])
        )
        optimiser = torch.optim.Adam([*user.parameters(), *item.parameters()], lr=ProjectionConfig().learning_rate)
        users, items = known_N[self.target_U].nonzero()[:, 0], known_N.nonzero()[:, 0]
        for batch in (part for _ in range(_EPOCHS) for part in users[torch.randperm(len(users))].split(_BATCH)):
            negatives = items[torch.randint(len(items), (len(batch), self.candidates_BC.shape[1] - 1))]
            candidates = torch.cat([self.target_U[batch][:, None], negatives], dim=1)
            scores = torch.einsum("bh,bch->bc", user(self.x_UD[batch]), item(e_NJ[candidates])) / _HIDDEN**0.5
            optimiser.zero_grad()
            F.cross_entropy(scores, torch.zeros(len(batch), dtype=torch.long)).backward()
            optimiser.step()
        return user, item


@torch.no_grad()
def hits(user_BH: torch.Tensor, item_NH: torch.Tensor, candidates_BC: torch.Tensor) -> float:
    """How often the target, which is the first, scores above all its negatives."""
    scores_BC = torch.einsum("bh,bch->bc", user_BH, item_NH[candidates_BC])
    return (scores_BC[:, 0] > scores_BC[:, 1:].amax(1)).double().mean().item()


def fine_tuned(
    config: AlignmentConfig, teacher: Teacher, sequences: Sequences, catalogue: Catalogue, seed: int, steps: int
) -> dict[str, float]:
    """What Stage-1 leaves of the spread of Q."""
    text = TextConfig(model="standins/encoder")
    texts = TrainedTexts(config, load_encoder(text), DistinctTexts.of(catalogue.texts), text.max_chars)
    all_N = np.arange(catalogue.num_items + 1, dtype=np.int32)
    with torch.no_grad():
        before_NS = texts(all_N)
    training = AlignmentTraining(config, teacher, sequences, before_NS, seed, trained_texts=texts)
    batches = chain.from_iterable(training.examples.batches(epoch) for epoch in count())
    for rows in islice(batches, steps):
        training.train_step(rows)
    with torch.no_grad():
        kept = spread_kept(before_NS, texts(all_N))
    return {"Q variance": kept["text_variance_kept"], "Q dims": kept["text_dimensions_kept"]}


def linear_map(from_RJ: torch.Tensor, to_RD: torch.Tensor) -> Any:
    """The affine map that fits best, with a ridge that only keeps a singular system solvable."""
    mean_J, mean_D = from_RJ.mean(0), to_RD.mean(0)
    scale = (from_RJ - mean_J).square().mean().sqrt().clamp(min=1e-12)
    rows = ((from_RJ - mean_J) / scale).double()
    gram = rows.T @ rows + 1e-8 * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    weight_JD = torch.linalg.solve(gram, rows.T @ (to_RD - mean_D).double()).float()
    return lambda rows_RJ: (rows_RJ - mean_J) / scale @ weight_JD + mean_D


def spread(rows_RJ: torch.Tensor) -> float:
    return ((rows_RJ - rows_RJ.mean(0)).square().mean() / rows_RJ.square().mean()).item()


def explained(rows_RD: torch.Tensor, found_RD: torch.Tensor) -> float:
    return 1 - ((rows_RD - found_RD).square().sum() / (rows_RD - rows_RD.mean(0)).square().sum()).item()


def main(
    workspace: Annotated[Path, typer.Option(help="with prepare, embed and train-cf done")],
    seeds: Annotated[int, typer.Option(help="trainings of each variant")] = 3,
    epochs: Annotated[int, typer.Option(help="of Stage-1")] = 10,
    steps: Annotated[int, typer.Option(help="of Stage-1 with the stand-in encoder fine-tuned")] = 3000,
    root: Annotated[Path, typer.Option(help="folder that holds what benchmarks write")] = ROOT,
    log_json: Annotated[bool, typer.Option("--log-json", help="JSON lines instead of progress bars")] = False,
) -> None:
    """Train every variant with every seed, and measure what it leaves behind."""
    options = {"workspace": workspace, "seeds": seeds, "epochs": epochs, "steps": steps}
    benchmark = Benchmark(NAME, Console(log_json), options, root)
    with errors_in_one_line():
        opened = open_workspace(str(workspace))
        teacher, texts_NS = load_teacher(opened.teacher), read_texts(opened.item_text_embeddings)
        sequences = Sequences.read_train(opened.sequences)
        cases = ValidationCases.read(opened.evaluation_cases, opened.sequences, 10**9, 0)
        catalogue = Catalogue.read(opened.items, texts=True)
        measure = Measure(teacher, sequences, texts_NS, cases)
        products = hits(measure.x_BD, measure.items_ND, measure.candidates_BC)
        benchmark.measured({"Stage-1": "teacher", "seed": 0}, {"e Hit@1": products})
        for seed in range(seeds):
            for name, keys in settings().items():
                config = AlignmentConfig(**keys, epochs=epochs)
                training = AlignmentTraining(config, teacher, sequences, texts_NS, seed)
                list(training.rounds())
                withheld_N = torch.from_numpy(held_out_items(config, len(texts_NS), seed))
                withheld_N[0] = False
                numbers = measure(*training.network.joint(training.items_ND, texts_NS), withheld_N)
                numbers |= fine_tuned(config, teacher, sequences, catalogue, seed, steps)
                benchmark.measured({"Stage-1": name, "seed": seed}, numbers)
    benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
