"""Training of Stage-1: the alignment network, and SBERT along with it where the texts are trained.

Plain torch, in one process or in a process group; knows nothing of Ray, artifacts or checkpoint files. A step's batch
is global: its rows are divided among the workers, and gradients are summed.

Dimensions: R rows of a batch, N = n + 1 items, D, S, J as in `network`
"""

import math
import time
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from allmrec.alignment.examples import Examples, Rows
from allmrec.alignment.losses import Losses, stage1_losses
from allmrec.alignment.network import AlignmentConfig, AlignmentNetwork
from allmrec.alignment.texts import FrozenTexts, TrainedTexts, make_dense
from allmrec.cf.teacher import Teacher
from allmrec.core.distributed import all_reduce_sum, local_shard, sum_gradients
from allmrec.core.rows import by_rows, in_parts
from allmrec.data.sequences import Sequences
from allmrec.data.training_users import TrainingUsers

MOST_RANKED = 2000  # items whose ranks measure the alignment
_NAMES = [field.name for field in fields(Losses)]


class AlignmentTraining:
    """A training run that can be stopped after any epoch and taken up again from its `state_dict`."""

    def __init__(
        self,
        config: AlignmentConfig,
        teacher: Teacher,
        users: TrainingUsers | Sequences,
        texts_NS: torch.Tensor,
        seed: int,
        device: torch.device | str = "cpu",
        trained_texts: TrainedTexts | None = None,
        drawable: np.ndarray | None = None,
    ):
        """
        Args:
            teacher: frozen.
            users: those to learn from; or training sequences (`Sequences.read_train`), all in one part.
            texts_NS: Q of the catalogue, before any fine-tuning; row 0 is padding.
            trained_texts: SBERT, where it is fine-tuned along, on the device.
            drawable: `Catalogue.drawable`, which unseen items come from; by default every item.
        """
        self.config, self.device = config, torch.device(device)
        teacher = teacher.to(self.device)
        self.items_ND, texts_NS = teacher.item_embeddings.detach(), texts_NS.to(self.device)
        assert len(self.items_ND) == len(texts_NS), "teacher and texts are of one catalogue"
        self.examples = Examples(config, teacher, users, seed, drawable)
        torch.manual_seed(seed)
        self.network = AlignmentNetwork(
            self.items_ND.shape[1], texts_NS.shape[1], config.joint_dim, config.activation
        ).to(self.device)
        if config.standardise:
            self.network.standardise(self.items_ND, texts_NS)
        self.texts = trained_texts or FrozenTexts(texts_NS)
        self.parameters = [*self.network.parameters(), *self.texts.parameters()]
        self.optimiser = torch.optim.Adam(self.parameters, lr=config.learning_rate, fused=True)
        self.epoch = 0  # epochs done
        self.numbers: dict[str, float] = {}  # of the last one

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "texts": self.texts.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "epoch": self.epoch,
            "numbers": self.numbers,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.texts.load_state_dict(state["texts"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.numbers = state["epoch"], state["numbers"]

    def rounds(self) -> Iterator[dict[str, float]]:
        """Train what is left of the epochs, and yield the mean losses and the speed of each."""
        while self.epoch < self.config.epochs:
            started = time.monotonic()
            losses = self.train_epoch()
            seconds = time.monotonic() - started
            self.numbers = losses | {"users_per_s": round(len(self.examples) / seconds)} | self._reading(seconds)
            yield self.numbers

    def train_epoch(self) -> dict[str, float]:
        """One pass over the users. Returns each loss over their number.

        Raises:
            ValueError: a loss is NaN or inf.
        """
        sums, users = torch.zeros(len(_NAMES), dtype=torch.float64, device=self.device), 0
        for rows in self.examples.batches(self.epoch):
            losses = self.train_step(rows)
            sums += torch.stack([getattr(losses, name) for name in _NAMES]).detach()
            users += rows.num_users
        means = dict(zip(_NAMES, (all_reduce_sum(sums) / max(users, 1)).tolist(), strict=True))
        if not all(math.isfinite(value) for value in means.values()):
            raise ValueError(f"the losses are {means} in epoch {self.epoch + 1}; lower alignment.learning_rate")
        self.epoch += 1
        return means

    def train_step(self, rows: Rows) -> Losses:
        """One step on a global batch. Returns the losses of this worker's rows."""
        matched = rows.weight_R > 0  # their texts are read, which is the work to divide evenly
        read, others = np.flatnonzero(matched), np.flatnonzero(~matched)
        losses = self.losses(rows.take(np.concatenate([read[self.texts.own(rows.item_R[read])], local_shard(others)])))
        self.optimiser.zero_grad()
        losses.total(self.config, rows.num_users).backward()
        make_dense(self.parameters)
        sum_gradients(self.parameters)
        self.optimiser.step()
        return losses

    def losses(self, rows: Rows) -> Losses:
        """Of the given rows, weighted and summed."""
        item_R, target_R, positive_R, weight_R = (
            torch.from_numpy(column).to(self.device)
            for column in (rows.item_R.astype("int64"), rows.target_R, rows.positive_R, rows.weight_R)
        )
        texts_MS = self.texts(rows.item_R[rows.weight_R > 0])
        x_RD = self.examples.x_PD[target_R]
        return stage1_losses(self.network, self.items_ND[item_R], texts_MS, x_RD, positive_R, weight_R)

    def _reading(self, seconds: float) -> dict[str, float]:
        """How SBERT read since the last time, on all workers together."""
        if not isinstance(self.texts, TrainedTexts):
            return {}
        counts = torch.tensor([self.texts.read, self.texts.padded], dtype=torch.float64, device=self.device)
        self.texts.read = self.texts.padded = 0
        read, padded = all_reduce_sum(counts).tolist()
        return {"tokens_per_s": round(read / seconds), "padding %": round(100 * (1 - read / max(padded, 1)), 2)}


@torch.inference_mode()
def alignment_quality(
    e_NJ: torch.Tensor, q_NJ: torch.Tensor, items_R: torch.Tensor, block: int = 1024
) -> dict[str, float]:
    """How well q replaces e on the given items.

    Returns:
        the mean squared error, the mean cosine, and the rank of q_i among all items' text embeddings by distance to
        e_i: `recall_at_1`, how often it is the first, and `mean_rank_fraction`, the mean share of items before it
        (chance: 0.5). Of more items than MOST_RANKED some are ranked, evenly spaced: ranking all costs their square.
    """
    if not len(items_R):
        return {}
    e_RJ, q_RJ = e_NJ[items_R], q_NJ[items_R]
    ranked = slice(None, None, -(-len(items_R) // MOST_RANKED))
    before_R = torch.cat(
        [
            sum((torch.cdist(e, part) < (e - q).norm(dim=1, keepdim=True)).sum(1) for part in in_parts(q_NJ[1:]))
            for e, q in zip(e_RJ[ranked].split(block), q_RJ[ranked].split(block), strict=True)
        ]
    )
    return {
        "mse": F.mse_loss(e_RJ, q_RJ).item(),
        "cosine": F.cosine_similarity(e_RJ, q_RJ).mean().item(),
        "recall_at_1": (before_R == 0).double().mean().item(),
        "mean_rank_fraction": (before_R / (len(q_NJ) - 1)).mean().item(),
    }


@torch.inference_mode()
def spread_kept(before_NS: torch.Tensor, after_NS: torch.Tensor) -> dict[str, float]:
    """What fine-tuning has left of the spread of Q: row 0, padding, does not count.

    Returns:
        `text_variance_kept`, the ratio of the variances, and `text_dimensions_kept`, that of the effective dimensions
        (of variances v along the principal axes: (sum v)^2 / sum v^2).
    """
    (variance, dimensions), (kept_variance, kept_dimensions) = _spread(before_NS[1:]), _spread(after_NS[1:])
    return {
        "text_variance_kept": kept_variance / variance,
        "text_dimensions_kept": kept_dimensions / dimensions,
    }


def _spread(rows_ND: torch.Tensor) -> tuple[float, float]:
    mean_D = rows_ND.mean(0)
    centred_ND = by_rows(lambda rows_RD: rows_RD - mean_D, rows_ND)
    covariance_DD = centred_ND.T @ centred_ND / len(rows_ND)
    variance = covariance_DD.trace()
    return variance.item(), (variance.square() / covariance_DD.square().sum()).item()
