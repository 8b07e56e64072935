"""Training of a sequential teacher: next-item prediction at every position, the best epoch on validation kept.

Plain torch, in one process or in a process group; knows nothing of Ray or checkpoint files. Batches and negatives
are drawn by counter, keyed by seed, epoch and user, and dropout masks for the whole batch, so the number of workers
changes nothing but the order of floating point sums.

Dimensions: B users of a batch on this worker, T positions, P predicted positions, K shared negatives, C candidates,
D = teacher.dim
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from allmrec.cf.batches import UserBatches
from allmrec.cf.items import TextItems
from allmrec.cf.pretraining import Encode, Pretraining
from allmrec.cf.retrieval import held_out_ranks
from allmrec.cf.teacher import SequenceTeacher, Teacher, TeacherConfig, build_teacher
from allmrec.core.artifacts import read_manifest
from allmrec.core.distributed import all_reduce_sum, local_shard, sum_gradients
from allmrec.core.hashing import Draw, draws, key64, uniforms
from allmrec.core.storage import Storage
from allmrec.data.cases import Cases
from allmrec.data.negative_sampling import draw_negatives
from allmrec.data.sequences import Sequences, num_shards
from allmrec.data.training_users import Part
from allmrec.metrics import METRICS, evaluate_scores, expected_metrics

_BLOCK = 4096  # users validated at once


@dataclass(frozen=True)
class ValidationCases:
    """This worker's share of the held-out items with their negatives, V of them."""

    histories: Sequences  # (V,)
    candidates: np.ndarray  # int32 (V, C), the target first

    @classmethod
    def read(cls, cases: Storage, sequences: Storage, max_users: int, seed: int) -> "ValidationCases":
        """From the stored tables, shard by shard: every world-size-th of them, of about `max_users` users in all."""
        fraction = max_users / max(read_manifest(cases).stats["valid"], 1)
        found: list[Cases] = []
        for shard in local_shard(np.arange(num_shards(cases))).tolist():
            mine = Cases.read(cases, sequences, [shard], "valid", "random")
            sampled = uniforms(mine.histories.hashes(), key64(seed, Draw.TEACHER_VALIDATION), 1)[:, 0] < fraction
            if sampled.any():
                found.append(mine.take(np.flatnonzero(sampled)))
        if not found:
            return cls(Sequences.none(), np.zeros((0, 1), np.int32))
        histories = Sequences.concat([mine.histories for mine in found])
        return cls(histories, np.concatenate([mine.candidates_BC for mine in found]))

    @classmethod
    def of(cls, cases: Cases) -> "ValidationCases":
        return cls(cases.histories, cases.candidates_BC)

    def __len__(self) -> int:
        return len(self.candidates)


def validate(
    teacher: Teacher,
    cases: ValidationCases,
    against: Literal["random", "full"] = "random",
    drawable: np.ndarray | None = None,
) -> dict[str, float]:
    """Hit@1 and NDCG@10 of all workers' cases, against the negatives or all items that the history has not.

    Args:
        drawable: `Catalogue.drawable`, the items that a `full` validation means; by default every item.
    """
    teacher.eval()
    total_M = torch.zeros(len(METRICS) + 1, dtype=torch.float64)
    for first in range(0, len(cases), _BLOCK):
        histories = cases.histories.take(np.arange(first, min(first + _BLOCK, len(cases))))
        candidates_BC = cases.candidates[first : first + _BLOCK]
        if against == "full":
            values_BM = _against_all(teacher, histories, candidates_BC, drawable)
        else:
            values_BM = _against_negatives(teacher, histories, candidates_BC)
        total_M += torch.from_numpy(np.append(values_BM.sum(axis=0), len(values_BM)))
    means = mean_metrics(total_M.to(teacher.item_embeddings.device))
    return {f"valid_{name}": mean for name, mean in means.items()}


def mean_metrics(total_M: torch.Tensor) -> dict[str, float]:
    """Hit@1 and NDCG@10 over all workers' cases; empty if there are none.

    Args:
        total_M: this worker's sums of `METRICS`, followed by its number of cases, (M + 1,).
    """
    *sums_M, count = all_reduce_sum(total_M).tolist()
    return {name: sums_M[METRICS.index(name)] / count for name in ("hit@1", "ndcg@10")} if count else {}


@torch.inference_mode()
def _against_negatives(teacher: Teacher, histories: Sequences, candidates_BC: np.ndarray) -> np.ndarray:
    x_BD = teacher.represent(histories)
    score_BC = teacher.scores(x_BD, torch.from_numpy(candidates_BC).long().to(x_BD.device))
    return evaluate_scores(score_BC.cpu().numpy(), candidates_BC)


