"""Evaluation cases: one held-out item and its negatives for each user (paper section 5.1).

Written once by `prepare`, so that every system is scored on the same candidates. Knows the leave-one-out split of
`Sequences`: "test" holds out a sequence's last item, "valid" the one before it; the history is what came before.
Protocol "random" draws negatives uniformly, as the paper does; "matched" from items about as popular as the target.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from pydantic import Field

from allmrec.artifacts import shard_name, write_shard
from allmrec.config import Section
from allmrec.data.assemble import report_row
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences
from allmrec.hashing import key64, uniforms
from allmrec.negatives import draw_negatives, popularity_pools
from allmrec.storage import Storage
from schemas import evaluation_cases

SPLITS = ("valid", "test")
PROTOCOLS = ("random", "matched")
System = Literal["random", "popularity", "teacher", "llm-only", "a-llmrec", "a-llmrec-sbert"]
_NEGATIVES, _SAMPLE = 0x4556, 0x5341  # keys: these draws are none of the training's
_BLOCK = 1 << 15  # users at once: pools of matched negatives are some 200 items wide


class EvaluationConfig(Section):
    num_negatives: int = Field(19, ge=1)  # paper section 5.1
    matched_window: int = Field(100, ge=1)  # neighbours by popularity, each side, that matched negatives come from
    max_users: int | None = Field(None, ge=1)  # evaluate a sample of about so many users; default: everyone
    systems: tuple[System, ...] = get_args(System)  # which to compare


@dataclass(frozen=True)
class DrawCases:
    """Shard numbers → shards of `evaluation_cases`; reports how many cases there are."""

    sequences: Storage
    items: Storage
    cases: Storage
    config: EvaluationConfig
    seed: int
    fraction: float  # of the evaluable users

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        catalogue = Catalogue.read(self.items)
        for shard in batch["id"]:
            users = Sequences.read(self.sequences, [shard])
            table = draw_cases(users, catalogue, self.config, self.seed, self.fraction)
            entry = write_shard(self.cases, evaluation_cases.SCHEMA, shard_name(shard), table)
            yield report_row(shard, {"evaluation_cases": entry}, np.zeros(0))


def draw_cases(
    users: Sequences, catalogue: Catalogue, config: EvaluationConfig, seed: int, fraction: float = 1.0
) -> pa.Table:
    """Cases of both splits and both protocols for every user with three items or more.

    Args:
        users: in any number; a user's cases depend on that user, the catalogue and the seed alone.
        fraction: of the users, those whose hash falls below it.

    Returns:
        rows of `evaluation_cases`, in the users' order, four a user.
    """
    sampled = uniforms(users.hashes(), key64(seed, _SAMPLE), 1)[:, 0] < fraction
    users = users.take(np.flatnonzero((users.lengths >= 3) & sampled))
    blocks = [np.arange(first, min(first + _BLOCK, len(users))) for first in range(0, len(users), _BLOCK)]
    tables = [_cases_of(users.take(block), catalogue, config, seed) for block in blocks]
    return pa.concat_tables([evaluation_cases.SCHEMA.empty_table(), *tables]).combine_chunks()


def _cases_of(users: Sequences, catalogue: Catalogue, config: EvaluationConfig, seed: int) -> pa.Table:
    warm, cold = catalogue.warm_and_cold()
    kinds = [(split, protocol) for split in SPLITS for protocol in PROTOCOLS]
    num_users, num_kinds, width = len(users), len(kinds), config.num_negatives + 1
    hashes, rows = users.hashes(), users.rows()
    targets = np.empty((num_users, num_kinds), dtype=np.int32)
    lengths = np.empty((num_users, num_kinds), dtype=np.int32)
    candidates = np.empty((num_users, num_kinds, width), dtype=np.int32)
    for number, (split, protocol) in enumerate(kinds):
        lengths[:, number] = users.lengths - (1 if split == "test" else 2)
        target = targets[:, number] = users.items[users.offsets[:-1] + lengths[:, number]]
        pool = popularity_pools(target, catalogue.popularity, config.matched_window) if protocol == "matched" else None
        negatives = draw_negatives(
            hashes,
            rows,
            users.items,
            catalogue.num_items,
            config.num_negatives,
            seed=int(key64(seed, _NEGATIVES)),
            epoch=number,
            pool=pool,
        )
        candidates[:, number] = np.concatenate([target[:, None], negatives], axis=1)
    offsets = np.arange(num_users * num_kinds + 1, dtype=np.int32) * width
    columns = {
        "user_id": users.user_ids.take(pa.array(np.repeat(np.arange(num_users), num_kinds))),
        "target": targets.ravel(),
        "history_length": lengths.ravel(),
        "candidates": pa.ListArray.from_arrays(offsets, candidates.ravel()),
        "split": [split for split, _ in kinds] * num_users,
        "protocol": [protocol for _, protocol in kinds] * num_users,
        "warm": warm[targets.ravel()],
        "cold": cold[targets.ravel()],
    }
    return pa.table([columns[name] for name in evaluation_cases.SCHEMA.names], schema=evaluation_cases.SCHEMA)
