"""Ranking by the candidate trie.

It always names a valid item and gives a full ranking whose probabilities sum to one.
"""

import numpy as np
import torch
from torch import nn

from allmrec.data.sequences import Sequences
from allmrec.llm.batches import SoftTokens, TokenBudget, shown_alone, take
from allmrec.llm.packed import packed_width, rank
from allmrec.llm.probe import refuse_inexact
from allmrec.llm.prompt import PromptBuilder
from allmrec.llm.question import Question
from allmrec.llm.tensor_parallel import is_in_parts, on_all_ranks
from allmrec.llm.trie import build_tries

# B prompts, C candidates, H token dimension


class Ranker:
    """Ranks candidates with a frozen LLM.

    Attributes:
        tokens, padding: real and padding tokens seen so far, to report throughput and waste.
        dropped_history, cut_titles: how much over-long prompts lost so far.
    """

    def __init__(self, llm: nn.Module, builder: PromptBuilder | Question, tokens_per_batch: int):
        """Raises ValueError naming the LLM's architecture when it cannot be ranked by tries."""
        on_all_ranks(refuse_inexact, llm)
        self.llm, self.builder, self.budget = llm, builder, TokenBudget(tokens_per_batch)
        self.tokens = self.padding = self.dropped_history = self.cut_titles = 0

    @torch.inference_mode()
    def log_probabilities(
        self, history: Sequences, candidates: np.ndarray, soft: SoftTokens | None = None
    ) -> np.ndarray:
        """log P of every candidate.

        Args:
            history: B users' items, oldest first.
            candidates: int32 (B, C), in the order that the prompt shows them; zeros are no candidates.
            soft: soft tokens for the slots; required if and only if the builder makes slots.

        Returns:
            float32 (B, C); candidates with identical titles share their leaf's probability; -inf for zeros.

        Raises:
            ValueError: the LLM gave NaN or inf; names the batch.
        """
        assert (soft is not None) == self.builder.soft, "soft tokens go where the prompt has slots"
        prompts = self.builder.build(history, candidates)
        self.dropped_history += prompts.dropped_history
        self.cut_titles += prompts.cut_titles
        out = np.full(candidates.shape, -np.inf, dtype=np.float32)

        def rank_batch(rows: np.ndarray) -> None:
            tries = build_tries(self.builder.titles, candidates[rows], self.builder.end)
            here = take(prompts, rows)
            shown = soft and soft.of(rows)
            if shown is not None and is_in_parts(self.llm):  # each part is told of them
                here, shown = shown_alone(here, shown)
            log_p = on_all_ranks(rank, self.llm, here, tries, shown, self.builder.end)
            self.tokens += len(here.tokens) + len(tries.node_row)
            self.padding += len(here) * packed_width(here, tries) - len(here.tokens) - len(tries.node_row)
            good = candidates[rows] > 0
            if not np.isfinite(log_p[good]).all():
                raise ValueError(f"the LLM gave NaN or inf for users {history.user_ids.take(rows)[:5].to_pylist()} …")
            out[rows] = np.where(good, log_p, -np.inf)

        self.budget.each_batch(prompts.lengths, rank_batch)
        return out
