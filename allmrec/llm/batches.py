"""Ragged prompts to padded tensors: batches of similar length under a token budget, soft tokens put into slots."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from allmrec.data.sequences import offsets_of, ranges
from allmrec.llm.prompt import USER_SLOT, Prompts

_MAX_PADDING = 0.05

# B prompts, T padded tokens, S slots, H token dimension, N items (n + 1)


class TokensByItem(Protocol):
    """A tensor (N, H) by item index, or what makes its rows when they are shown."""

    def __getitem__(self, items_S: torch.Tensor, /) -> torch.Tensor: ...


@dataclass(frozen=True)
class SoftTokens:
    """What slots receive: projections O_u and O_i (paper equation 7)."""

    user_BH: torch.Tensor  # of the batch's users
    item_NH: TokensByItem  # of the whole catalogue

    def of(self, rows: np.ndarray) -> "SoftTokens":
        """Those of some of the batch's users."""
        return SoftTokens(self.user_BH[torch.from_numpy(rows).to(self.user_BH.device)], self.item_NH)


def token_budget_batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Rows in batches of similar length, longest first.

    A batch has at most `budget` padded tokens, of which at most 5 % are padding, or it is a single row. The second
    rule costs few batches: each that it cuts short spans lengths of a ratio of 1.05 at least.
    """
    order = np.argsort(-lengths, kind="stable")
    total = np.concatenate([[0], np.cumsum(lengths[order])])
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        sizes = np.arange(1, min(max(1, budget // longest), len(order) - start) + 1)
        read = total[start + sizes] - total[start]
        # The mean length falls with the size, so the sizes that fit come first.
        size = max(1, int((read >= (1 - _MAX_PADDING) * longest * sizes).sum()))
        yield order[start : start + size]
        start += size


class TokenBudget:
    """How many padded tokens one forward pass takes: half as many from then on each time the device lacks memory.

    Which prompts share a pass does not change a score, but for how sums round.

    Attributes:
        tokens: of a pass at most, unless it is of a single prompt.
        halvings: how often the memory was too small.
    """

    def __init__(self, tokens: int):
        self.tokens, self.halvings = tokens, 0

    def each_batch(self, lengths: np.ndarray, work: Callable[[np.ndarray], None]) -> None:
        """Call `work` with rows in batches (`token_budget_batches`), until each has been done.

        Raises:
            torch.OutOfMemoryError: by `work` on a single row.
        """
        left = np.arange(len(lengths))
        while len(left):
            rows, done = left[:0], 0
            try:
                for rows in token_budget_batches(lengths[left], self.tokens):
                    work(left[rows])
                    done += len(rows)
                return
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise
            # Out here no frame of the pass holds its tensors any more.
            left = left[np.argsort(-lengths[left], kind="stable")[done:]]
            self.tokens, self.halvings = int(lengths[left].max()) * len(rows) // 2, self.halvings + 1
            torch.cuda.empty_cache()


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


def distinct_items(prompts: Prompts) -> tuple[np.ndarray, Prompts]:
    """The items in slots, each once, int32 (I,) and USER_SLOT first; and the prompts with their positions instead.

    So that a batch projects the items that it shows and not the catalogue.
    """
    items, numbers = np.unique(np.append(prompts.slot_items, np.int32(USER_SLOT)), return_inverse=True)
    return items, replace(prompts, slot_items=numbers[:-1].astype(np.int32))


def shown_alone(prompts: Prompts, soft: SoftTokens) -> tuple[Prompts, SoftTokens]:
    """The prompts, with the soft tokens of the items that they show and no others."""
    items, prompts = distinct_items(prompts)
    item_IH = soft.item_NH[torch.from_numpy(items.astype(np.int64)).to(soft.user_BH.device)]
    return prompts, SoftTokens(soft.user_BH, item_IH)


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
