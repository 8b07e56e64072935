"""Training of a sequential teacher: next-item prediction at every position, the best epoch on validation kept.

Plain torch, in one process or in a process group; knows nothing of Ray, artifacts or checkpoint files. Batches and
negatives are drawn by counter, keyed by seed, epoch and user. Dropout masks come from a generator of each epoch
and worker: they alone depend on the number of workers.

Dimensions: B users of a batch on this worker, T positions, P predicted positions, K shared negatives, C candidates,
D = teacher.dim
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.nn import functional as F

from allmrec.cf.teacher import Teacher, TeacherConfig, build_teacher, represent
from allmrec.data.sequences import Sequences
from allmrec.distributed import own, place, sum_gradients, summed
from allmrec.evaluation.metrics import METRICS, measure
from allmrec.hashing import draws, key64
from allmrec.negatives import draw_negatives

_BATCHES, _NEGATIVES, _DROPOUT = 0x4241, 0x4E4B, 0x4452  # purposes of random draws
_WINDOW = 32  # batches among which users are sorted by length, to pad less


@dataclass(frozen=True)
class ValidationCases:
    """V held-out items with their negatives."""

    histories: Sequences  # (V,)
    candidates: np.ndarray  # int32 (V, C), the target first

    @classmethod
    def from_table(cls, table: pa.Table, sequences: Sequences) -> "ValidationCases":
        """The validation split with random negatives of the `evaluation_cases` table."""
        table = table.filter((pc.field("split") == "valid") & (pc.field("protocol") == "random"))
        users = pc.index_in(table.column("user_id"), value_set=sequences.user_ids).to_numpy()
        lengths = table.column("history_length").to_numpy().astype(np.int64)
        candidates = pc.list_flatten(table.column("candidates")).to_numpy()
        return cls(sequences.take(users).shortened(lengths), candidates.reshape(len(users), -1 if len(users) else 0))

    def __len__(self) -> int:
        return len(self.candidates)


def validate(teacher: Teacher, cases: ValidationCases) -> dict[str, float]:
    """Hit@1 and NDCG@10, over all workers' shares of the cases."""
    mine = own(np.arange(len(cases)))
    teacher.eval()
    x_BD = represent(teacher, cases.histories.take(mine))
    with torch.inference_mode():
        score_BC = teacher.scores(x_BD, torch.from_numpy(cases.candidates[mine]).long().to(x_BD.device))
    values_M = measure(score_BC.cpu().numpy(), cases.candidates[mine]).sum(axis=0)
    mean_M = summed(torch.from_numpy(values_M).to(x_BD.device)) / len(cases)
    return {f"valid_{name}": mean_M[METRICS.index(name)].item() for name in ("hit@1", "ndcg@10")}


