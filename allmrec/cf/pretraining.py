"""CTRL's first stage: a sequential teacher starts where its x^u tell which text is whose (contrastive alignment).

Li et al. (TORS 2025), section 4.2. The loss couples all users of a batch: what the workers made of them is gathered
and differentiated by that, so neither the number of workers nor that of passes changes more than the order of floating
point sums. The text encoder is frozen, so every history's text is encoded once. Plain torch, as `training`.

Dimensions: B users of a batch, R of them of this worker, U users of a part, M subspaces, P of a subspace, S of texts
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from allmrec.cf.batches import UserBatches
from allmrec.cf.contrastive import ContrastiveHeads, PretrainingConfig, contrastive_loss
from allmrec.cf.teacher import SequenceTeacher
from allmrec.core.distributed import all_reduce_max, local_shard, rank_and_world_size, sum_gradients, whole_batch
from allmrec.core.hashing import Draw, key64
from allmrec.data.sequences import Sequences

Encode = Callable[[Sequences], np.ndarray]  # histories → their texts' embeddings, float32 (U, S)

_PASS = 1024  # users of a batch, of all workers, that go through the teacher at once
_WARM_UP, _LEAST = 100, 1e-5  # steps over which the rate rises, and from where (section 5.1.3)


class HistoryVectors:
    """The text embeddings of this worker's users, every world-size-th of each part."""

    def __init__(self, users: UserBatches, encode: Encode, device: torch.device):
        self.users = users
        self.rank, self.world = rank_and_world_size()
        self.parts: list[torch.Tensor] = []
        for part in range(len(users.parts)):
            users.hold(part)
            mine = users.sequences.take(local_shard(np.arange(len(users.sequences))))
            self.parts.append(torch.from_numpy(encode(mine)).to(device))
        self.dim = all_reduce_max(max(vectors_US.shape[1] for vectors_US in self.parts))

    def of(self, positions_B: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Of a batch of the part in memory: this worker's vectors, (R, S), and their places in the batch."""
        rows = np.flatnonzero(positions_B % self.world == self.rank)
        return self.parts[self.users.part][torch.from_numpy(positions_B[rows] // self.world)], rows


class Pretraining:
    """The teacher and two heads, trained together; the heads are thrown away."""

    def __init__(
        self,
        config: PretrainingConfig,
        teacher: SequenceTeacher,
        users: UserBatches,
        encode: Encode,
        seed: int,
        device: torch.device,
    ):
        self.config, self.teacher, self.users, self.encode = config, teacher, users, encode
        self.seed, self.device = seed, device
        self.epoch, self.steps = 0, 0  # done
        self.numbers: dict[str, float] = {}  # of the last epoch
        self.tables = [table.weight for table in teacher.item_tables() if table.weight.requires_grad]
        self.state: dict[str, Any] | None = None  # where to resume from

    def state_dict(self) -> dict[str, Any]:
        done = {"epoch": self.epoch, "steps": self.steps, "numbers": self.numbers}
        if self.finished():
            return done
        return done | {"heads": self.heads.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The teacher's weights are in its own state."""
        self.epoch, self.steps, self.numbers, self.state = state["epoch"], state["steps"], state["numbers"], state

    def finished(self) -> bool:
        return self.epoch >= self.config.epochs

    def rounds(self) -> Iterator[dict[str, float]]:
        """Train to the end, and yield the numbers of every epoch."""
        if self.finished():
            return
        self.start(HistoryVectors(self.users, self.encode, self.device))
        while not self.finished():
            started = time.monotonic()
            loss, count = self.train_epoch()
            self.numbers = {
                "contrastive_loss": loss,
                "pretraining_users_per_s": round(count / (time.monotonic() - started)),
            }
            yield self.numbers

    def start(self, texts: HistoryVectors) -> None:
        """Heads and optimiser: fresh ones, or those of the state."""
        self.texts = texts
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(key64(self.seed, Draw.PRETRAINING_HEADS)))
            dim = self.teacher.item_embeddings.shape[1]
            self.heads = ContrastiveHeads(self.config, dim, texts.dim).to(self.device)
        teachers = [weight for weight in self.teacher.parameters() if weight.requires_grad]
        self.weights = [weight for weight in teachers if all(weight is not table for table in self.tables)]
        self.weights += self.heads.parameters()
        self.optimiser = torch.optim.AdamW([*self.tables, *self.weights], lr=self.config.learning_rate, fused=True)
        if self.state is not None:
            self.heads.load_state_dict(self.state["heads"])
            self.optimiser.load_state_dict(self.state["optimiser"])

    def train_epoch(self) -> tuple[float, int]:
        """One pass over the users. Returns the mean loss of a user and their number.

        Raises:
            ValueError: the loss is NaN or inf.
        """
        keys = [key64(self.seed, self.epoch, draw) for draw in (Draw.PRETRAINING_BATCHES, Draw.PRETRAINING_PARTS)]
        self.teacher.train()
        total, count = 0.0, 0
        for positions_B in self.users.of_epoch(self.config.batch_size, *keys):
            warm = min(1.0, (self.steps + 1) / _WARM_UP)
            for group in self.optimiser.param_groups:
                group["lr"] = _LEAST + warm * (self.config.learning_rate - _LEAST)
            loss = self.gradients(positions_B)
            if not np.isfinite(loss):
                raise ValueError(
                    f"the contrastive loss is {loss} in epoch {self.epoch + 1} of the first stage; lower "
                    "teacher.pretraining.learning_rate, or raise its temperature"
                )
            self.optimiser.step()
            self.steps += 1
            total, count = total + loss * len(positions_B), count + len(positions_B)
        self.epoch += 1
        return total / max(count, 1), count

    def gradients(self, positions_B: np.ndarray) -> float:
        """Leave the gradients of a global batch's loss in all weights, on every worker, and return the loss."""
        self.optimiser.zero_grad()
        passes = np.split(positions_B, range(_PASS, len(positions_B), _PASS))
        rows = [
            number * _PASS + local_shard(np.arange(len(positions))) for number, positions in enumerate(passes)
        ]  # places in the batch
        with torch.set_grad_enabled(len(passes) == 1):
            users = [self._users(positions, number) for number, positions in enumerate(passes)]
        texts_RS, text_rows = self.texts.of(positions_B)
        texts_RMP = self.heads.texts(texts_RS)
        users_BMP = whole_batch(torch.cat(users), np.concatenate(rows), len(positions_B))
        texts_BMP = whole_batch(texts_RMP, text_rows, len(positions_B))
        loss = contrastive_loss(users_BMP, texts_BMP, self.config.temperature)
        loss.backward()
        _backward(texts_RMP, texts_BMP, text_rows)
        for number, positions in enumerate(passes):
            found_RMP = users[0] if len(passes) == 1 else self._users(positions, number)
            _backward(found_RMP, users_BMP, rows[number])
        items = np.unique(self.users.sequences.take(positions_B).items)
        sum_gradients(self.weights, self.tables, torch.from_numpy(items).long().to(self.device))
        return float(loss.detach())

    def _users(self, positions: np.ndarray, number: int) -> torch.Tensor:
        """This worker's share of a pass, (R, M, P); the same dropout whenever it is made."""
        torch.manual_seed(int(key64(self.seed, self.steps, number, Draw.PRETRAINING_DROPOUT)))
        self.teacher.masks.rows = len(positions)
        width = min(int(self.users.sequences.lengths[positions].max()), self.teacher.max_history)
        padded_RT = self.users.sequences.take(local_shard(positions)).padded(width)
        history_RT = torch.from_numpy(padded_RT).long().to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            self.teacher.begin_step(history_RT)
            x_RD = self.teacher.user_representations(history_RT)
        return self.heads.users(x_RD.float())


def _backward(rows_RMP: torch.Tensor, whole_BMP: torch.Tensor, rows: np.ndarray) -> None:
    """The loss's gradients by some rows of a batch, from there to the weights (chain rule)."""
    assert whole_BMP.grad is not None, "the loss has been differentiated by the batch"
    rows_RMP.backward(whole_BMP.grad[torch.from_numpy(rows).to(whole_BMP.device)])
