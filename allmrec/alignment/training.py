"""Training of Stage-1: each user's last training item and one negative, over frozen embeddings.

Plain torch, in one process or in a process group; knows nothing of Ray, artifacts or checkpoint files. User
representations are computed once: the teacher is frozen. Batches and negatives are drawn by counter.

Dimensions: U users, B users of a batch, R = 2 B rows, N = n + 1 items, D, S, J as in `network`
"""

import time
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from allmrec.alignment.losses import Losses, stage1_losses
from allmrec.alignment.network import AlignmentConfig, AlignmentNetwork
from allmrec.cf.teacher import Teacher
from allmrec.data.sequences import Sequences
from allmrec.distributed import own, sum_gradients, summed
from allmrec.hashing import draws, key64, uniforms
from allmrec.negatives import draw_negatives

_BATCHES, _HELD_OUT = 0x4142, 0x4148  # purposes of random draws


class AlignmentTraining:
    """A training run that can be stopped after any epoch and taken up again from its `state_dict`."""

    def __init__(
        self,
        config: AlignmentConfig,
        teacher: Teacher,
        sequences: Sequences,
        texts_NS: torch.Tensor,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        """
        Args:
            teacher: frozen.
            sequences: the training part of everyone's history (`Sequences.read_train`).
            texts_NS: Q of the catalogue; row 0 is padding.
        """
        self.config, self.seed, self.device = config, seed, torch.device(device)
        teacher = teacher.to(self.device)
        self.items_ND = teacher.item_embeddings.detach()
        self.texts_NS = texts_NS.to(self.device)
        assert len(self.items_ND) == len(self.texts_NS), "teacher and texts are of one catalogue"
        learnable = np.flatnonzero(sequences.lengths >= 2)  # a last item and a history before it
        if not len(learnable):
            raise ValueError("no user has two training interactions, so there is nothing to align; add data")
        self.sequences = sequences.take(learnable)
        self.hashes = self.sequences.hashes()
        self.targets = self.sequences.items[self.sequences.offsets[1:] - 1]
        self.x_UD = teacher.represent(self.sequences.shortened(self.sequences.lengths - 1)).clone()
        numbers = np.arange(len(self.items_ND), dtype=np.uint64)
        # Neither padding nor items without an E_i: the one point that they share would draw their q_i together.
        self.known = self.items_ND.any(1).cpu().numpy()
        self.held_out = uniforms(numbers, key64(seed, _HELD_OUT), 1)[:, 0] < config.held_out
        torch.manual_seed(seed)
        self.network = AlignmentNetwork(self.items_ND.shape[1], self.texts_NS.shape[1], config.joint_dim)
        self.network.to(self.device).standardise(self.items_ND, self.texts_NS)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        self.epoch = 0  # epochs done

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch = state["epoch"]

    def rounds(self) -> Iterator[dict[str, float]]:
        """Train what is left of the epochs, and yield the mean losses of each."""
        while self.epoch < self.config.epochs:
            started = time.monotonic()
            losses = self.train_epoch()
            yield losses | {"users_per_s": round(len(self.sequences) / (time.monotonic() - started))}

    def train_epoch(self) -> dict[str, float]:
        """One pass over the users. Returns the mean of each loss over the rows."""
        negatives = draw_negatives(
            self.hashes,
            self.sequences.rows(),
            self.sequences.items,
            len(self.items_ND) - 1,
            1,
            self.seed,
            self.epoch,
        )[:, 0]
        items = np.stack([self.targets, negatives], axis=1)  # (U, 2)
        usable = self.known[items] & ~self.held_out[items]
        key = key64(self.seed, self.epoch, _BATCHES)
        order = draws(self.hashes, key, 1)[:, 0].argsort(kind="stable")
        order = order[usable[order].any(1)]
        size = self.config.batch_size
        names = [field.name for field in fields(Losses)]
        sums = torch.zeros(len(names), dtype=torch.float64, device=self.device)
        for first in range(0, len(order), size):
            users = order[first : first + size]
            losses = self._losses(own(users), items, usable)
            self.optimiser.zero_grad()
            (losses.total(self.config.alpha, self.config.beta) / int(usable[users].sum())).backward()
            sum_gradients(self.network.parameters())
            self.optimiser.step()
            sums += torch.stack([getattr(losses, name) for name in names]).detach()
        self.epoch += 1
        means = summed(sums) / int(usable[order].sum())
        return dict(zip(names, means.tolist(), strict=True))

    def _losses(self, users: np.ndarray, items: np.ndarray, usable: np.ndarray) -> Losses:
        """The summed losses of this worker's users."""
        at_user, at_column = usable[users].nonzero()
        user_R = torch.from_numpy(users[at_user]).to(self.device)
        item_R = torch.from_numpy(items[users[at_user], at_column]).long().to(self.device)
        positive_R = torch.from_numpy(at_column == 0).to(self.device)
        return stage1_losses(self.network, self.items_ND[item_R], self.texts_NS[item_R], self.x_UD[user_R], positive_R)

    def joint(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(e_NJ, q_NJ) of the catalogue."""
        return self.network.joint(self.items_ND, self.texts_NS)


@torch.inference_mode()
def alignment_quality(
    e_NJ: torch.Tensor, q_NJ: torch.Tensor, items_R: torch.Tensor, block: int = 1024
) -> dict[str, float]:
    """How well q stands in for e on the given items.

    Returns:
        the mean squared error, the mean cosine, and where q_i stands among all items' text forms by distance to
        e_i: `nearest`, how often it is the first, and `nearer`, the mean share of items before it (chance: 0.5).
    """
    if not len(items_R):
        return {}
    e_RJ, q_RJ = e_NJ[items_R], q_NJ[items_R]
    before_R = torch.cat(
        [
            (torch.cdist(e, q_NJ[1:]) < (e - q).norm(dim=1, keepdim=True)).sum(1)
            for e, q in zip(e_RJ.split(block), q_RJ.split(block), strict=True)
        ]
    )
    return {
        "mse": F.mse_loss(e_RJ, q_RJ).item(),
        "cosine": F.cosine_similarity(e_RJ, q_RJ).mean().item(),
        "nearest": (before_R == 0).double().mean().item(),
        "nearer": (before_R / (len(q_NJ) - 1)).mean().item(),
    }
