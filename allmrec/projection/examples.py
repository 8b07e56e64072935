"""What Stage-2 trains on: prompts whose answer is the title of an item that its user came to.

By default a user's last training item (paper section 4.2), or every item behind the first (A-LLMRec_all, section
5.4.2), of all users or of a sample. A step's global batch is a function of (seed, epoch, step) alone, whatever the
number of workers: the epoch's order, the negatives and the order of candidates are drawn by counter. Prompts of a batch
are of similar length. Arrays all the way; knows no LLM beyond its token ids.

Dimensions: E examples, B prompts of a batch, T tokens, S slots, I items in slots, K target tokens, C candidates
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from allmrec.core.hashing import Draw, draws, key64, mix64, permutations
from allmrec.data.negative_sampling import draw_negatives
from allmrec.data.sequences import Sequences, offsets_of, ranges
from allmrec.llm.batches import distinct_items, take
from allmrec.llm.packed import packed_width
from allmrec.llm.prompt import PromptBuilder, Prompts
from allmrec.llm.trie import Tries, build_tries

Targets = Literal["last", "all"]
_BLOCK = 4096  # prompts built at once to be counted
_WINDOW = 64  # batches among which prompts are sorted by length: padding against randomness


@dataclass(frozen=True)
class Batch:
    """B prompts with the tokens of their answers behind them (all but the last one, which nothing follows)."""

    examples: np.ndarray  # int64 (B,)
    prompts: Prompts  # slot_items are positions in `items`
    items: np.ndarray  # int32 (I,): the distinct items in slots; items[0] is USER_SLOT
    target_rows: np.ndarray  # int64 (K,)
    target_columns: np.ndarray  # int64 (K,): the token that predicts the label
    labels: np.ndarray  # int64 (K,): the answers' tokens, y^u_k

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def tokens(self) -> int:
        return len(self.prompts.tokens)

    @property
    def padded(self) -> int:
        """Tokens with padding."""
        return len(self) * int(self.prompts.lengths.max())

    def unlabelled(self) -> "Batch":
        return replace(
            self, target_rows=self.target_rows[:0], target_columns=self.target_columns[:0], labels=self.labels[:0]
        )


@dataclass(frozen=True)
class CandidateBatch:
    """B prompts with their candidates' tries."""

    examples: np.ndarray  # int64 (B,)
    prompts: Prompts  # slot_items are positions in `items`
    items: np.ndarray  # int32 (I,): the distinct items in slots; items[0] is USER_SLOT
    candidates: np.ndarray  # int32 (B, C), in the order shown
    tries: Tries
    counts: bool = True  # or it exists only because every worker must run the same passes

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def tokens(self) -> int:
        return len(self.prompts.tokens) + len(self.tries.node_row)

    @property
    def padded(self) -> int:
        """Tokens with padding."""
        return len(self) * packed_width(self.prompts, self.tries)