def _against_all(
    teacher: Teacher, histories: Sequences, candidates_BC: np.ndarray, drawable: np.ndarray | None
) -> np.ndarray:
    ranks = held_out_ranks(teacher, teacher.represent(histories), histories, candidates_BC[:, 0], drawable)
    return expected_metrics(*ranks, len(teacher.item_embeddings))


class TeacherTraining:
    """A training run that can be stopped after any validation and taken up again from its `state_dict`."""

    def __init__(
        self,
        config: TeacherConfig,
        parts: Sequence[Part],
        num_items: int,
        cases: ValidationCases,
        seed: int,
        device: torch.device | str = "cpu",
        drawable: np.ndarray | None = None,
        texts_NS: torch.Tensor | None = None,
        encode: Encode | None = None,
    ):
        """
        Args:
            parts: everyone's training sequences (`Sequences.read_train`), of which one part is held at a time. A batch
                is of one part.
            cases: without any on any worker, the last epoch is kept.
            drawable: `Catalogue.drawable`, which negatives come from and a `full` validation means; by default every
                item.
            texts_NS: Q of the catalogue, for `items: text`.
            encode: histories → their texts' embeddings, for `pretraining`.
        """
        self.config, self.cases, self.seed = config, cases, seed
        self.batches = UserBatches(parts, config.max_history + 1)
        self.drawable = np.arange(1, num_items + 1) if drawable is None else drawable
        self.device = torch.device(device)
        torch.manual_seed(seed)
        text_dim = None if texts_NS is None else texts_NS.shape[1]
        self.teacher: SequenceTeacher = build_teacher(config, num_items, text_dim).to(self.device)
        if texts_NS is not None and isinstance(self.teacher.items, TextItems):
            self.teacher.items.read(texts_NS.to(self.device))
        weights = [weight for weight in self.teacher.parameters() if weight.requires_grad]
        self.tables = [table.weight for table in self.teacher.item_tables() if table.weight.requires_grad]
        self.others = [weight for weight in weights if all(weight is not table for table in self.tables)]
        self.optimiser = torch.optim.Adam(weights, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        self.pretraining: Pretraining | None = None
        if config.pretraining is not None and config.pretraining.epochs:
            assert encode is not None, "the first stage reads histories' texts"
            self.pretraining = Pretraining(config.pretraining, self.teacher, self.batches, encode, seed, self.device)
        self.epoch = 0  # epochs done
        self.users = 0  # that an epoch trained on
        self.positions, self.seconds = 0, 0.0  # predicted so far, and what that took without validation
        self.best: dict[str, Any] = {"epoch": 0, "valid_ndcg@10": -1.0}
        self.best_weights = self._weights()

    def state_dict(self) -> dict[str, Any]:
        return {
            "teacher": self.teacher.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "epoch": self.epoch,
            "best": self.best,
            "best_weights": self.best_weights,
            **({} if self.pretraining is None else {"pretraining": self.pretraining.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.teacher.load_state_dict(state["teacher"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.best, self.best_weights = state["epoch"], state["best"], state["best_weights"]
        if self.pretraining is not None:
            self.pretraining.load_state_dict(state["pretraining"])

    def rounds(self) -> Iterator[dict[str, float]]:
        """Train until the epochs or the patience run out, and yield the numbers of every `eval_every` epochs.

        Before that come the epochs of a first stage, where there is one, with numbers of their own.
        """
        config = self.config
        if self.pretraining is not None:
            yield from self.pretraining.rounds()
        while self.epoch < config.epochs and self.epoch - self.best["epoch"] < config.patience * config.eval_every:
            started, positions = time.monotonic(), 0
            for _ in range(min(config.eval_every, config.epochs - self.epoch)):
                loss, count = self.train_epoch()
                positions += count
            seconds = time.monotonic() - started
            self.positions, self.seconds = self.positions + positions, self.seconds + seconds
            numbers = {"loss": loss, "interactions_per_s": round(positions / seconds)}
            metrics = validate(self.teacher, self.cases, config.validation, self.drawable)
            if metrics.get("valid_ndcg@10", np.inf) > self.best["valid_ndcg@10"]:
                self.best = {"epoch": self.epoch, "valid_ndcg@10": -1.0, **metrics}
                self.best_weights = self._weights()
            yield numbers | metrics

    def best_teacher(self) -> SequenceTeacher:
        """The teacher with the weights of the best validation."""
        self.teacher.load_state_dict(self.best_weights)
        return self.teacher.eval()

    def train_epoch(self) -> tuple[float, int]:
        """One pass over the users. Returns the mean loss of a predicted position and their number.

        Raises:
            ValueError: there is nothing to learn from, or the loss is NaN or inf; names the step and its users.
        """
        torch.manual_seed(int(key64(self.seed, self.epoch, Draw.TEACHER_DROPOUT)))
        self.teacher.train()
        total, positions, self.users = torch.zeros((), dtype=torch.float64), 0, 0
        for step, users in enumerate(self._batches()):
            count = int((self.sequences.lengths[users] - 1).sum())
            negative_K = self._shared_negatives(step) if self.config.loss == "softmax" else None
            loss = self._loss(users, negative_K) / count
            if not torch.isfinite(loss):
                ids = self.sequences.user_ids.take(pa.array(local_shard(users)[:3])).to_pylist()
                raise ValueError(
                    f"the teacher's loss is {loss.item()} in epoch {self.epoch + 1} at step {step + 1} "
                    f"(users {ids} …); lower teacher.learning_rate"
                )
            self.optimiser.zero_grad()
            loss.backward()
            sum_gradients(self.others, self.tables, self._touched(users, negative_K))
            self.optimiser.step()
            total, positions = total + loss.detach().double().cpu() * count, positions + count
            self.users += len(users)
        if not positions:
            raise ValueError(
                "no user has two training interactions, so there is nothing to learn; check data.min_… and "
                "evaluation.split, or add data"
            )
        self.epoch += 1
        return all_reduce_sum(total).item() / positions, positions

    def _batches(self) -> Iterator[np.ndarray]:
        """The epoch's global batches as positions of users in `self.sequences`."""
        keys = [key64(self.seed, self.epoch, draw) for draw in (Draw.TEACHER_BATCHES, Draw.TEACHER_PARTS)]
        return self.batches.of_epoch(self.config.batch_size, *keys)

    @property
    def sequences(self) -> Sequences:
        """Of the part in memory."""
        return self.batches.sequences

    @property
    def hashes(self) -> np.ndarray:
        return self.batches.hashes

    def _loss(self, users: np.ndarray, negative_K: torch.Tensor | None) -> torch.Tensor:
        """The summed loss of this worker's share of the batch's users: softmax with shared negatives, or BCE."""
        width, self.teacher.masks.rows = int(self.sequences.lengths[users].max()), len(users)
        batch = self.sequences.take(users := local_shard(users))
        items_BT = torch.from_numpy(batch.padded(width)).long().to(self.device)
        predicted_BT = items_BT[:, :-1] > 0
        target_P = items_BT[:, 1:][predicted_BT]
        if negative_K is None:
            key = key64(self.seed, self.epoch, Draw.TEACHER_NEGATIVES)
            drawn_BT = draw_negatives(self.hashes[users], batch.rows(), batch.items, self.drawable, width - 1, key)
            negative_P = torch.from_numpy(drawn_BT).long().to(self.device)[predicted_BT]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            self.teacher.begin_step(torch.cat([items_BT.flatten(), negative_P if negative_K is None else negative_K]))
            x_PD = self.teacher.contexts(items_BT)[predicted_BT]
            positive_P = self.teacher.scores(x_PD, target_P[:, None])[:, 0]
            if negative_K is not None:
                score_PK = self.teacher.shared_scores(x_PD, negative_K)
                with torch.no_grad():  # no item against itself; a weight of zero has no gradient either
                    score_PK.masked_fill_(negative_K == target_P[:, None], torch.finfo(score_PK.dtype).min)
                # -log(e^p / (e^p + sum e^s)) = log(1 + e^(lse(s) - p))
                return F.softplus(score_PK.logsumexp(1) - positive_P).sum()
            # Binary cross-entropy with one unseen item a position (Kang & McAuley 2018, section III-E).
            score_P = self.teacher.scores(x_PD, negative_P[:, None])[:, 0]
            return (F.softplus(-positive_P) + F.softplus(score_P) * (negative_P > 0)).sum()

    def _touched(self, users: np.ndarray, negative_K: torch.Tensor | None) -> torch.Tensor | None:
        """The items that the batch has anything to do with on any worker, int64; None where others draw their own."""
        if negative_K is None or not self.tables:
            return None
        items = torch.from_numpy(self.sequences.take(users).items).long().to(self.device)
        return torch.cat([items, negative_K]).unique()

    def _shared_negatives(self, step: int) -> torch.Tensor:
        """The items that all positions of a step are told apart from, int64 (K,)."""
        key = key64(self.seed, self.epoch, step, Draw.TEACHER_SHARED_NEGATIVES)
        drawn = draws(np.zeros(1, np.uint64), key, self.config.num_negatives)[0] % np.uint64(len(self.drawable))
        return torch.from_numpy(self.drawable[drawn.astype(np.int64)]).long().to(self.device)

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in self.teacher.state_dict().items()}
