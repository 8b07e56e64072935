"""The nightly work on a shard of users: retrieve, rank, commit; and the audit of what was committed.

Plain callables for batches of shard numbers. A shard depends on nothing but its own users, so any worker may do it,
and do it again.

Dimensions: U users of the shard, N candidates, K recommended
"""

import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from allmrec.artifacts import read_table
from allmrec.bundle import load_bundle
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences, offsets_of
from allmrec.hashing import key64, permutations
from allmrec.llm.loading import LLMConfig
from allmrec.nightly.candidates import Candidates, Retriever, given
from allmrec.nightly.config import NightlyConfig
from allmrec.nightly.publish import Run
from allmrec.scorer import Scorer
from allmrec.storage import Storage
from schemas.recommendations import ITEM, SCHEMA

_ORDER = 0x4E49  # purpose of the draws that shuffle candidates in a prompt


class ScoreShards:
    """Shard numbers → one row a shard: what it cost. The recommendations go into the store.

    Loads the bundle and the LLM and builds the index of items once.
    """

    def __init__(
        self, run: Run, storage: Storage, llm: LLMConfig, config: NightlyConfig, seed: int, given: Storage | None
    ):
        self.run, self.storage, self.config, self.seed, self.given = run, storage, config, seed, given
        self.scorer = Scorer(load_bundle(storage, run.identity["bundle"]), llm)
        if config.ranker == "llm":
            self.scorer.ranker(soft=True)  # loads the LLM now, while no clock runs

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for shard in batch["id"].tolist():
            started, before = time.perf_counter(), self.scorer.spent()
            users = Sequences.read(self.storage.at("sequences"), [shard])
            candidates = self.candidates(shard, users)
            scores_UN = self.scores(users, candidates.items)
            table = self.recommendations(users, candidates.items, scores_UN)
            facts = {
                "users": len(users),
                "filled_from_teacher": candidates.filled,
                **{f"dropped_{reason}": count for reason, count in candidates.dropped.items()},
                **candidates.index,
                **{name: spent - before[name] for name, spent in self.scorer.spent().items()},
                f"source_{self.config.ranker}": len(users),
            }
            won = self.run.commit_shard(shard, table, facts)
            seconds = time.perf_counter() - started
            yield pa.Table.from_pylist([{"shard": shard, "won": won, "seconds": seconds, **facts}])

    @cached_property
    def retriever(self) -> Retriever:
        """Made by the first call and not with the worker: Ray hands on an error of a call as it was raised."""
        return Retriever(self.scorer.teacher, self.scorer.bundle.catalogue, self.config, self.seed)

    def candidates(self, shard: int, users: Sequences) -> Candidates:
        """(U, N) items that each user may be recommended."""
        proposals = self.retriever(users)
        if self.given is None:
            return proposals
        return given(read_table(self.given, [shard]), proposals, self.scorer.bundle.catalogue, users)

    def scores(self, users: Sequences, candidates_UN: np.ndarray) -> np.ndarray:
        """float32 (U, N): the LLM's probability of a candidate, or the teacher's score; -inf for no candidate."""
        x_UD = self.scorer.represent(users)
        if self.config.ranker == "teacher":
            return np.where(candidates_UN > 0, self.scorer.teacher_scores(x_UD, candidates_UN), -np.inf)
        # The prompt must not give the teacher's order away: training showed the target anywhere.
        order = permutations(users.hashes(), key64(self.seed, _ORDER), candidates_UN.shape[1])
        shown = np.take_along_axis(candidates_UN, order, axis=1)
        scores_UN = np.empty(candidates_UN.shape, dtype=np.float32)
        np.put_along_axis(scores_UN, order, self.scorer.llm_scores(x_UD, users, shown), axis=1)
        return np.where(candidates_UN > 0, np.exp(scores_UN), -np.inf)

    def recommendations(self, users: Sequences, candidates_UN: np.ndarray, scores_UN: np.ndarray) -> pa.Table:
        """The best `top_k` of each user, as rows of the `recommendations` table.

        Equal scores (identical titles) keep the candidates' order, which is the teacher's.
        """
        order_UK = np.argsort(-scores_UN, axis=1, kind="stable")[:, : self.config.top_k]
        items_UK = np.take_along_axis(candidates_UN, order_UK, axis=1)
        kept_UK = items_UK > 0
        flat = [
            self.scorer.bundle.catalogue.item_ids.take(pa.array(items_UK[kept_UK])),
            pa.array((np.nonzero(kept_UK)[1] + 1).astype(np.int16)),
            pa.array(np.take_along_axis(scores_UN, order_UK, axis=1)[kept_UK].astype(np.float32)),
        ]
        lists = pa.ListArray.from_arrays(
            pa.array(offsets_of(kept_UK.sum(axis=1)), pa.int32()), pa.StructArray.from_arrays(flat, fields=list(ITEM))
        )
        same = [self.run.run_date, self.config.ranker, self.run.identity["bundle"], self.run.run_id]
        run_date, source, bundle, run_id = (pa.repeat(pa.scalar(value), len(users)) for value in same)
        return pa.Table.from_arrays([run_date, users.user_ids, lists, source, bundle, run_id], schema=SCHEMA)


class AuditShards:
    """Shard numbers → one row a shard: the sha256 of what passed the audit. Raises ValueError for what does not."""

    def __init__(self, run: Run, storage: Storage, top_k: int):
        self.run, self.storage, self.top_k = run, storage, top_k

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        catalogue = Catalogue.read(self.storage.at("items"))
        for shard in batch["id"].tolist():
            users = Sequences.read(self.storage.at("sequences"), [shard])
            digest = self.run.audit(shard, users.user_ids, users, catalogue, self.top_k)
            yield pa.Table.from_pylist([{"shard": shard, "sha256": digest}])
