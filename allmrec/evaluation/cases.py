"""Evaluation cases: one held-out item and its negatives for each user (paper section 5.1).

Written once by `prepare`, so that every system is scored on the same candidates. Which item is held out for "test"
and which for "valid" is the split's business (`allmrec.data.splits`); the history is what came before it.
Protocol "random" draws negatives uniformly, as the paper does; "matched" from items about as popular as the target.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from allmrec.artifacts import read_table, shard_name, write_shard
from allmrec.config import Section
from allmrec.data.assemble import report_row
from allmrec.data.catalogue import warm_and_cold
from allmrec.data.sequences import Sequences
from allmrec.data.splits import NONE, Parts, Split, SplitConfig, times_of
from allmrec.hashing import key64, uniforms
from allmrec.negatives import draw_negatives, popularity_pools
from allmrec.storage import Storage
from schemas import evaluation_cases

SPLITS = ("valid", "test")
PROTOCOLS = ("random", "matched")
System = Literal["random", "popularity", "teacher", "llm-only", "a-llmrec", "a-llmrec-untrained", "a-llmrec-sbert"]
_NEGATIVES, _SAMPLE = 0x4556, 0x5341  # keys: these draws are none of the training's
_BLOCK = 1 << 15  # users at once: pools of matched negatives are some 200 items wide


class EvaluationConfig(Section):
    split: SplitConfig = SplitConfig()  # what trains and what is held out
    num_negatives: int = Field(19, ge=1)  # paper section 5.1
    matched_window: int = Field(100, ge=1)  # neighbours by popularity, each side, that matched negatives come from
    max_users: int | None = Field(None, ge=1)  # evaluate a sample of about so many users; default: everyone
    systems: tuple[System, ...] = get_args(System)  # which to compare


@dataclass(frozen=True)
class DrawCases:
    """Shard numbers → shards of `evaluation_cases`; reports how many cases there are."""

    sequences: Storage
    popularity_I: np.ndarray  # int64 (n + 1,): training interactions by item index
    cases: Storage
    config: EvaluationConfig
    split: Split
    seed: int
    fractions: dict[str, float]

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for shard in batch["id"]:
            stored = read_table(self.sequences, [shard])
            users = Sequences.from_table(stored)
            parts = self.split.divide(users, times_of(stored))
            table = draw_cases(users, parts, self.popularity_I, self.config, self.seed, self.fractions)
            entry = write_shard(self.cases, evaluation_cases.SCHEMA, shard_name(shard), table)
            yield report_row(shard, {"evaluation_cases": entry, **_users_of(table)}, np.zeros(0))


def draw_cases(
    users: Sequences,
    parts: Parts,
    popularity_I: np.ndarray,
    config: EvaluationConfig,
    seed: int,
    fractions: dict[str, float] | None = None,
) -> pa.Table:
    """Cases of both protocols for every item that is held out for validation or test.

    Args:
        users: in any number; a user's cases depend on that user, the items' popularity and the seed alone.
        parts: of the users' histories.
        fractions: of each split's users: those whose hash falls below it; everyone by default.

    Returns:
        rows of `evaluation_cases`, in the users' order, then in that of SPLITS and PROTOCOLS.
    """
    drawn = uniforms(users.hashes(), key64(seed, _SAMPLE), 1)[:, 0]
    places = {}
    for split, place in (("valid", parts.valid), ("test", parts.test)):
        wanted = drawn < fractions[split] if fractions else True
        places[split] = np.where(wanted, place, NONE)
    asked = np.flatnonzero((places["valid"] != NONE) | (places["test"] != NONE))
    tables = [evaluation_cases.SCHEMA.empty_table()]
    for first in range(0, len(asked), _BLOCK):
        block = asked[first : first + _BLOCK]
        at = {split: place[block] for split, place in places.items()}
        tables.append(_cases_of(users.take(block), at, popularity_I, config, seed))
    return pa.concat_tables(tables).combine_chunks()


def _cases_of(
    users: Sequences, places: dict[str, np.ndarray], popularity_I: np.ndarray, config: EvaluationConfig, seed: int
) -> pa.Table:
    """`places[split]` says where a user's target stands in the history, or NONE."""
    warm, cold = warm_and_cold(popularity_I)
    kinds = [(split, protocol) for split in SPLITS for protocol in PROTOCOLS]
    parts = []
    for number, (split, protocol) in enumerate(kinds):
        rows = np.flatnonzero(places[split] != NONE)
        asked, length = users.take(rows), places[split][rows]
        target = asked.items[asked.offsets[:-1] + length]
        pool = popularity_pools(target, popularity_I, config.matched_window) if protocol == "matched" else None
        negatives = draw_negatives(
            asked.hashes(),
            asked.rows(),
            asked.items,
            len(popularity_I) - 1,
            config.num_negatives,
            seed=int(key64(seed, _NEGATIVES)),
            epoch=number,
            pool=pool,
        )
        parts.append((rows, np.full(len(rows), number), length, np.concatenate([target[:, None], negatives], axis=1)))
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
        "warm": warm[target],
        "cold": cold[target],
    }
    return pa.table([columns[name] for name in evaluation_cases.SCHEMA.names], schema=evaluation_cases.SCHEMA)


def _users_of(table: pa.Table) -> dict[str, int]:
    """How many users have a case of each split."""
    first = table.filter(pc.equal(table.column("protocol"), PROTOCOLS[0])).column("split")
    return {split: pc.sum(pc.equal(first, split)).as_py() or 0 for split in SPLITS}
