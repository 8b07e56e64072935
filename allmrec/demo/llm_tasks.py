"""Synthetic tasks that a stand-in LLM is examined by: prompts about random titles, never an interaction.

Every slot holds a fresh random vector, and candidates are recommended by softmax(beta * <user + mean of history,
candidate>): the answer can only be found by reading the slots. Prompts are built as Stage-2 and ranking build them.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from allmrec.data.sequences import Sequences, offsets_of, ranges
from allmrec.llm.batches import SoftTokens
from allmrec.llm.prompt import PromptBuilder

# B prompts, C candidates, N items (n + 1), K vector, H token dimension

BETA = 0.7  # of the softmax; makes an entropy of about 2 of ln 20 = 3
VECTOR_SCALE = 1.43  # an item's vector has this over the fourth root of K per dimension: K does not change the entropy


@dataclass(frozen=True)
class Task:
    """A batch of prompts, their answers, and what a perfect reader would answer."""

    history: Sequences
    candidates: np.ndarray  # int32 (B, C), zeros are no candidates
    scores_BC: np.ndarray  # float64: beta * <user + mean of history, candidate>
    soft: SoftTokens

    @property
    def probabilities_BC(self) -> np.ndarray:
        scores = np.where(self.candidates > 0, self.scores_BC, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)


class TaskMaker:
    """Draws tasks over one catalogue.

    Args:
        reads: (K, H): what the LLM reads a unit vector from, for each of a vector's dimensions.
    """

    def __init__(self, builder: PromptBuilder, reads: torch.Tensor, seed: int):
        self.builder, self.reads_KH = builder, reads
        self.unread_H = (reads == 0).all(dim=0) * reads.abs().max()  # how loud, in the dimensions not read
        self.random = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        titles = builder.titles
        lengths = titles.lengths
        table = np.full((len(lengths), int(lengths.max())), -1, dtype=np.int32)
        table[np.repeat(np.arange(len(lengths)), lengths), ranges(np.zeros_like(lengths), lengths)] = titles.tokens
        # Neighbours in this order share the beginning of their titles.
        self.alphabetic = 1 + np.lexsort(table[1:].T[::-1]).astype(np.int32)

    def draw(self, count: int, num_candidates: int, alike: int = 0) -> Task:
        history = self._history(count, self.builder.config.max_history)
        candidates = self._candidates(count, num_candidates, alike)
        used = np.unique(np.concatenate([candidates.ravel(), history.items]))
        user_BK, item_NK = self._vectors(count, used)
        rows = torch.from_numpy(history.rows())
        sums_BK = torch.zeros_like(user_BK).index_add_(0, rows, item_NK[torch.from_numpy(history.items).long()])
        mean_BK = sums_BK / torch.from_numpy(history.lengths).clamp(min=1)[:, None]
        chosen_BCK = item_NK[torch.from_numpy(candidates).long()]
        scores_BC = BETA * torch.einsum("bk,bck->bc", user_BK + mean_BK, chosen_BCK)
        soft = SoftTokens(self._tokens(user_BK), self._tokens(item_NK))
        return Task(history, candidates, scores_BC.double().numpy(), soft)

    def _tokens(self, vectors_NK: torch.Tensor) -> torch.Tensor:
        """Soft tokens (N, H), as loud in the dimensions that the LLM does not read: a projector writes into all."""
        noise_NH = torch.randn(len(vectors_NK), len(self.unread_H), generator=self.generator)
        loudness_N1 = vectors_NK.square().mean(dim=1, keepdim=True).sqrt()
        return vectors_NK @ self.reads_KH + loudness_N1 * self.unread_H * noise_NH

    def _history(self, count: int, longest: int) -> Sequences:
        lengths = self.random.integers(0, longest + 1, size=count)
        items = self.random.choice(self.alphabetic, size=int(lengths.sum()))
        return Sequences(pa.array([str(i) for i in range(count)]), offsets_of(lengths), items)

    def _candidates(self, count: int, num_candidates: int, alike: int) -> np.ndarray:
        n, pairs = len(self.alphabetic), alike // 2
        positions = self.random.integers(0, n, size=(count, num_candidates))
        positions[:, :pairs] = (positions[:, pairs : 2 * pairs] + self.random.integers(1, 4, size=(count, pairs))) % n
        order = np.argsort(positions, axis=1, kind="stable")
        ordered = np.take_along_axis(positions, order, axis=1)
        again = np.zeros(positions.shape, dtype=bool)  # drawn twice: shown once
        np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
        candidates = np.where(again, 0, self.alphabetic[positions])
        return np.take_along_axis(candidates, np.argsort(self.random.random(positions.shape), axis=1), axis=1)

    def _vectors(self, count: int, used: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Users' and items' vectors, (B, K) and (N, K), of this batch only; zeros for items that it does not use."""
        size = self.reads_KH.shape[0]
        std = VECTOR_SCALE / size**0.25
        lengths_B = std * (0.4 + torch.rand(count, 1, generator=self.generator))
        user_BK = lengths_B * torch.randn(count, size, generator=self.generator)
        item_NK = torch.zeros(len(self.alphabetic) + 1, size)
        item_NK[torch.from_numpy(used).long()] = std * torch.randn(len(used), size, generator=self.generator)
        return user_BK, item_NK
