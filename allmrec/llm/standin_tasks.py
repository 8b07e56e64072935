"""Synthetic tasks that a stand-in LLM is pretrained on: prompts about random titles, never an interaction.

In a *matching* prompt every slot holds a fresh random vector, and candidates are recommended by
softmax(beta * <user + mean of history, candidate>): the answer can only be found by reading the slots. In a *plain*
prompt there are no slots, and any candidate may be the answer. Both are built by the `PromptBuilder` that Stage-2 and
ranking use.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from allmrec.data.sequences import Sequences, offsets_of, ranges
from allmrec.llm.batches import SoftTokens, padded_tokens
from allmrec.llm.prompt import PromptBuilder, Prompts
from allmrec.llm.trie import ROOT, build_tries

# B prompts, C candidates, T padded tokens, N items (n + 1), K vector, H token dimension, E edges, M branching nodes

BETA = 0.7  # of the softmax; makes an entropy of about 2 of ln 20 = 3
VECTOR_STD = 0.6  # of an item's vector, per dimension


@dataclass(frozen=True)
class Task:
    """A batch of prompts, their answers, and what a perfect reader would answer."""

    builder: PromptBuilder
    history: Sequences
    candidates: np.ndarray  # int32 (B, C), zeros are no candidates
    scores_BC: np.ndarray  # float64: beta * <user + mean of history, candidate>
    soft: SoftTokens | None

    @property
    def probabilities_BC(self) -> np.ndarray:
        scores = np.where(self.candidates > 0, self.scores_BC, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)


class TaskMaker:
    """Draws tasks over one catalogue.

    Args:
        builders: of matching prompts (with slots) and of plain ones.
        reads: (K, H), rows orthonormal: the dimensions of a soft token that the vectors are put into.
        gain: how much the LLM amplifies these; vectors are put in so much smaller.
        noise: highest standard deviation of what a soft token holds in the other dimensions.
    """

    def __init__(
        self, matching: PromptBuilder, plain: PromptBuilder, reads: torch.Tensor, gain: float, noise: float, seed: int
    ):
        self.matching, self.plain, self.reads_KH, self.noise = matching, plain, reads / gain, noise
        self.random = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.rest_HH = torch.eye(reads.shape[1]) - reads.T @ reads
        titles = matching.titles
        lengths = titles.lengths
        table = np.full((len(lengths), int(lengths.max())), -1, dtype=np.int32)
        table[np.repeat(np.arange(len(lengths)), lengths), ranges(np.zeros_like(lengths), lengths)] = titles.tokens
        # Neighbours in this order share the beginning of their titles.
        self.alphabetic = 1 + np.lexsort(table[1:].T[::-1]).astype(np.int32)

    def draw(self, count: int, num_candidates: int, soft: bool = True) -> Task:
        builder = self.matching if soft else self.plain
        history = self._history(count, builder.config.max_history)
        candidates = self._candidates(count, num_candidates)
        if not soft:
            return Task(builder, history, candidates, np.zeros(candidates.shape), None)
        used = np.unique(np.concatenate([candidates.ravel(), history.items]))
        user_BK, item_NK = self._vectors(count, used)
        rows = torch.from_numpy(history.rows())
        sums_BK = torch.zeros_like(user_BK).index_add_(0, rows, item_NK[torch.from_numpy(history.items).long()])
        mean_BK = sums_BK / torch.from_numpy(history.lengths).clamp(min=1)[:, None]
        chosen_BCK = item_NK[torch.from_numpy(candidates).long()]
        scores_BC = BETA * torch.einsum("bk,bck->bc", user_BK + mean_BK, chosen_BCK)
        return Task(
            builder,
            history,
            candidates,
            scores_BC.double().numpy(),
            SoftTokens(self._tokens(user_BK), self._tokens(item_NK, torch.from_numpy(used).long())),
        )

    def _history(self, count: int, longest: int) -> Sequences:
        lengths = self.random.integers(0, longest + 1, size=count)
        items = self.random.choice(self.alphabetic, size=int(lengths.sum()))
        return Sequences(pa.array([str(i) for i in range(count)]), offsets_of(lengths), items)

    def _candidates(self, count: int, num_candidates: int) -> np.ndarray:
        """Half of the candidates come in pairs of neighbours, so that titles with a common beginning are met."""
        n = len(self.alphabetic)
        places = self.random.integers(0, n, size=(count, num_candidates))
        pairs = num_candidates // 4
        places[:, :pairs] = (places[:, pairs : 2 * pairs] + self.random.integers(1, 4, size=(count, pairs))) % n
        order = np.argsort(places, axis=1, kind="stable")
        ordered = np.take_along_axis(places, order, axis=1)
        again = np.zeros(places.shape, dtype=bool)  # drawn twice: shown once
        np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
        candidates = np.where(again, 0, self.alphabetic[places])
        return np.take_along_axis(candidates, np.argsort(self.random.random(places.shape), axis=1), axis=1)

    def _vectors(self, count: int, used: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Users' and items' vectors, (B, K) and (N, K), of this batch only; zeros for items that it does not use."""
        size = self.reads_KH.shape[0]
        lengths_B = VECTOR_STD * (0.4 + torch.rand(count, 1, generator=self.generator))
        user_BK = lengths_B * torch.randn(count, size, generator=self.generator)
        item_NK = torch.zeros(len(self.alphabetic) + 1, size)
        item_NK[torch.from_numpy(used).long()] = VECTOR_STD * torch.randn(len(used), size, generator=self.generator)
        return user_BK, item_NK

    def _tokens(self, vectors_RK: torch.Tensor, used: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """Soft tokens (R, H) that hold the vectors, and noise where nothing should be read."""
        tokens_RH = vectors_RK @ self.reads_KH
        if self.noise:
            level = self.noise * torch.rand(1, generator=self.generator)
            shape = tokens_RH[used].shape
            tokens_RH[used] += level * torch.randn(shape, generator=self.generator) @ self.rest_HH
        return tokens_RH


@dataclass(frozen=True)
class Lesson:
    """A task with one answer per prompt, as tensors: what one optimiser step learns from."""

    prompts: Prompts  # prompts and answers
    tokens_BT: torch.Tensor
    answer_at_A: torch.Tensor  # int64, into the flattened (B, T): positions that predict an answer's token
    answer_A: torch.Tensor  # int64
    edge_at_E: torch.Tensor  # int64, into the flattened (B, T): the branching node of each edge
    edge_E: torch.Tensor  # int64: its token
    share_E: torch.Tensor  # float32: the probability of taking it, given its node
    node_E: torch.Tensor  # int64, 0 ... M - 1


def lesson(task: Task, random: np.random.Generator) -> Lesson:
    """Draw an answer for every prompt; supervise every branching node that it passes with all candidates' shares."""
    p_BC = task.probabilities_BC
    column = (p_BC.cumsum(axis=1) < random.random((len(p_BC), 1))).sum(axis=1)
    column = np.minimum(column, p_BC.shape[1] - 1)
    rows = np.arange(len(p_BC))
    builder = task.builder
    prompts = builder.build(task.history, task.candidates)
    answers, answer_lengths = builder.answers(task.candidates[rows, column])
    both, starts = _joined(prompts, answers, answer_lengths)
    width = int(both.lengths.max())
    tokens_BT = padded_tokens(both, width, builder.end)
    # The token at a position is predicted one position earlier.
    last = rows * width + prompts.lengths - 1
    answer_at = np.repeat(last, answer_lengths) + np.arange(len(answers)) - np.repeat(starts, answer_lengths)

    tries = build_tries(builder.titles, task.candidates, builder.end)
    mass_E = np.bincount(tries.path_edge, weights=p_BC.ravel()[tries.path_candidate], minlength=len(tries.edge_row))
    depth_of = np.append(tries.node_depth, 0)  # ROOT is -1: the appended entry
    node_key = np.where(tries.edge_parent == ROOT, tries.edge_row, len(p_BC) + tries.edge_parent)
    answered = np.zeros(p_BC.size, dtype=bool)
    answered[rows * p_BC.shape[1] + column] = True
    passed = np.unique(node_key[tries.path_edge[answered[tries.path_candidate]]])
    keep = np.isin(node_key, passed)
    node_E = np.searchsorted(passed, node_key[keep])
    node_mass = np.bincount(node_E, weights=mass_E[keep])
    return Lesson(
        both,
        tokens_BT,
        torch.from_numpy(answer_at),
        torch.from_numpy(answers.astype(np.int64)),
        torch.from_numpy(last[tries.edge_row[keep]] + depth_of[tries.edge_parent[keep]]),
        torch.from_numpy(tries.edge_token[keep].astype(np.int64)),
        torch.from_numpy((mass_E[keep] / node_mass[node_E]).astype(np.float32)),
        torch.from_numpy(node_E),
    )


def _joined(prompts: Prompts, answers: np.ndarray, lengths: np.ndarray) -> tuple[Prompts, np.ndarray]:
    """Prompts with their answers behind them; where each answer starts in `answers`."""
    starts = offsets_of(lengths)
    where = np.repeat(prompts.offsets[1:], lengths)
    tokens = np.insert(prompts.tokens, where, answers)
    shift = np.repeat(starts[:-1], np.bincount(prompts.slot_rows(), minlength=len(prompts)))
    joined = Prompts(tokens, prompts.offsets + starts, prompts.slot_positions + shift, prompts.slot_items)
    return joined, starts[:-1]
