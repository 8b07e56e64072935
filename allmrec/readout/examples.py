"""What LLM-SRec trains on: users' prompts, and the items that a step compares them with.

As Stage-2's examples, but for the prompts, which list no candidates and are read behind several of their items, so that
one prompt has several targets.

Dimensions: B users of a step, K readouts before the last, R = B + K, I items that a step compares with, C negatives
"""

from dataclasses import dataclass

import numpy as np

from allmrec.core.hashing import Draw, draws, key64, mix64
from allmrec.data.negative_sampling import draw_negatives
from allmrec.data.sequences import Sequences
from allmrec.data.training_users import TrainingUsers
from allmrec.llm.prompt import Prompts
from allmrec.projection.examples import Examples
from allmrec.readout.network import ReadoutConfig
from allmrec.readout.prompts import Branches, ReadoutPrompts


@dataclass(frozen=True)
class Readouts:
    """R of a step: each user's last one, and then those before."""

    histories: Sequences  # what came before each target
    targets: np.ndarray  # int32 (R,)
    seen: Sequences  # all training items of each one's user
    hashes: np.ndarray  # uint64 (R,)
    branches: Branches

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Comparison:
    """The items of a step."""

    items: np.ndarray  # int32 (I,), ascending
    target_R: np.ndarray  # int64: the place of each readout's
    competes_RI: np.ndarray  # bool: among which it is to be found


class ReadoutExamples(Examples):
    """See `Examples`."""

    def __init__(
        self,
        config: ReadoutConfig,
        users: TrainingUsers | Sequences,
        prompts: ReadoutPrompts,
        seed: int,
        drawable: np.ndarray | None = None,
    ):
        super().__init__(users, prompts.users, 1 + config.num_negatives, seed, config.targets, drawable)
        self.readout_prompts, self.readout_config = prompts, config

    def prompts(self, examples: np.ndarray, epoch: int) -> Prompts:
        return self.readout_prompts.of_users(self.histories(examples))

    def readouts(self, examples: np.ndarray, prompts: Prompts) -> Readouts:
        """Of a step's prompts; a target is the item that follows what its readout sees."""
        after_K, branches = self.readout_prompts.branches(prompts, self.readout_config.readouts_per_prompt - 1)
        rows_R = np.append(np.arange(len(examples)), branches.rows)
        positions_R = self.positions[examples][rows_R]
        positions_R[len(examples) :] -= after_K
        hashes_R = self.hashes[examples][rows_R]
        earlier = positions_R[len(examples) :].astype(np.uint64)
        hashes_R[len(examples) :] = mix64(hashes_R[len(examples) :] ^ key64(Draw.READOUTS) ^ earlier)
        seen = self.sequences.take(self.rows[examples][rows_R])
        return Readouts(
            seen.shortened(positions_R), seen.items[seen.offsets[:-1] + positions_R], seen, hashes_R, branches
        )

    def comparison(self, readouts: Readouts, epoch: int, items: np.ndarray | None = None) -> Comparison:
        """A readout's own negatives compete, or of given items all that its user has not seen.

        Args:
            items: int32, ascending, with all targets among them.
        """
        if items is not None:
            return _with_unseen(readouts, items)
        negatives_RC = draw_negatives(
            readouts.hashes,
            readouts.seen.rows(),
            readouts.seen.items,
            self.drawable,
            self.readout_config.num_negatives,
            key64(self.seed, epoch, Draw.PROJECTION_NEGATIVES),
        )
        drawn = negatives_RC > 0
        items = np.unique(np.append(readouts.targets, negatives_RC[drawn]))
        target_R = np.searchsorted(items, readouts.targets)
        competes_RI = np.zeros((len(readouts), len(items)), dtype=bool)
        competes_RI[np.nonzero(drawn)[0], np.searchsorted(items, negatives_RC[drawn])] = True
        competes_RI[np.arange(len(readouts)), target_R] = True
        return Comparison(items, target_R, competes_RI)

    def round_items(self, epoch: int, first: int, last: int) -> np.ndarray:
        """What the steps of a round compare with, int32, ascending: all their targets, and `round_items` drawn."""
        targets = [self.readouts(*self._step(epoch, step)).targets for step in range(first, last)]
        key = key64(self.seed, epoch, first, Draw.READOUT_ITEMS)
        drawn = draws(self.drawable.astype(np.uint64), key, 1)[:, 0].argsort(kind="stable")
        return np.unique(np.concatenate([self.drawable[drawn[: self.readout_config.round_items]], *targets]))

    def _step(self, epoch: int, step: int) -> tuple[np.ndarray, Prompts]:
        return self.global_batch(epoch, step, self.readout_config.batch_size)


def _with_unseen(readouts: Readouts, items: np.ndarray) -> Comparison:
    target_R = np.searchsorted(items, readouts.targets)
    place = np.searchsorted(items, readouts.seen.items).clip(max=len(items) - 1)
    there = items[place] == readouts.seen.items
    competes_RI = np.ones((len(readouts), len(items)), dtype=bool)
    competes_RI[readouts.seen.rows()[there], place[there]] = False
    competes_RI[np.arange(len(readouts)), target_R] = True
    return Comparison(items, target_R, competes_RI)
