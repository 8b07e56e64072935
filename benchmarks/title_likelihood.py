"""Full-title likelihood: how probable each candidate's whole title is behind the prompt, for comparison with the trie.

log P(c) is the sum of the log-softmax over the whole vocabulary at every token of the title and at its end. One forward
pass reads the prompt once and every title as a branch of its own behind it.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from allmrec.data.sequences import Sequences, offsets_of, ranges
from allmrec.llm.batches import SoftTokens, fill_slots, padded_tokens, take, token_budget_batches
from allmrec.llm.forward import tree_logits_at
from allmrec.llm.prompt import PromptBuilder, Prompts

# B prompts, C candidates, L tokens of a prompt and its branches, K positions, P predictions, H token dimension


class TitleLikelihood:
    """Scores candidates with a frozen LLM by their titles' likelihood.

    Attributes:
        tokens, padding: real and padding tokens read so far.
    """

    def __init__(self, llm: nn.Module, builder: PromptBuilder, tokens_per_batch: int):
        self.llm, self.builder, self.tokens_per_batch = llm, builder, tokens_per_batch
        self.tokens = self.padding = 0

    @torch.inference_mode()
    def log_likelihoods(self, history: Sequences, candidates: np.ndarray, soft: SoftTokens | None) -> np.ndarray:
        """log P of every candidate's title and the end token, float32 (B, C); -inf for zeros.

        Args:
            history: B users' items, oldest first.
            candidates: int32 (B, C), in the order that the prompt shows them; zeros are no candidates.
        """
        prompts, titles = self.builder.build(history, candidates), self.builder.titles
        out = np.full(candidates.shape, -np.inf, dtype=np.float32)
        branches = np.where(candidates > 0, titles.lengths[candidates], 0).sum(axis=1)
        for rows in token_budget_batches(prompts.lengths + branches, self.tokens_per_batch):
            out[rows] = self._score(take(prompts, rows), candidates[rows], soft and soft.of(rows))
        return out

    def _score(self, prompts: Prompts, candidates: np.ndarray, soft: SoftTokens | None) -> np.ndarray:
        llm: Any = self.llm
        embedding = llm.get_input_embeddings()
        device = embedding.weight.device
        row_N, column_N = np.nonzero(candidates)  # N titles
        answers, answer_lengths_N = self.builder.answers(candidates[row_N, column_N])
        read_N = answer_lengths_N - 1  # nothing follows the end token
        branches_B = np.bincount(row_N, weights=read_N, minlength=len(prompts)).astype(np.int64)
        length_B = prompts.lengths + branches_B
        # Position of each title's first token: behind the prompt and the titles before it.
        start_N = (prompts.lengths - offsets_of(branches_B)[:-1])[row_N] + offsets_of(read_N)[:-1]
        width = int(length_B.max())

        title_P = np.repeat(np.arange(len(row_N)), answer_lengths_N)
        depth_P = ranges(np.zeros_like(answer_lengths_N), answer_lengths_N)  # 0: predicted by the prompt's last token
        row_P = row_N[title_P]
        source_P = np.where(depth_P == 0, prompts.lengths[row_P] - 1, start_N[title_P] + depth_P - 1)
        inner = depth_P < read_N[title_P]  # all but the end tokens are read, too
        row_R, at_R = torch.from_numpy(row_P[inner]), torch.from_numpy((start_N[title_P] + depth_P)[inner])
        tokens_BL = padded_tokens(prompts, width, self.builder.end)
        tokens_BL[row_R, at_R] = torch.from_numpy(answers[inner].astype(np.int64))
        length_B1 = torch.from_numpy(prompts.lengths)[:, None]
        positions_BL = torch.minimum(torch.arange(width), length_B1)  # padding has none of its own
        positions_BL[row_R, at_R] = torch.from_numpy((prompts.lengths[row_P] + depth_P)[inner])
        branch_BL = torch.where(torch.arange(width) < length_B1, 0, -1)
        branch_BL[row_R, at_R] = torch.from_numpy(column_N[title_P][inner] + 1)
        self.tokens += int(length_B.sum())
        self.padding += tokens_BL.numel() - int(length_B.sum())

        # A token sees the prompt and its own branch, up to itself.
        of_branch = (branch_BL[:, None] == 0) | (branch_BL[:, None] == branch_BL[:, :, None])
        seen_BLL = of_branch & torch.ones(width, width, dtype=torch.bool).tril()
        sources, place_P = np.unique(row_P * width + source_P, return_inverse=True)
        embeds_BLH = embedding(tokens_BL.to(device))
        if soft is not None:
            embeds_BLH = fill_slots(embeds_BLH, prompts, soft)
        logits_KV = tree_logits_at(
            llm, torch.from_numpy(sources).to(device), embeds_BLH, seen_BLL.to(device), positions_BL.to(device)
        )
        log_p_KV = logits_KV.log_softmax(dim=1)
        log_p_P = log_p_KV[torch.from_numpy(place_P).to(device), torch.from_numpy(answers.astype(np.int64)).to(device)]
        out = np.full(candidates.shape, -np.inf, dtype=np.float32)
        out[row_N, column_N] = np.bincount(title_P, weights=log_p_P.double().cpu().numpy(), minlength=len(row_N))
        return out
