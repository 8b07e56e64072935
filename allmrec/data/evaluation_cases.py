"""Evaluation cases: one held-out item and its negatives for each user (paper section 5.1).

Written once by `prepare`, so that every system is scored on the same candidates. Which item is held out for "test"
and which for "valid" is the split's business (`allmrec.data.splits`); the history is what came before it.
Protocol "random" draws negatives uniformly, as the paper does; "matched" as held-out items are, among items about as
popular as the target (`allmrec.data.matched_negatives`). Where nothing trains, no item is more popular than another,
and there is no "matched".
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from allmrec.core.artifacts import read_table, shard_name, write_shard
from allmrec.core.hashing import Draw, key64, uniforms
from allmrec.core.settings import Section
from allmrec.core.shard_tasks import Report, ShardTask
from allmrec.core.storage import Storage
from allmrec.data.catalogue import ItemCounts, StoredCounts, warm_and_cold
from allmrec.data.matched_negatives import PopularityLine
from allmrec.data.negative_sampling import draw_negatives
from allmrec.data.sequences import Sequences
from allmrec.data.splits import NONE, Parts, Split, SplitConfig, times_of
from schemas import evaluation_cases

SPLITS = ("valid", "test")
PROTOCOLS = ("random", "matched")
System = Literal[
    "random",
    "popularity",
    "teacher",
    "llm-only",
    "a-llmrec",
    "a-llmrec-untrained",
    "a-llmrec-sbert",
    "morec",
    "ctrl",
    "recformer",
    "tallrec",
    "llm-srec",
]
# In a bundle where `baselines` names them.
TRAINED_BESIDE: tuple[System, ...] = ("morec", "ctrl", "recformer", "tallrec", "llm-srec")
BUILT_IN: tuple[System, ...] = tuple(name for name in get_args(System) if name not in TRAINED_BESIDE)  # in every bundle
_BLOCK = 1 << 15  # users at once


class EvaluationConfig(Section):
    """What is held out, the cases made of it, and the systems scored on them."""

    split: SplitConfig = SplitConfig()  # what trains and what is held out
    num_negatives: int = Field(19, ge=1)  # per test case; paper section 5.1
    matched_strata: int = Field(10, ge=1)  # of popularity, at most; a target's matched negatives share its stratum
    max_users: int | None = Field(None, ge=1)  # about how many users to evaluate; null: all
    # The systems to compare. Unless they are named here, those of `baselines` are, too.
    systems: tuple[System, ...] = BUILT_IN
    baseline: System | None = "teacher"  # that the others are compared to, user by user; null: no comparison
    shuffle: bool = False  # whether systems also score the users by their histories in a drawn order
    generation_users: int = Field(0, ge=0)  # about how many users LLM systems also write answers for

    @model_validator(mode="after")
    def _baseline_is_evaluated(self) -> "EvaluationConfig":
        if self.baseline is not None and self.baseline not in self.systems:
            raise ValueError(
                f"baseline {self.baseline!r} is not among the systems {', '.join(self.systems)}; add it to "
                "evaluation.systems, or set evaluation.baseline to one of them, or to null for no comparison"
            )
        return self


@dataclass(frozen=True)
class CandidateItems:
    """What is drawn from, and what is said of each item; it takes sorts of the catalogue."""

    items: np.ndarray  # int32: those with interactions
    line: PopularityLine | None  # None: nothing trains
    warm_I: np.ndarray  # bool
    cold_I: np.ndarray  # bool

    @classmethod
    def of(cls, counts: ItemCounts, config: EvaluationConfig) -> "CandidateItems":
        line = None
        if counts.popularity.any():
            line = PopularityLine.of(counts, config.num_negatives, config.matched_strata)
        items = np.flatnonzero(counts.interactions).astype(np.int32)
        return cls(items, line, *warm_and_cold(counts.popularity))


@lru_cache(1)
def _of_process(counts: StoredCounts, config: EvaluationConfig) -> CandidateItems:
    """Made once, for all shards that a process draws."""
    return CandidateItems.of(counts.read(), config)


@dataclass(frozen=True)
class DrawCases(ShardTask):
    """Shard numbers → shards of `evaluation_cases`; counts the users of each of SPLITS."""

    sequences: Storage
    counts: StoredCounts
    cases: Storage
    config: EvaluationConfig
    split: Split
    seed: int
    fractions: dict[str, float]

    def process(self, shard: int) -> Report:
        stored = read_table(self.sequences, [shard])
        users = Sequences.from_table(stored)
        parts = self.split.divide(users, times_of(stored))
        items = _of_process(self.counts, self.config)
        table = draw_cases(users, parts, items, self.config, self.seed, self.fractions)
        entry = write_shard(self.cases, evaluation_cases.SCHEMA, shard_name(shard), table)
        return Report(counts=_users_of(table), files={shard_name(shard): entry})


def draw_cases(
    users: Sequences,
    parts: Parts,
    items: CandidateItems,
    config: EvaluationConfig,
    seed: int,
    fractions: dict[str, float] | None = None,
) -> pa.Table:
    """Cases of both protocols for every item that is held out for validation or test.

    Args:
        users: in any number; a user's cases depend on that user, the items' counts and the seed alone.
        parts: of the users' histories.
        items: of the whole log. Items without interactions are never drawn.
        fractions: of each split's users: those whose hash falls below it; everyone by default.

    Returns:
        rows of `evaluation_cases`, in the users' order, then in that of SPLITS and PROTOCOLS.
    """
    drawn = uniforms(users.hashes(), key64(seed, Draw.CASES_USERS), 1)[:, 0]
    positions = {}
    for split, place in (("valid", parts.valid), ("test", parts.test)):
        wanted = drawn < fractions[split] if fractions else True
        positions[split] = np.where(wanted, place, NONE)
    tested = np.flatnonzero((positions["valid"] != NONE) | (positions["test"] != NONE))
    tables = [evaluation_cases.SCHEMA.empty_table()]
    for first in range(0, len(tested), _BLOCK):
        block = tested[first : first + _BLOCK]
        at = {split: place[block] for split, place in positions.items()}
        tables.append(_cases_of(users.take(block), at, items, config, seed))
    return pa.concat_tables(tables).combine_chunks()


def _cases_of(
    users: Sequences,
    positions: dict[str, np.ndarray],
    items: CandidateItems,
    config: EvaluationConfig,
    seed: int,
) -> pa.Table:
    """`positions[split]` is the position of a user's target in the history, or NONE."""
    kinds = [(split, protocol) for split in SPLITS for protocol in PROTOCOLS]
    parts = []
    for number, (split, protocol) in enumerate(kinds):
        key = key64(seed, number, Draw.CASES_NEGATIVES)
        row = np.flatnonzero(positions[split] != NONE)
        if protocol == "random":
            chosen = users.take(row)
            negatives = draw_negatives(
                chosen.hashes(), chosen.rows(), chosen.items, items.items, config.num_negatives, key
            )
        elif items.line is None:
            continue
        else:
            row, negatives = _matched(users, row, positions[split], items.line, config.num_negatives, key)
        target = _targets(users, row, positions[split])
        candidates = np.concatenate([target[:, None], negatives], axis=1)
        parts.append((row, np.full(len(row), number), positions[split][row], candidates))
    row, kind, length, candidates = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((kind, row))
    row, kind, length, candidates = row[order], kind[order], length[order], candidates[order]
    target = candidates[:, 0]
    offsets = np.arange(len(candidates) + 1, dtype=np.int32) * candidates.shape[1]
    columns = {
        "user_id": users.user_ids.take(pa.array(row)),
        "target": target,
        "history_length": length.astype(np.int32),
        "candidates": pa.ListArray.from_arrays(offsets, candidates.ravel()),
        "split": np.array([split for split, _ in kinds])[kind],
        "protocol": np.array([protocol for _, protocol in kinds])[kind],
        "warm": items.warm_I[target],
        "cold": items.cold_I[target],
    }
    return pa.table([columns[name] for name in evaluation_cases.SCHEMA.names], schema=evaluation_cases.SCHEMA)


def _matched(
    users: Sequences, row: np.ndarray, positions: np.ndarray, line: PopularityLine, count: int, key: np.uint64
) -> tuple[np.ndarray, np.ndarray]:
    """Those of the users `row` whose target has matched negatives, and these."""
    row = row[line.keeps(users.take(row).hashes(), _targets(users, row, positions), key)]
    chosen = users.take(row)
    negatives = line.draw(chosen.hashes(), _targets(users, row, positions), chosen.rows(), chosen.items, count, key)
    has = negatives.any(axis=1)
    return row[has], negatives[has]


def _targets(users: Sequences, row: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The items of the users `row` at their positions: int32."""
    return users.items[users.offsets[row] + positions[row]]


def _users_of(table: pa.Table) -> Counter[str]:
    """How many users have a case of each split."""
    first = table.filter(pc.equal(table.column("protocol"), PROTOCOLS[0])).column("split")
    return Counter({split: pc.sum(pc.equal(first, split)).as_py() or 0 for split in SPLITS})
