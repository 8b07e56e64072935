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
            here = soft and SoftTokens(soft.user_BH[torch.from_numpy(rows)], soft.item_NH)
            log_p = self._rank(take(prompts, rows), tries, here)
            good = candidates[rows] > 0
            if not np.isfinite(log_p[good]).all():
                raise ValueError(f"the LLM gave NaN or inf for users {history.user_ids.take(rows)[:5].to_pylist()} …")
            out[rows] = np.where(good, log_p, -np.inf)
        return out

    def _rank(self, prompts: Prompts, tries: Tries, soft: SoftTokens | None) -> np.ndarray:
        llm: Any = self.llm
        embedding = llm.get_input_embeddings()
        device, dtype = embedding.weight.device, embedding.weight.dtype
        lengths_B = torch.from_numpy(prompts.lengths)
        width = int(lengths_B.max())
        column_M, inner_width = _columns(tries)
        tokens_BL = torch.full((len(prompts), width + inner_width), self.builder.end)
        tokens_BL[:, :width] = padded_tokens(prompts, width, self.builder.end)
        positions_BL = torch.zeros_like(tokens_BL)
        positions_BL[:, :width] = torch.arange(width)
        row_M, at_M = torch.from_numpy(tries.node_row), torch.from_numpy(width + column_M)
        tokens_BL[row_M, at_M] = torch.from_numpy(tries.node_token.astype(np.int64))
        positions_BL[row_M, at_M] = lengths_B[row_M] + torch.from_numpy(tries.node_depth) - 1
        mask_BLL = _visible(lengths_B, width, inner_width, tries, column_M)
        self.tokens += len(prompts.tokens) + len(tries.node_row)
        self.padding += tokens_BL.numel() - len(prompts.tokens) - len(tries.node_row)

        embeds_BLH = embedding(tokens_BL.to(device))
        if soft is not None:
            embeds_BLH = fill_slots(embeds_BLH, prompts, soft)
        additive = torch.zeros(mask_BLL.shape, dtype=dtype).masked_fill_(~mask_BLL, torch.finfo(dtype).min)
        hidden_BLH = hidden_states(llm, embeds_BLH, additive[:, None].to(device), positions_BL.to(device))

        # Where each edge is decided: at its branching node, or at the prompt's last token.
        inner = np.where(tries.edge_parent == ROOT, 0, tries.edge_parent)
        at_node = width + column_M[inner] if len(column_M) else inner
        decided_E = np.where(tries.edge_parent == ROOT, prompts.lengths[tries.edge_row] - 1, at_node)
        length = width + inner_width
        nodes, node_of_edge = np.unique(tries.edge_row * length + decided_E, return_inverse=True)
        hidden_KH = hidden_BLH.flatten(0, 1)[torch.from_numpy(nodes).to(device)]
        logits_KV = vocabulary_logits(llm, hidden_KH).cpu()
        node_E = torch.from_numpy(node_of_edge)
        logits_E = logits_KV[node_E, torch.from_numpy(tries.edge_token.astype(np.int64))].double()
        log_p_E = logits_E - _segment_logsumexp(logits_E, node_E, len(nodes))[node_E]
        log_p = np.bincount(
            tries.path_candidate, weights=log_p_E.numpy()[tries.path_edge], minlength=tries.sharers.size
        ).reshape(tries.sharers.shape)
        return (log_p - np.log(np.maximum(tries.sharers, 1))).astype(np.float32)


def _columns(tries: Tries) -> tuple[np.ndarray, int]:
    """The column of each node behind the prompt, int64 (M,), and how many columns there are."""
    order = np.argsort(tries.node_row, kind="stable")
    ordered = tries.node_row[order]
    column = np.empty(len(order), dtype=np.int64)
    column[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return column, int(column.max(initial=-1)) + 1


def _visible(lengths_B: torch.Tensor, width: int, inner: int, tries: Tries, column_M: np.ndarray) -> torch.Tensor:
    """bool (B, L, L): causal within the prompt; a node sees the prompt, its ancestors and itself."""
    position_T = torch.arange(width)
    real_BT = position_T < lengths_B[:, None]
    mask_BLL = torch.zeros(len(lengths_B), width + inner, width + inner, dtype=torch.bool)
    mask_BLL[:, :width, :width] = (position_T[:, None] >= position_T) & real_BT[:, None, :]
    mask_BLL[:, width:, :width] = real_BT[:, None, :]
    inner_mask = mask_BLL[:, width:, width:]
    for depth in range(1, int(tries.node_depth.max(initial=0)) + 1):
        nodes = np.flatnonzero(tries.node_depth == depth)
        row, column = torch.from_numpy(tries.node_row[nodes]), torch.from_numpy(column_M[nodes])
        if depth > 1:
            inner_mask[row, column] = inner_mask[row, torch.from_numpy(column_M[tries.node_parent[nodes]])]
        inner_mask[row, column, column] = True
    # Padding sees itself, so that no softmax runs over nothing.
    mask_BLL.diagonal(dim1=1, dim2=2).fill_(True)
    return mask_BLL


def _segment_logsumexp(values_E: torch.Tensor, segment_E: torch.Tensor, count: int) -> torch.Tensor:
    top = torch.full((count,), -torch.inf, dtype=values_E.dtype).scatter_reduce(0, segment_E, values_E, "amax")
    return top + torch.zeros_like(top).index_add(0, segment_E, (values_E - top[segment_E]).exp()).log()
