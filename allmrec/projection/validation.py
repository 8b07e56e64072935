"""Stored validation cases as the LLM reads them while the projectors train: prompts and tries, made once.

Dimensions: B cases, C candidates (the target first), I items in slots
"""

from dataclasses import dataclass

import numpy as np

from allmrec.data.sequences import Sequences
from allmrec.hashing import Draw, key64, permutations
from allmrec.llm.batches import distinct_items
from allmrec.llm.prompt import PromptBuilder, Prompts
from allmrec.llm.trie import Tries, build_tries


@dataclass(frozen=True)
class Choices:
    """A batch of cases to be ranked."""

    histories: Sequences  # of B users
    candidates: np.ndarray  # int32 (B, C)
    unshuffled: np.ndarray  # int64 (B, C): where the prompt shows each candidate
    prompts: Prompts  # slot_items are positions in `items`
    items: np.ndarray  # int32 (I,): the distinct items in slots; items[0] is USER_SLOT
    tries: Tries  # of the candidates in the order shown
    counts: bool  # or it is there only because every worker must run the same passes

    @classmethod
    def of(
        cls, builder: PromptBuilder, histories: Sequences, candidates: np.ndarray, seed: int, counts: bool = True
    ) -> "Choices":
        order = permutations(histories.hashes(), key64(seed, Draw.PROJECTION_VALIDATION_SHOWN), candidates.shape[1])
        shown = np.take_along_axis(candidates, order, axis=1)
        items, prompts = distinct_items(builder.build(histories, shown))
        tries = build_tries(builder.titles, shown, builder.end)
        return cls(histories, candidates, np.argsort(order, axis=1), prompts, items, tries, counts)
