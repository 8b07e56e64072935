"""What Stage-2 trains on: prompts whose answer is the title of an item that its user came to.

By default a user's last training item (paper section 4.2), or every item behind the first (A-LLMRec_all, section
5.4.2). Users are held part by part, and an example is a position in the part in memory. A step's global batch is a
function of (seed, epoch, step) and of the parts, whatever the number of workers: the epoch's order, the negatives and
the order of candidates are drawn by counter. Prompts of a batch are of similar length. Arrays all the way; knows no LLM
beyond its token ids.

Dimensions: E examples, B prompts of a batch, T tokens, S slots, I items in slots, K target tokens, C candidates
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from allmrec.core.hashing import Draw, draws, key64, mix64, permutations
from allmrec.core.storage import Storage
from allmrec.data.negative_sampling import draw_negatives
from allmrec.data.sequences import Sequences, offsets_of, ranges
from allmrec.data.training_users import Sample, Targets, TrainingUsers
from allmrec.llm.batches import distinct_items, take
from allmrec.llm.packed import packed_width
from allmrec.llm.prompt import PromptBuilder, Prompts
from allmrec.llm.trie import Tries, build_tries

EXAMPLE_BYTES = 40  # that an example takes beside its user: arrays of it, and its place in the epoch's order
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


class UserSample(Protocol):
    """The keys of a config that say which users train, and how."""

    @property
    def targets(self) -> Targets: ...
    @property
    def max_users(self) -> int | None: ...
    @property
    def memory_mb(self) -> int: ...


def training_users(sequences: Storage, config: UserSample, seed: int) -> TrainingUsers:
    """Those of the stored `sequences` that a config takes examples of."""
    sample = Sample(config.max_users, key64(seed, Draw.PROJECTION_USERS))
    return TrainingUsers.read(sequences, config.memory_mb, sample, config.targets, EXAMPLE_BYTES)


class Examples:
    """E prompts, drawn again in every epoch.

    Args:
        users: those that prompts are made of; or training sequences (`Sequences.read_train`), all in one part.
        num_candidates: titles that a prompt offers.
        targets: which items are answers.
        drawable: `Catalogue.drawable`, which negatives come from; by default every item.
    """

    sequences: Sequences  # of the part in memory, as all positions of examples are
    rows: np.ndarray  # int64 (E,), their users
    positions: np.ndarray  # int64 (E,), of the targets in the users' histories
    targets: np.ndarray  # int32 (E,)
    hashes: np.ndarray  # uint64 (E,)

    def __init__(
        self,
        users: TrainingUsers | Sequences,
        builder: PromptBuilder,
        num_candidates: int,
        seed: int,
        targets: Targets = "last",
        drawable: np.ndarray | None = None,
    ):
        self.users, self.which = users if isinstance(users, TrainingUsers) else TrainingUsers.of(users), targets
        if not len(self.users):
            raise ValueError(
                "no user has two training interactions, so there is nothing to learn; check data.min_… and "
                "evaluation.split, or add data"
            )
        self.builder, self.num_candidates, self.seed = builder, num_candidates, seed
        self.drawable = np.arange(1, len(builder.titles.lengths)) if drawable is None else drawable
        self.counts_P, self.part = self.users.examples(targets), -1
        self._order, self._window = lru_cache(maxsize=1)(self.order), lru_cache(maxsize=1)(self._sorted_window)
        self.hold(int(self.counts_P.argmax()))

    def __len__(self) -> int:
        """In all parts."""
        return int(self.counts_P.sum())

    def hold(self, part: int) -> None:
        """Make a part the one in memory."""
        if part == self.part:
            return
        if self.part >= 0:  # its memory is the next one's
            del self.sequences, self.rows, self.positions, self.targets, self.hashes
            self._order.cache_clear()
            self._window.cache_clear()
        self.sequences, self.part = self.users.parts[part](), part
        lengths, hashes = self.sequences.lengths, self.sequences.hashes()
        if self.which == "last":
            self.rows, self.positions, self.hashes = np.arange(len(lengths)), lengths - 1, hashes
        else:
            self.rows = np.repeat(np.arange(len(lengths)), lengths - 1)
            self.positions = ranges(np.ones_like(lengths), lengths - 1)
            self.hashes = mix64(hashes[self.rows] ^ key64(Draw.PROJECTION_EXAMPLES) ^ self.positions.astype(np.uint64))
        self.targets = self.sequences.items[self.sequences.offsets[self.rows] + self.positions]

    def every_part(self) -> Iterator[np.ndarray]:
        """All examples of each part in its turn, while it is in memory."""
        for part in np.flatnonzero(self.counts_P):
            self.hold(int(part))
            yield np.arange(len(self.targets))

    def sample(self, count: int, key: np.uint64) -> Sequences:
        """Histories of at most `count` examples of all parts, drawn by hash."""
        drawn, histories = [], []
        for _ in self.every_part():
            draws_E = draws(self.hashes, key, 1)[:, 0]
            least = draws_E.argsort(kind="stable")[:count]
            drawn.append(draws_E[least])
            histories.append(self.histories(least))
        return Sequences.concat(histories).take(np.concatenate(drawn).argsort(kind="stable")[:count])

    def histories(self, examples: np.ndarray) -> Sequences:
        """What came before the targets."""
        return self.sequences.take(self.rows[examples]).shortened(self.positions[examples])

    def order(self, epoch: int) -> np.ndarray:
        """The epoch's permutation of the part's examples, int64 (E,), before they are sorted into batches."""
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
        for everyone in self.every_part():
            for examples in np.array_split(everyone, max(1, len(everyone) // _BLOCK)):
                prompts = self.prompts(examples, epoch)
                dropped_history, cut_titles = dropped_history + prompts.dropped_history, cut_titles + prompts.cut_titles
        return {"history items dropped": dropped_history, "prompts with cut titles": cut_titles}

    def steps(self, batch_size: int) -> int:
        """Of an epoch; a batch is of one part."""
        return int(self._steps(batch_size).sum())

    def global_batch(self, epoch: int, step: int, batch_size: int) -> tuple[np.ndarray, Prompts]:
        """The examples of a step, longest prompt first, and their prompts.

        The epoch's order of a part is cut into windows of 64 batches; within each the prompts are sorted by length, cut
        into batches, and the batches shuffled. Parts are in an order of their own.
        """
        order = self.users.order(key64(self.seed, epoch, Draw.PROJECTION_PARTS))
        ends = np.cumsum(self._steps(batch_size)[order])
        place = int(np.searchsorted(ends, step, side="right"))
        self.hold(int(order[place]))
        window, place = divmod(step - int(ends[place - 1] if place else 0), _WINDOW)
        examples, prompts, batches = self._window(epoch, window, batch_size)
        rows = batches[place]
        return examples[rows], take(prompts, rows)

    def _steps(self, batch_size: int) -> np.ndarray:
        """int64 (P,), of each part."""
        return -(-self.counts_P // batch_size)

    def _sorted_window(self, epoch: int, window: int, batch_size: int) -> tuple[np.ndarray, Prompts, list[np.ndarray]]:
        examples = self._order(epoch)[window * _WINDOW * batch_size : (window + 1) * _WINDOW * batch_size]
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