class Examples:
    """E prompts, drawn again in every epoch.

    Args:
        sequences: the training part of everyone's history (`Sequences.read_train`).
        num_candidates: titles that a prompt offers.
        targets: which items are answers.
        drawable: `Catalogue.drawable`, which negatives come from; by default every item.
        max_users: more are left out: those whose draws by a hash of their ids are the least stay.
    """

    def __init__(
        self,
        sequences: Sequences,
        builder: PromptBuilder,
        num_candidates: int,
        seed: int,
        targets: Targets = "last",
        drawable: np.ndarray | None = None,
        max_users: int | None = None,
    ):
        learnable = np.flatnonzero(sequences.lengths >= 2)  # one item is a target without a history
        if not len(learnable):
            raise ValueError("no user has two training interactions, so there is nothing to learn; add data")
        self.sequences = sequences.take(learnable)
        if max_users is not None and len(learnable) > max_users:
            drawn = draws(self.sequences.hashes(), key64(seed, Draw.PROJECTION_USERS), 1)[:, 0]
            self.sequences = self.sequences.take(np.sort(drawn.argsort(kind="stable")[:max_users]))
        self.builder, self.num_candidates, self.seed = builder, num_candidates, seed
        self.drawable = np.arange(1, len(builder.titles.lengths)) if drawable is None else drawable
        lengths = self.sequences.lengths
        hashes = self.sequences.hashes()
        if targets == "last":
            self.rows, self.positions, self.hashes = np.arange(len(lengths)), lengths - 1, hashes
        else:
            self.rows = np.repeat(np.arange(len(lengths)), lengths - 1)
            self.positions = ranges(np.ones_like(lengths), lengths - 1)
            self.hashes = mix64(hashes[self.rows] ^ key64(Draw.PROJECTION_EXAMPLES) ^ self.positions.astype(np.uint64))
        self.targets = self.sequences.items[self.sequences.offsets[self.rows] + self.positions]
        self._window = lru_cache(maxsize=1)(self._sorted_window)

    def __len__(self) -> int:
        return len(self.targets)

    def histories(self, examples: np.ndarray) -> Sequences:
        """What came before the targets."""
        return self.sequences.take(self.rows[examples]).shortened(self.positions[examples])

    def order(self, epoch: int) -> np.ndarray:
        """The epoch's permutation of the examples, int64 (E,), before they are sorted into batches."""
        return draws(self.hashes, key64(self.seed, epoch, Draw.PROJECTION_ORDER), 1)[:, 0].argsort(kind="stable")

    def candidates(self, examples: np.ndarray, epoch: int) -> np.ndarray:
        """int32 (B, C): the target and negatives that the user has not seen, the target at any place alike."""
        listed = np.concatenate([self.targets[examples, None], self.negatives(examples, epoch)], axis=1)
        order = permutations(self.hashes[examples], key64(self.seed, epoch, Draw.PROJECTION_SHOWN), listed.shape[1])
        return np.take_along_axis(listed, order, axis=1)

    def negatives(self, examples: np.ndarray, epoch: int) -> np.ndarray:
        """int32 (B, C - 1), none of which the user has seen."""
        seen, key = self.sequences.take(self.rows[examples]), key64(self.seed, epoch, Draw.PROJECTION_NEGATIVES)
        return draw_negatives(
            self.hashes[examples], seen.rows(), seen.items, self.drawable, self.num_candidates - 1, key
        )

    def prompts(self, examples: np.ndarray, epoch: int) -> Prompts:
        return self.builder.build(self.histories(examples), self.candidates(examples, epoch))

    def shortened(self, epoch: int = 0) -> dict[str, int]:
        """What an epoch's prompts lose because they would not fit into the LLM's positions."""
        dropped_history = cut_titles = 0
        for examples in np.array_split(np.arange(len(self)), max(1, len(self) // _BLOCK)):
            prompts = self.prompts(examples, epoch)
            dropped_history, cut_titles = dropped_history + prompts.dropped_history, cut_titles + prompts.cut_titles
        return {"history items dropped": dropped_history, "prompts with cut titles": cut_titles}

    def global_batch(self, epoch: int, step: int, batch_size: int) -> tuple[np.ndarray, Prompts]:
        """The examples of a step, longest prompt first, and their prompts.

        The epoch's order is cut into windows of 64 batches; within each the prompts are sorted by length, cut into
        batches, and the batches shuffled.
        """
        window, place = divmod(step, _WINDOW)
        examples, prompts, batches = self._window(epoch, window, batch_size)
        rows = batches[place]
        return examples[rows], take(prompts, rows)

    def _sorted_window(self, epoch: int, window: int, batch_size: int) -> tuple[np.ndarray, Prompts, list[np.ndarray]]:
        examples = self.order(epoch)[window * _WINDOW * batch_size : (window + 1) * _WINDOW * batch_size]
        prompts = self.prompts(examples, epoch)
        by_length = np.argsort(-prompts.lengths, kind="stable")
        batches = [by_length[first : first + batch_size] for first in range(0, len(by_length), batch_size)]
        numbers = np.arange(len(batches), dtype=np.uint64)
        order = draws(numbers, key64(self.seed, epoch, window, Draw.PROJECTION_BATCHES), 1)[:, 0].argsort(kind="stable")
        return examples, prompts, [batches[number] for number in order]

    def batch(self, examples: np.ndarray, prompts: Prompts) -> Batch:
        """The prompts and their answers as a model reads them."""
        answers, answer_lengths = self.builder.answers(self.targets[examples])
        rows = np.repeat(np.arange(len(examples)), answer_lengths)
        within = np.arange(len(answers)) - offsets_of(answer_lengths)[rows]
        lengths = prompts.lengths + answer_lengths - 1
        offsets = offsets_of(lengths)
        tokens = np.empty(offsets[-1], dtype=np.int32)
        tokens[ranges(offsets[:-1], prompts.lengths)] = prompts.tokens
        read = within < answer_lengths[rows] - 1
        tokens[ranges(offsets[:-1] + prompts.lengths, answer_lengths - 1)] = answers[read]
        shift = (offsets - prompts.offsets)[prompts.slot_rows()]
        items, whole = distinct_items(Prompts(tokens, offsets, prompts.slot_positions + shift, prompts.slot_items))
        return Batch(
            examples,
            whole,
            items,
            rows,
            prompts.lengths[rows] - 1 + within,
            answers.astype(np.int64),
        )

    def target_tokens(self, examples: np.ndarray) -> int:
        """The number of labels, sum of |y^u|."""
        return int((self.builder.titles.lengths[self.targets[examples]] + 1).sum())

    def passes(self, examples: np.ndarray, prompts: Prompts, rank: int, world: int, max_tokens: int) -> list[Batch]:
        """One worker's share of a global batch, in passes of at most `max_tokens` padded tokens (one prompt at least).

        All workers' passes together hold every label once; see `shares`. A pass for which no prompt is left repeats
        one without labels.

        Args:
            examples, prompts: from `global_batch`.
        """
        lengths = prompts.lengths + self.builder.titles.lengths[self.targets[examples]]
        batches = []
        for rows, counts in shares(lengths, rank, world, max_tokens):
            batch = self.batch(examples[rows], take(prompts, rows))
            batches.append(batch if counts else batch.unlabelled())
        return batches

    def candidate_passes(
        self, examples: np.ndarray, prompts: Prompts, epoch: int, rank: int, world: int, max_tokens: int
    ) -> list[CandidateBatch]:
        """As `passes`, of prompts without answers and with their candidates' tries."""
        candidates = self.candidates(examples, epoch)
        tries = build_tries(self.builder.titles, candidates, self.builder.end)
        lengths = prompts.lengths + np.bincount(tries.node_row, minlength=len(examples))
        return [
            self.candidate_batch(examples[rows], take(prompts, rows), candidates[rows], counts)
            for rows, counts in shares(lengths, rank, world, max_tokens)
        ]

    def candidate_batch(
        self, examples: np.ndarray, prompts: Prompts, candidates: np.ndarray, counts: bool = True
    ) -> CandidateBatch:
        items, prompts = distinct_items(prompts)
        tries = build_tries(self.builder.titles, candidates, self.builder.end)
        return CandidateBatch(examples, prompts, items, candidates, tries, counts)


def shares(lengths: np.ndarray, rank: int, world: int, max_tokens: int) -> list[tuple[np.ndarray, bool]]:
    """One worker's share of some prompts, in passes of at most `max_tokens` padded tokens (one prompt at least).

    Workers must run the same number of passes: all cut their shares where the first one, whose prompts are the longest,
    has to. A pass for which no prompt is left has the shortest one of all.

    Args:
        lengths: tokens of each prompt.

    Returns:
        the rows of each pass, int64, and whether they are this worker's.
    """
    by_length = np.argsort(-lengths, kind="stable")
    share, longest = by_length[rank::world], lengths[by_length[::world]]
    passes, first = [], 0
    while first < len(longest):
        last = first + max(1, max_tokens // int(longest[first]))
        rows = share[first:last]
        passes.append((rows, True) if len(rows) else (by_length[-1:], False))
        first = last
    return passes
