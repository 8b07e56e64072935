"""Stored validation cases as the LLM reads them while the projectors train: prompts and tries, made once.

Dimensions: B cases, C candidates (the target first), I items in slots
"""

from dataclasses import dataclass

import numpy as np

from allmrec.core.hashing import Draw, key64
from allmrec.data.sequences import Sequences
from allmrec.llm.batches import distinct_items
from allmrec.llm.prompt import PromptBuilder, Prompts
from allmrec.llm.shown_order import ShownOrder
from allmrec.llm.trie import Tries, build_tries


@dataclass(frozen=True)
class ValidationBatch:
    """A batch of cases to be ranked."""

    histories: Sequences  # of B users
    candidates: np.ndarray  # int32 (B, C)
    order: ShownOrder
    prompts: Prompts  # slot_items are positions in `items`
    items: np.ndarray  # int32 (I,): the distinct items in slots; items[0] is USER_SLOT
    tries: Tries  # of the candidates in the order shown
    counts: bool  # or it exists only because every worker must run the same passes

    @classmethod
    def of(
        cls, builder: PromptBuilder, histories: Sequences, candidates: np.ndarray, seed: int, counts: bool = True
    ) -> "ValidationBatch":
        key = key64(seed, Draw.PROJECTION_VALIDATION_SHOWN)
        order = ShownOrder.draw(histories.hashes(), key, candidates.shape[1])
        shown = order.shown(candidates)
        items, prompts = distinct_items(builder.build(histories, shown))
        tries = build_tries(builder.titles, shown, builder.end)
        return cls(histories, candidates, order, prompts, items, tries, counts)
