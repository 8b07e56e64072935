"""What Stage-2 trains on: one prompt a user, whose answer is the title of the user's last training item.

A batch is a function of (seed, epoch, step) alone, whatever the number of workers: the epoch's order, the negatives
and the order of candidates are drawn by counter. Arrays all the way; knows no LLM beyond its token ids.

Dimensions: U users, B prompts of a batch, T tokens, S slots, I items in slots, K target tokens, C candidates
"""

from dataclasses import dataclass, replace

import numpy as np

from allmrec.data.sequences import Sequences, offsets_of, ranges
from allmrec.hashing import draws, key64, permutations
from allmrec.llm.batches import take
from allmrec.llm.prompt import PromptBuilder, Prompts
from allmrec.negatives import draw_negatives

_ORDER, _PLACES = 0x4F52, 0x504C  # purposes of random draws


@dataclass(frozen=True)
class Batch:
    """B prompts with the tokens of their answers behind them (all but the last one, which nothing follows)."""

    users: np.ndarray  # int64 (B,)
    prompts: Prompts  # slot_items are positions in `items`
    items: np.ndarray  # int32 (I,): the distinct items in slots; items[0] is USER_SLOT
    target_rows: np.ndarray  # int64 (K,)
    target_columns: np.ndarray  # int64 (K,): the token that predicts the label
    labels: np.ndarray  # int64 (K,): the answers' tokens, y^u_k

    def __len__(self) -> int:
        return len(self.users)

    def unlabelled(self) -> "Batch":
        return replace(
            self, target_rows=self.target_rows[:0], target_columns=self.target_columns[:0], labels=self.labels[:0]
        )


class Examples:
    """The prompts of U users, drawn anew in every epoch.

    Args:
        sequences: the training part of everyone's history (`Sequences.read_train`).
        num_candidates: titles that a prompt offers.
    """

    def __init__(self, sequences: Sequences, builder: PromptBuilder, num_candidates: int, seed: int):
        learnable = np.flatnonzero(sequences.lengths >= 2)  # one item is a target without a history
        if not len(learnable):
            raise ValueError("no user has two training interactions, so there is nothing to learn; add data")
        self.sequences = sequences.take(learnable)
        self.histories = self.sequences.shortened(self.sequences.lengths - 1)
        self.targets = self.sequences.items[self.sequences.offsets[1:] - 1]
        self.hashes = self.sequences.hashes()
        self.builder, self.num_candidates, self.seed = builder, num_candidates, seed
        self.num_items = len(builder.titles.lengths) - 1

    def __len__(self) -> int:
        return len(self.targets)

    def order(self, epoch: int) -> np.ndarray:
        """The epoch's permutation of the users, int64 (U,)."""
        return draws(self.hashes, key64(self.seed, epoch, _ORDER), 1)[:, 0].argsort(kind="stable")

    def candidates(self, users: np.ndarray, epoch: int) -> np.ndarray:
        """int32 (B, C): the target and negatives that the user has not seen, the target at any place alike."""
        seen = self.sequences.take(users)
        negatives = draw_negatives(
            self.hashes[users], seen.rows(), seen.items, self.num_items, self.num_candidates - 1, self.seed, epoch
        )
        listed = np.concatenate([self.targets[users, None], negatives], axis=1)
        order = permutations(self.hashes[users], key64(self.seed, epoch, _PLACES), listed.shape[1])
        return np.take_along_axis(listed, order, axis=1)

    def prompts(self, users: np.ndarray, epoch: int) -> Prompts:
        return self.builder.build(self.histories.take(users), self.candidates(users, epoch))

    def batch(self, users: np.ndarray, prompts: Prompts) -> Batch:
        """The users' prompts and answers as a model reads them."""
        answers, answer_lengths = self.builder.answers(self.targets[users])
        rows = np.repeat(np.arange(len(users)), answer_lengths)
        within = np.arange(len(answers)) - offsets_of(answer_lengths)[rows]
        lengths = prompts.lengths + answer_lengths - 1
        offsets = offsets_of(lengths)
        tokens = np.empty(offsets[-1], dtype=np.int32)
        tokens[ranges(offsets[:-1], prompts.lengths)] = prompts.tokens
        read = within < answer_lengths[rows] - 1
        tokens[ranges(offsets[:-1] + prompts.lengths, answer_lengths - 1)] = answers[read]
        shift = (offsets - prompts.offsets)[prompts.slot_rows()]
        items, slot_items = np.unique(prompts.slot_items, return_inverse=True)
        return Batch(
            users,
            Prompts(tokens, offsets, prompts.slot_positions + shift, slot_items.astype(np.int32)),
            items,
            rows,
            prompts.lengths[rows] - 1 + within,
            answers.astype(np.int64),
        )

    def target_tokens(self, users: np.ndarray) -> int:
        """The number of labels, sum of |y^u|."""
        return int((self.builder.titles.lengths[self.targets[users]] + 1).sum())

    def passes(self, users: np.ndarray, epoch: int, rank: int, world: int, count: int) -> list[Batch]:
        """One worker's share of a global batch, in `count` passes of prompts of similar length.

        All workers' passes together hold every label once. A pass for which no prompt is left repeats the shortest
        one without labels, for workers must run the same passes.
        """
        prompts = self.prompts(users, epoch)
        by_length = np.argsort(-prompts.lengths, kind="stable")
        batches = []
        for part in np.array_split(by_length[rank::world], count):
            rows = part if len(part) else by_length[-1:]
            batch = self.batch(users[rows], take(prompts, rows))
            batches.append(batch if len(part) else batch.unlabelled())
        return batches
