"""Ragged prompts to padded tensors: batches of similar length under a token budget, soft tokens put into slots."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from allmrec.data.sequences import offsets_of, ranges
from allmrec.llm.prompt import USER_SLOT, Prompts

# B prompts, T padded tokens, S slots, H token dimension, N items (n + 1)


@dataclass(frozen=True)
class SoftTokens:
    """What slots receive: projections O_u and O_i (paper equation 7)."""

    user_BH: torch.Tensor  # of the batch's users
    item_NH: torch.Tensor  # of the whole catalogue, by item index

    def of(self, rows: np.ndarray) -> "SoftTokens":
        """Those of some of the batch's users."""
        return SoftTokens(self.user_BH[torch.from_numpy(rows).to(self.user_BH.device)], self.item_NH)


def token_budget_batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Rows in batches of similar length with at most `budget` padded tokens (one row at least), longest first."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, budget // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def take(prompts: Prompts, rows: np.ndarray) -> Prompts:
    """The given prompts, in that order."""
    lengths = prompts.lengths[rows]
    offsets = offsets_of(lengths)
    slot_bounds = np.searchsorted(prompts.slot_positions, prompts.offsets)
    slots_of = np.diff(slot_bounds)[rows]
    slots = ranges(slot_bounds[:-1][rows], slots_of)
    shift = np.repeat(offsets[:-1] - prompts.offsets[:-1][rows], slots_of)
    return Prompts(
        prompts.tokens[ranges(prompts.offsets[:-1][rows], lengths)],
        offsets,
        prompts.slot_positions[slots] + shift,
        prompts.slot_items[slots],
    )


def padded_tokens(prompts: Prompts, width: int, padding: int) -> torch.Tensor:
    """int64 (B, width), prompts left-aligned."""
    tokens_BT = np.full((len(prompts), width), padding, dtype=np.int64)
    rows = np.repeat(np.arange(len(prompts)), prompts.lengths)
    tokens_BT[rows, np.arange(len(prompts.tokens)) - prompts.offsets[rows]] = prompts.tokens
    return torch.from_numpy(tokens_BT)


def fill_slots(embeds_BTH: torch.Tensor, prompts: Prompts, soft: SoftTokens) -> torch.Tensor:
    """Embeddings with the soft tokens in the prompts' slots; gradients flow to the soft tokens."""
    if not len(prompts.slot_positions):
        return embeds_BTH
    device = embeds_BTH.device
    rows = prompts.slot_rows()
    row_S = torch.from_numpy(rows).to(device)
    column_S = torch.from_numpy(prompts.slot_positions - prompts.offsets[rows]).to(device)
    item_S = torch.from_numpy(prompts.slot_items.astype(np.int64)).to(device)
    values_SH = torch.where((item_S == USER_SLOT)[:, None], soft.user_BH[row_S], soft.item_NH[item_S])
    return embeds_BTH.index_put((row_S, column_S), values_SH.to(embeds_BTH.dtype))