class TeacherTraining:
    """A training run that can be stopped after any validation and taken up again from its `state_dict`."""

    def __init__(
        self,
        config: TeacherConfig,
        sequences: Sequences,
        num_items: int,
        cases: ValidationCases,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        """
        Args:
            sequences: the training part of everyone's history (`Sequences.train()`).
            cases: without any, the last epoch is kept.
        """
        self.config, self.num_items, self.cases, self.seed = config, num_items, cases, seed
        self.device = torch.device(device)
        learnable = np.flatnonzero(sequences.lengths >= 2)  # one item is a history without a next item
        self.sequences = sequences.take(learnable).last(config.max_history + 1)
        if not len(self.sequences):
            raise ValueError("no user has two training interactions, so there is nothing to learn; add data")
        self.hashes = self.sequences.hashes()
        torch.manual_seed(seed)
        self.teacher = build_teacher(config, num_items).to(self.device)
        self.optimiser = torch.optim.Adam(self.teacher.parameters(), lr=config.learning_rate, betas=(0.9, 0.98))
        self.epoch = 0  # epochs done
        self.best: dict[str, Any] = {"epoch": 0, "valid_ndcg@10": -1.0}
        self.best_weights = self._weights()

    def state_dict(self) -> dict[str, Any]:
        return {
            "teacher": self.teacher.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "epoch": self.epoch,
            "best": self.best,
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.teacher.load_state_dict(state["teacher"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.best, self.best_weights = state["epoch"], state["best"], state["best_weights"]

    def rounds(self) -> Iterator[dict[str, float]]:
        """Train until the epochs or the patience run out, and yield the numbers of every `eval_every` epochs."""
        config = self.config
        while self.epoch < config.epochs and self.epoch - self.best["epoch"] < config.patience * config.eval_every:
            started, positions = time.monotonic(), 0
            for _ in range(min(config.eval_every, config.epochs - self.epoch)):
                loss, count = self.train_epoch()
                positions += count
            numbers = {"loss": loss, "interactions_per_s": round(positions / (time.monotonic() - started))}
            metrics = validate(self.teacher, self.cases) if len(self.cases) else {}
            if metrics.get("valid_ndcg@10", np.inf) > self.best["valid_ndcg@10"]:
                self.best = {"epoch": self.epoch, "valid_ndcg@10": -1.0, **metrics}
                self.best_weights = self._weights()
            yield numbers | metrics

    def best_teacher(self) -> Teacher:
        """The teacher with the weights of the best validation."""
        self.teacher.load_state_dict(self.best_weights)
        return self.teacher.eval()

    def train_epoch(self) -> tuple[float, int]:
        """One pass over the users. Returns the mean loss of a predicted position and their number."""
        torch.manual_seed(int(key64(self.seed, self.epoch, place()[0], _DROPOUT)))
        self.teacher.train()
        total, positions = torch.zeros((), dtype=torch.float64), 0
        for step, users in enumerate(self._batches()):
            count = int((self.sequences.lengths[users] - 1).sum())
            loss = self._loss(own(users), step) / count
            self.optimiser.zero_grad()
            loss.backward()
            sum_gradients(self.teacher.parameters())
            self.optimiser.step()
            total, positions = total + loss.detach().double().cpu() * count, positions + count
        self.epoch += 1
        return summed(total).item() / positions, positions

    def _batches(self) -> list[np.ndarray]:
        """The epoch's global batches as positions of users, of similar length within each."""
        size, key = self.config.batch_size, key64(self.seed, self.epoch, _BATCHES)
        order = draws(self.hashes, key, 1)[:, 0].argsort(kind="stable")
        window = np.arange(len(order)) // (size * _WINDOW)
        order = order[np.lexsort((self.sequences.lengths[order], window))]
        batches = np.split(order, np.arange(size, len(order), size))
        turn = draws(np.arange(len(batches), dtype=np.uint64), key, 1)[:, 0].argsort(kind="stable")
        return [batches[index] for index in turn]

    def _loss(self, users: np.ndarray, step: int) -> torch.Tensor:
        """The summed loss of this worker's users."""
        batch = self.sequences.take(users)
        width = int(batch.lengths.max(initial=2))
        items_BT = torch.from_numpy(batch.padded(width)).long().to(self.device)
        inputs_BT, targets_BT = items_BT[:, :-1], items_BT[:, 1:]
        predicted_BT = inputs_BT > 0
        x_PD = self.teacher(inputs_BT)[predicted_BT]
        target_P = targets_BT[predicted_BT]
        items_ND = self.teacher.item_embeddings
        positive_P = (x_PD * items_ND[target_P]).sum(-1)
        if self.config.loss == "softmax":
            key = key64(self.seed, self.epoch, step, _NEGATIVES)
            drawn = draws(np.zeros(1, np.uint64), key, self.config.num_negatives)[0] % np.uint64(self.num_items) + 1
            negative_K = torch.from_numpy(drawn.astype(np.int64)).to(self.device)
            score_PK = x_PD @ items_ND[negative_K].T
            score_PK = score_PK.masked_fill(negative_K == target_P[:, None], -torch.inf)  # no item against itself
            return (torch.cat([positive_P[:, None], score_PK], 1).logsumexp(1) - positive_P).sum()
        # Binary cross-entropy with one unseen item a position (Kang & McAuley 2018, section III-E).
        drawn_BT = draw_negatives(
            self.hashes[users], batch.rows(), batch.items, self.num_items, width - 1, self.seed, self.epoch
        )
        negative_P = torch.from_numpy(drawn_BT).long().to(self.device)[predicted_BT]
        score_P = (x_PD * items_ND[negative_P]).sum(-1)
        return (F.softplus(-positive_P) + F.softplus(score_P) * (negative_P > 0)).sum()

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in self.teacher.state_dict().items()}
