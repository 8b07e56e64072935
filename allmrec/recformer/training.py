"""Training of RECFORMER in two stages (Recformer, section 2.3.2, Algorithm 1).

In the first stage the network recomputes the items' vectors before every epoch; the second stage continues from the
best epoch of the first with that epoch's vectors, which are fixed. The loss is the softmax of cosines with all items.
Plain torch, in one process or in a process group; knows nothing of Ray, artifacts or checkpoint files. Losses of users
are summed and there is no dropout, so neither the number of workers nor that of passes changes more than the order of
floating point sums.

Dimensions: B users of a step on this worker, K items that compete, N = n + 1 items (0 is padding), D of the states
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from allmrec.cf.batches import UserBatches
from allmrec.cf.training import ValidationCases, validate
from allmrec.core.distributed import all_reduce_sum, local_shard, sum_gradients
from allmrec.core.hashing import Draw, draws, key64
from allmrec.data.sequences import Sequences
from allmrec.llm.batches import token_budget_batches
from allmrec.recformer.config import RecformerConfig
from allmrec.recformer.network import Recformer, read_items
from allmrec.recformer.sentences import Sentences
from allmrec.recformer.teacher import RecformerTeacher

_WARM_UP, _WARM_SHARE = 100, 0.1  # steps over which the rate rises, and at most of a stage's

Weights = dict[str, torch.Tensor]


class RecformerTraining:
    """A training run that can be stopped after any epoch and resumed from its `state_dict`."""

    def __init__(
        self,
        config: RecformerConfig,
        network: Recformer,
        sentences: Sentences,
        sequences: Sequences,
        cases: ValidationCases,
        seed: int,
        device: torch.device | str = "cpu",
        drawable: np.ndarray | None = None,
    ):
        """
        Args:
            sequences: the training part of everyone's history (`Sequences.read_train`).
            cases: this worker's; without any on any worker, the last epoch is kept.
            drawable: `Catalogue.drawable`, the items that compete; by default every item.
        """
        self.config, self.sentences, self.cases, self.seed = config, sentences, cases, seed
        self.device, self.network = torch.device(device), network.to(device)
        self.users = UserBatches([lambda: sequences], int(sequences.lengths.max(initial=1)))
        self.users.hold(0)
        self.drawable = np.arange(1, len(sentences.words_NL)) if drawable is None else drawable
        self.competing_K = torch.from_numpy(self.drawable.astype(np.int64)).to(self.device)
        self.vectors_ND = torch.zeros(len(sentences.words_NL), network.dim, device=self.device)
        self.epoch = 0  # epochs done, of both stages
        self.best: dict[str, Any] = {"epoch": 0, "valid_ndcg@10": -1.0}
        self.best_users = self.best_items = self._weights()
        self.best_vectors_ND = self.vectors_ND
        self._begin_stage(1)

    def _begin_stage(self, stage: int) -> None:
        self.stage, self.first_epoch, self.step = stage, self.epoch, 0
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=self.config.rate, fused=True)

    def state_dict(self) -> dict[str, Any]:
        kept = ("epoch", "stage", "first_epoch", "step", "best", "best_users", "best_items", "best_vectors_ND")
        state = {name: getattr(self, name) for name in kept}
        return state | {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = dict(state)
        self.network.load_state_dict(state.pop("network"))
        optimiser = state.pop("optimiser")
        self._begin_stage(state["stage"])
        self.optimiser.load_state_dict(optimiser)
        for name, value in state.items():
            setattr(self, name, value)
        self.best_vectors_ND = self.best_vectors_ND.to(self.device)

    def rounds(self) -> Iterator[dict[str, float]]:
        """Train until both stages end, and yield the numbers of every epoch."""
        while self._next_stage():
            started, items = time.monotonic(), self.best_items
            if self.stage == 1:
                items, self.vectors_ND = self._weights(), self.item_vectors()
            else:
                self.vectors_ND = self.best_vectors_ND
            loss, tokens = self.train_epoch()
            seconds = time.monotonic() - started
            metrics = validate(self.teacher(), self.cases, "full", self.drawable)
            if metrics.get("valid_ndcg@10", np.inf) > self.best["valid_ndcg@10"]:
                self.best = {"epoch": self.epoch, "stage": self.stage, "valid_ndcg@10": -1.0, **metrics}
                self.best_users, self.best_items, self.best_vectors_ND = self._weights(), items, self.vectors_ND
            speeds = {"users_per_s": round(len(self) / seconds), "tokens_per_s": round(tokens / seconds)}
            yield {"stage": self.stage, "loss": loss, **speeds, **metrics}

    def _next_stage(self) -> bool:
        """Begin the second stage once the first has ended; returns whether there is an epoch to train."""
        config = self.config
        since_best = self.epoch - max(self.best["epoch"], self.first_epoch)
        if self.epoch - self.first_epoch < config.epochs and since_best < config.patience:
            return True
        if self.stage == 2:
            return False
        self.network.load_state_dict(self.best_users)
        self._begin_stage(2)
        return True

    def __len__(self) -> int:
        """Users with something to predict."""
        return len(self.users.sequences)

    def teacher(self) -> RecformerTeacher:
        """The network and the items' vectors as they are now."""
        return RecformerTeacher(self.network, self.sentences, self.vectors_ND, self.config.tokens_per_pass)

    def item_vectors(self) -> torch.Tensor:
        """I of Algorithm 1, by the network as it is now: (N, D)."""
        items = local_shard(np.arange(1, len(self.sentences.words_NL)))
        vectors_ND = torch.zeros_like(self.vectors_ND)
        vectors_ND[torch.from_numpy(items)] = read_items(
            self.network, self.sentences, items, self.config.tokens_per_pass
        )
        return all_reduce_sum(vectors_ND)

    def train_epoch(self) -> tuple[float, int]:
        """One pass over the users. Returns the mean loss of a user, and the number of tokens read.

        Raises:
            ValueError: there is nothing to learn from, or the loss is NaN or inf.
        """
        if not len(self):
            raise ValueError(
                "no user has two training interactions, so there is nothing to learn; check data.min_… and "
                "evaluation.split, or add data"
            )
        batches, parts = (key64(self.seed, self.epoch, draw) for draw in (Draw.RECFORMER_BATCHES, Draw.RECFORMER_PARTS))
        sums = torch.zeros(2, dtype=torch.float64)  # losses and tokens of this worker's users
        for users in self.users.of_epoch(self.config.batch_size, batches, parts):
            loss, tokens = self.train_step(users)
            if not math.isfinite(loss):
                raise ValueError(
                    f"RECFORMER's loss is {loss} in epoch {self.epoch + 1} of both stages; lower "
                    "baselines.recformer.learning_rate"
                )
            sums += torch.tensor([loss, tokens])
        self.epoch += 1
        loss, tokens = all_reduce_sum(sums.to(self.device)).tolist()
        return loss / len(self), round(tokens)

    def train_step(self, users: np.ndarray) -> tuple[float, int]:
        """One step on a global batch. Returns the summed loss of this worker's users, and their tokens."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.rate * self._share_of_rate()
        self.optimiser.zero_grad()
        losses = self.gradients(users)
        sum_gradients(self.network.parameters())
        self.optimiser.step()
        self.step += 1
        return losses

    def gradients(self, users: np.ndarray) -> tuple[float, int]:
        """Leave the gradients of this worker's share of a global batch's mean loss; returns as `train_step`."""
        histories, target_B = self.examples(local_shard(users))
        own_B = torch.from_numpy(np.searchsorted(self.drawable, target_B)).to(self.device)
        items_KD, lengths, total = self.vectors_ND[self.competing_K], self.sentences.lengths(histories), 0.0
        for rows in token_budget_batches(lengths, self.config.tokens_per_pass):
            texts = self.sentences.texts(histories.take(rows))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                users_BD = self.network(texts)
            logits_BK = users_BD @ items_KD.T / self.config.temperature
            loss = F.cross_entropy(logits_BK, own_B[torch.from_numpy(rows)], reduction="sum")
            (loss / len(users)).backward()
            total += loss.item()
        return total, int(lengths.sum())

    def examples(self, users: np.ndarray) -> tuple[Sequences, np.ndarray]:
        """One item of each user's sequence as the target, drawn by epoch, and what came before it."""
        sequences, hashes = self.users.sequences.take(users), self.users.hashes[users]
        drawn_B = draws(hashes, key64(self.seed, self.epoch, Draw.RECFORMER_TARGETS), 1)[:, 0]
        position_B = 1 + (drawn_B % (sequences.lengths - 1).astype(np.uint64)).astype(np.int64)
        return sequences.shortened(position_B), sequences.items[sequences.offsets[:-1] + position_B]

    def _share_of_rate(self) -> float:
        """Fraction of the highest rate: rises during the warm-up, then falls to zero over the stage's epochs."""
        steps = self.config.epochs * math.ceil(len(self) / self.config.batch_size)
        warm = max(1, min(_WARM_UP, round(_WARM_SHARE * steps)))
        return min((self.step + 1) / warm, (steps - self.step) / max(steps - warm, 1))

    def _weights(self) -> Weights:
        return {name: weight.detach().clone() for name, weight in self.network.state_dict().items()}
