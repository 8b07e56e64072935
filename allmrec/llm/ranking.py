"""Ranking by the candidate trie: one forward pass over the prompt and the trie's inner tokens.

log P(c) is the sum, over the branching nodes on the candidate's path, of the log-softmax restricted to the node's
children. It always names a valid item and gives a full ranking whose probabilities sum to one.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from allmrec.data.sequences import Sequences
from allmrec.llm.batches import SoftTokens, fill_slots, padded_tokens, take, token_budget_batches
from allmrec.llm.loading import hidden_states, vocabulary_logits
from allmrec.llm.prompt import PromptBuilder, Prompts
from allmrec.llm.question import Question
from allmrec.llm.trie import ROOT, Tries, build_tries

# B prompts, C candidates, T prompt tokens, K inner tokens, L = T + K, M nodes, E edges, H token dimension


class Ranker:
    """Ranks candidates with a frozen LLM.

    Attributes:
        tokens, padding: real and padding tokens seen so far, to report throughput and waste.
        dropped_history, cut_titles: how much over-long prompts lost so far.
    """

    def __init__(self, llm: nn.Module, builder: PromptBuilder | Question, tokens_per_batch: int):
        self.llm, self.builder, self.tokens_per_batch = llm, builder, tokens_per_batch
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
        for rows in token_budget_batches(prompts.lengths, self.tokens_per_batch):
            tries = build_tries(self.builder.titles, candidates[rows], self.builder.end)
            here = take(prompts, rows)
            width = _width(here, tries)
            self.tokens += len(here.tokens) + len(tries.node_row)
            self.padding += len(here) * width - len(here.tokens) - len(tries.node_row)
            log_p = rank(self.llm, here, tries, soft and soft.of(rows), self.builder.end)
            good = candidates[rows] > 0
            if not np.isfinite(log_p[good]).all():
                raise ValueError(f"the LLM gave NaN or inf for users {history.user_ids.take(rows)[:5].to_pylist()} …")
            out[rows] = np.where(good, log_p, -np.inf)
        return out


def rank(llm: Any, prompts: Prompts, tries: Tries, soft: SoftTokens | None, padding: int) -> np.ndarray:
    """One forward pass of a batch: log P of every candidate, float32 (B, C).

    Args:
        tries: the candidates' of these prompts.
        padding: a token for where nothing is.
    """
    embedding = llm.get_input_embeddings()
    device, dtype = embedding.weight.device, embedding.weight.dtype
    lengths_B = torch.from_numpy(prompts.lengths)
    width = _width(prompts, tries)
    row_M, column_M = torch.from_numpy(tries.node_row), torch.from_numpy(_columns(prompts, tries))
    tokens_BL = padded_tokens(prompts, width, padding)
    tokens_BL[row_M, column_M] = torch.from_numpy(tries.node_token.astype(np.int64))
    place_L = torch.arange(width)
    positions_BL = torch.where(place_L < lengths_B[:, None], place_L, 0)
    positions_BL[row_M, column_M] = lengths_B[row_M] + torch.from_numpy(tries.node_depth) - 1

    embeds_BLH = embedding(tokens_BL.to(device))
    if soft is not None:
        embeds_BLH = fill_slots(embeds_BLH, prompts, soft)
    mask_BLL = _visible(lengths_B, width, tries, column_M)
    additive = torch.zeros(mask_BLL.shape, dtype=dtype).masked_fill_(~mask_BLL, torch.finfo(dtype).min)
    hidden_BLH = hidden_states(llm, embeds_BLH, additive[:, None].to(device), positions_BL.to(device))

    # Where each edge is decided: at its branching node, or at the prompt's last token.
    decided_E = prompts.lengths[tries.edge_row] - 1
    below = tries.edge_parent != ROOT
    decided_E[below] = column_M.numpy()[tries.edge_parent[below]]
    nodes, node_of_edge = np.unique(tries.edge_row * width + decided_E, return_inverse=True)
    hidden_KH = hidden_BLH.flatten(0, 1)[torch.from_numpy(nodes).to(device)]
    logits_KV = vocabulary_logits(llm, hidden_KH).cpu()
    node_E = torch.from_numpy(node_of_edge)
    logits_E = logits_KV[node_E, torch.from_numpy(tries.edge_token.astype(np.int64))].double()
    log_p_E = logits_E - _segment_logsumexp(logits_E, node_E, len(nodes))[node_E]
    log_p = np.bincount(
        tries.path_candidate, weights=log_p_E.numpy()[tries.path_edge], minlength=tries.sharers.size
    ).reshape(tries.sharers.shape)
    return (log_p - np.log(np.maximum(tries.sharers, 1))).astype(np.float32)


def _columns(prompts: Prompts, tries: Tries) -> np.ndarray:
    """The column of each node, int64 (M,): right behind its prompt, in the order of depth."""
    order = np.argsort(tries.node_row, kind="stable")
    ordered = tries.node_row[order]
    column = np.empty(len(order), dtype=np.int64)
    column[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return prompts.lengths[tries.node_row] + column


def _width(prompts: Prompts, tries: Tries) -> int:
    """Of the batch, in tokens, L."""
    return int((prompts.lengths + np.bincount(tries.node_row, minlength=len(prompts))).max())


def _visible(lengths_B: torch.Tensor, width: int, tries: Tries, column_M: torch.Tensor) -> torch.Tensor:
    """bool (B, L, L): causal within the prompt; a node sees the prompt, its ancestors and itself."""
    place_L = torch.arange(width)
    mask_BLL = (place_L[:, None] >= place_L) & (place_L < lengths_B[:, None, None])
    for depth in range(1, int(tries.node_depth.max(initial=0)) + 1):
        nodes = np.flatnonzero(tries.node_depth == depth)
        row, column = torch.from_numpy(tries.node_row[nodes]), column_M[nodes]
        if depth > 1:
            mask_BLL[row, column] = mask_BLL[row, column_M[tries.node_parent[nodes]]]
        mask_BLL[row, column, column] = True
    return mask_BLL


def _segment_logsumexp(values_E: torch.Tensor, segment_E: torch.Tensor, count: int) -> torch.Tensor:
    top = torch.full((count,), -torch.inf, dtype=values_E.dtype).scatter_reduce(0, segment_E, values_E, "amax")
    return top + torch.zeros_like(top).index_add(0, segment_E, (values_E - top[segment_E]).exp()).log()
