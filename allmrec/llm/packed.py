"""Prompts and their candidates' tries in one forward pass: a row is a prompt and, behind it, the trie's inner tokens.

log P(c) is the sum, over the branching nodes on the candidate's path, of the log-softmax restricted to the node's
children.
"""

from typing import Any

import numpy as np
import torch

from allmrec.llm.batches import SoftTokens, fill_slots, padded_tokens
from allmrec.llm.forward import tree_logits_at
from allmrec.llm.prompt import Prompts
from allmrec.llm.trie import ROOT, Tries

# B prompts, C candidates, T prompt tokens, K inner tokens, L = T + K, M nodes, E edges, P edges on candidates' paths


def rank(llm: Any, prompts: Prompts, tries: Tries, soft: SoftTokens | None, padding: int) -> np.ndarray:
    """One forward pass of a batch: log P of every candidate, float32 (B, C).

    Args:
        tries: the candidates' of these prompts.
        padding: a token for where nothing is.
    """
    return candidate_log_p(llm, prompts, tries, soft, padding).float().numpy()


def candidate_log_p(llm: Any, prompts: Prompts, tries: Tries, soft: SoftTokens | None, padding: int) -> torch.Tensor:
    """As `rank`, float64 (B, C) on the CPU; gradients flow to the soft tokens."""
    embedding = llm.get_input_embeddings()
    device = embedding.weight.device
    lengths_B = torch.from_numpy(prompts.lengths)
    width = packed_width(prompts, tries)
    row_M, column_M = torch.from_numpy(tries.node_row), torch.from_numpy(_columns(prompts, tries))
    tokens_BL = padded_tokens(prompts, width, padding)
    tokens_BL[row_M, column_M] = torch.from_numpy(tries.node_token.astype(np.int64))
    place_L = torch.arange(width)
    positions_BL = torch.where(place_L < lengths_B[:, None], place_L, 0)
    positions_BL[row_M, column_M] = lengths_B[row_M] + torch.from_numpy(tries.node_depth) - 1

    # Where each edge is decided: at its branching node, or at the prompt's last token.
    decided_E = prompts.lengths[tries.edge_row] - 1
    below = tries.edge_parent != ROOT
    decided_E[below] = column_M.numpy()[tries.edge_parent[below]]
    nodes, node_of_edge = np.unique(tries.edge_row * width + decided_E, return_inverse=True)

    embeds_BLH = embedding(tokens_BL.to(device))
    if soft is not None:
        embeds_BLH = fill_slots(embeds_BLH, prompts, soft)
    visible_BLL = _visible(lengths_B, width, tries, column_M)
    logits_KV = tree_logits_at(
        llm, torch.from_numpy(nodes).to(device), embeds_BLH, visible_BLL.to(device), positions_BL.to(device)
    )
    node_E, token_E = torch.from_numpy(node_of_edge), torch.from_numpy(tries.edge_token.astype(np.int64))
    logits_E = logits_KV[node_E.to(device), token_E.to(device)].cpu().double()
    log_p_E = logits_E - _segment_logsumexp(logits_E, node_E, len(nodes))[node_E]
    sharing_BC = torch.from_numpy(np.maximum(tries.title_multiplicity, 1))
    candidate_P, edge_P = torch.from_numpy(tries.path_candidate), torch.from_numpy(tries.path_edge)
    total = log_p_E.new_zeros(sharing_BC.numel()).index_add(0, candidate_P, log_p_E[edge_P])
    return total.view(sharing_BC.shape) - sharing_BC.double().log()


def _columns(prompts: Prompts, tries: Tries) -> np.ndarray:
    """The column of each node, int64 (M,): right behind its prompt, in the order of depth."""
    order = np.argsort(tries.node_row, kind="stable")
    ordered = tries.node_row[order]
    column = np.empty(len(order), dtype=np.int64)
    column[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return prompts.lengths[tries.node_row] + column


def packed_width(prompts: Prompts, tries: Tries) -> int:
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
    top = values_E.detach().new_full((count,), -torch.inf).scatter_reduce(0, segment_E, values_E.detach(), "amax")
    return top + torch.zeros_like(top).index_add(0, segment_E, (values_E - top[segment_E]).exp()).log()
