"""What LLM-SRec trains on: users' prompts, and the items that a step compares them with.

As Stage-2's examples, but for the prompts, which list no candidates.

Dimensions: B users of a step, I distinct items of the step, C candidates
"""

from dataclasses import dataclass

import numpy as np

from allmrec.data.sequences import Sequences
from allmrec.llm.prompt import Prompts
from allmrec.projection.examples import Examples
from allmrec.readout.network import ReadoutConfig
from allmrec.readout.prompts import ReadoutPrompts


@dataclass(frozen=True)
class Comparison:
    """The items of a step."""

    items: np.ndarray  # int32 (I,), ascending
    target_B: np.ndarray  # int64: the place of each user's
    competes_BI: np.ndarray  # bool: among which it is to be found


class ReadoutExamples(Examples):
    """See `Examples`."""

    def __init__(
        self,
        config: ReadoutConfig,
        sequences: Sequences,
        prompts: ReadoutPrompts,
        seed: int,
        drawable: np.ndarray | None = None,
    ):
        super().__init__(sequences, prompts.users, 1 + config.num_negatives, seed, config.targets, drawable)
        self.readout_prompts, self.own = prompts, config.negatives == "own"

    def prompts(self, examples: np.ndarray, epoch: int) -> Prompts:
        return self.readout_prompts.of_users(self.histories(examples))

    def comparison(self, examples: np.ndarray, epoch: int) -> Comparison:
        """Targets and negatives, each item once. A user's own negatives compete, or all that the user has not seen."""
        candidates_BC = self.candidates(examples, epoch)
        items = np.unique(candidates_BC[candidates_BC > 0])
        target_B = np.searchsorted(items, self.targets[examples])
        row, column = np.nonzero(candidates_BC)
        competes_BI = np.zeros((len(examples), len(items)), dtype=bool)
        competes_BI[row, np.searchsorted(items, candidates_BC[row, column])] = True
        if not self.own:
            seen = self.sequences.take(self.rows[examples])
            place = np.searchsorted(items, seen.items).clip(max=len(items) - 1)
            there = items[place] == seen.items
            competes_BI = np.ones_like(competes_BI)
            competes_BI[seen.rows()[there], place[there]] = False
            competes_BI[np.arange(len(examples)), target_B] = True
        return Comparison(items, target_B, competes_BI)
