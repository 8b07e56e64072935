"""What Stage-1 learns from: rows of an item, the user's own or one unseen, and x^u of the history before.

A user's targets are the last training item (paper section 4.1.3) or, with `alignment.targets: all`, every item that has
a history before it (A-LLMRec_all, section 5.4.2); each comes with one unseen item. Items that have no E_i, or are held
out to measure the alignment on, are neither. Users are held part by part, with their x^u, which is computed when a part
is read, for the teacher is frozen; batches and unseen items are drawn by counter.

Equations 2 to 4 take the expectation over a user's own items; an unseen item counts there by `alignment.unseen_weight`.
Equation 5 takes both, as a sum over all targets.

Dimensions: U users, P targets of the users in memory, R rows, N = n + 1 items (0 is padding), D = teacher.dim
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch

from allmrec.alignment.network import AlignmentConfig
from allmrec.cf.teacher import Teacher
from allmrec.core.hashing import Draw, draws, key64, uniforms
from allmrec.data.negative_sampling import draw_negatives
from allmrec.data.sequences import Sequences, offsets_of, ranges
from allmrec.data.training_users import TrainingUsers

_WINDOW = 128  # batches whose rows are made at once
_BLOCK = 4096  # targets whose users are represented at once


def example_bytes(dim: int) -> int:
    """What a target takes beside its user: x^u of the teacher's dimensions, and arrays of it."""
    return 4 * dim + 24


@dataclass(frozen=True)
class Rows:
    """R rows of users in the order of their batch."""

    user_R: np.ndarray  # int64, the user's position among those asked for
    target_R: np.ndarray  # int64, into `Examples.x_PD`
    item_R: np.ndarray  # int32
    positive_R: np.ndarray  # bool, whether the item is the user's own
    weight_R: np.ndarray  # float32, in equations 2 to 4: of a user's own items they sum to 1

    def __len__(self) -> int:
        return len(self.item_R)

    @property
    def num_users(self) -> int:
        return len(np.unique(self.user_R))

    def take(self, rows: np.ndarray | slice) -> "Rows":
        return Rows(*(getattr(self, field.name)[rows] for field in fields(self)))


def held_out_items(config: AlignmentConfig, num_rows: int, seed: int) -> np.ndarray:
    """bool (N,): items that no row has, so that the alignment can be measured on them."""
    return (
        uniforms(np.arange(num_rows, dtype=np.uint64), key64(seed, Draw.ALIGNMENT_HELD_OUT), 1)[:, 0] < config.held_out
    )


class Examples:
    """Rows of all users; one part of them is in memory at a time, and a batch is of one part."""

    sequences: Sequences  # of the part in memory, as all positions of users and targets are
    hashes: np.ndarray  # uint64 (U,)
    counts: np.ndarray  # int64 (U,): targets of each user
    offsets: np.ndarray  # int64 (U + 1,)
    targets: np.ndarray  # int32 (P,)
    x_PD: torch.Tensor

    def __init__(
        self,
        config: AlignmentConfig,
        teacher: Teacher,
        users: TrainingUsers | Sequences,
        seed: int,
        drawable: np.ndarray | None = None,
    ):
        """
        Args:
            teacher: frozen, on the device for `x_PD`.
            users: those to learn from; or training sequences (`Sequences.read_train`), all in one part.
            drawable: `Catalogue.drawable`, which unseen items come from; by default every item.

        Raises:
            ValueError: no user has an item with a history before it.
        """
        self.users = users if isinstance(users, TrainingUsers) else TrainingUsers.of(users)
        if not len(self.users):
            raise ValueError(
                "no user has two training interactions, so there is nothing to align; check data.min_… and "
                "evaluation.split, or add data"
            )
        self.teacher, self.seed, self.config, self.batch_size = teacher, seed, config, config.batch_size
        self.num_targets, self.part = int(self.users.examples(config.targets).sum()), -1
        # Neither padding nor items without an E_i: the one point that they share would draw their q_i together.
        known = teacher.item_embeddings.any(1).cpu().numpy()
        self.usable = known & ~held_out_items(config, len(known), seed)
        self.drawable = np.arange(1, len(known)) if drawable is None else drawable
        self.hold(0)

    def __len__(self) -> int:
        """Users in all parts."""
        return len(self.users)

    def hold(self, part: int) -> None:
        """Make a part the one in memory."""
        if part == self.part:
            return
        if self.part >= 0:  # its memory is the next one's
            del self.sequences, self.hashes, self.counts, self.offsets, self.targets, self.x_PD
        self.sequences, self.part = self.users.parts[part](), part
        self.hashes, lengths = self.sequences.hashes(), self.sequences.lengths
        first = lengths - 1 if self.config.targets == "last" else np.ones_like(lengths)
        self.counts = lengths - first
        self.offsets = offsets_of(self.counts)
        self.targets = self.sequences.items[ranges(self.sequences.offsets[:-1] + first, self.counts)]
        self.x_PD = self._represent(ranges(first, self.counts))

    def batches(self, epoch: int) -> Iterator[Rows]:
        """The global batches of an epoch, of `batch_size` users, while their part is in memory; users without any row
        are left out."""
        for part in self.users.order(key64(self.seed, epoch, Draw.ALIGNMENT_PARTS)):
            self.hold(int(part))
            order = draws(self.hashes, key64(self.seed, epoch, Draw.ALIGNMENT_BATCHES), 1)[:, 0].argsort(kind="stable")
            for first in range(0, len(order), self.batch_size * _WINDOW):
                users = order[first : first + self.batch_size * _WINDOW]
                rows = self.rows(users, epoch)
                edges = np.searchsorted(rows.user_R, np.arange(0, len(users) + self.batch_size, self.batch_size))
                for start, end in pairwise(edges):
                    if start < end:
                        yield rows.take(slice(start, end))

    def rows(self, users: np.ndarray, epoch: int) -> Rows:
        """Of the given users (positions), with the unseen items of an epoch."""
        histories, counts = self.sequences.take(users), self.counts[users]
        unseen_UC = draw_negatives(
            self.hashes[users],
            histories.rows(),
            histories.items,
            self.drawable,
            int(counts.max()),
            key64(self.seed, epoch, Draw.ALIGNMENT_UNSEEN),
        )
        user, target = np.repeat(np.arange(len(users)), counts), ranges(self.offsets[users], counts)
        items = np.stack([self.targets[target], unseen_UC[user, ranges(np.zeros_like(counts), counts)]], axis=1)
        kept = self.usable[items[:, 0]]
        user, target, items = user[kept], target[kept], items[kept]
        share = (1 / np.bincount(user, minlength=len(users)).clip(min=1))[user]  # of a target among its user's
        at, column = self.usable[items].nonzero()
        weight = share[at] * np.where(column == 0, 1, self.config.unseen_weight)
        return Rows(user[at], target[at], items[at, column], column == 0, weight.astype(np.float32))

    @torch.no_grad()
    def _represent(self, lengths_P: np.ndarray) -> torch.Tensor:
        """x^u after the first `lengths_P` items of each target's user: (P, D)."""
        user_P = np.repeat(np.arange(len(self.sequences)), self.counts)
        items_ND = self.teacher.item_embeddings
        x_PD = items_ND.new_empty(len(user_P), items_ND.shape[1])  # and no inference tensor, which autograd refuses
        for at in range(0, len(user_P), _BLOCK):
            histories = self.sequences.take(user_P[at : at + _BLOCK]).shortened(lengths_P[at : at + _BLOCK])
            x_PD[at : at + _BLOCK] = self.teacher.represent(histories)
        return x_PD
