"""The nightly work on a shard of users: retrieve, rank, commit.

A shard depends on nothing but its own users, so any worker may do it, and do it again. A worker may be called by
several threads: while the LLM ranks one shard, the next is retrieved and the last one written.

Dimensions: U users of the shard, N candidates, K recommended
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from allmrec.bundle.description import part_of_system, read_description
from allmrec.bundle.loading import load_bundle
from allmrec.core.artifacts import read_manifest, read_table
from allmrec.core.count_drafts import CountDrafts
from allmrec.core.hashing import Draw, key64
from allmrec.core.shard_tasks import Report, ShardTask
from allmrec.core.storage import S3Config, Storage
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import read_item_table
from allmrec.data.sequences import Sequences, num_shards, offsets_of
from allmrec.llm.loading import LLMConfig
from allmrec.llm.shown_order import ShownOrder
from allmrec.model import ALLMRec
from allmrec.nightly.blend import blended, candidates_log_p
from allmrec.nightly.candidates import Candidates, Retriever, external_candidates, hidden, most_popular
from allmrec.nightly.config import NightlyConfig
from allmrec.nightly.counters import counters_of
from allmrec.nightly.lists import ListCount
from allmrec.nightly.progress import note
from allmrec.nightly.reuse import PreviousRun, input_digests, item_digests, write_digests
from allmrec.nightly.run_items import ItemSources, RunItems
from allmrec.nightly.users import EligibleUsers
from allmrec.nightly.vectors import NightlyVectors, UserVectors, items_of_shard
from allmrec.publishing.run import Run, stamped
from schemas.recommendations import ITEM, SCHEMA

POPULAR, TEACHER, LLM = "popular", "teacher", "llm"
_items: dict[tuple[str, ...], RunItems] = {}  # those that this process has read last


@dataclass(frozen=True)
class NightlyJob:
    """What every worker of a run is told. Can be pickled, and is no larger for more users or items."""

    run: Run
    storage: Storage  # of the bundle and the tables
    config: NightlyConfig
    stores: S3Config  # of lists outside of the workspace
    llm: LLMConfig
    seed: int
    users: EligibleUsers
    weight: float  # of the LLM against the teacher: 1 and 0 are either alone
    external_candidates: Storage | None = None  # another system's candidates, by shard
    previous: PreviousRun | None = None  # what in this run is compared with
    reuse: bool = True  # the rows of `previous` that have not changed
    lists: tuple[ListCount, ...] = ()  # that the config names, for the report

    def items(self) -> RunItems:
        """What the run knows of the bundle's items. A process reads it once, however many tasks it works on.

        Raises:
            ValueError: as `ItemSources.read`.
        """
        identity, items = self.run.identity, read_manifest(Workspace(self.storage).items)
        key = (self.storage.uri, identity["bundle"], items.digest, identity["filter"])
        if key not in _items:
            _items.clear()
            _items[key] = ItemSources(self.storage, identity["bundle"], self.config, self.stores).read(self.run)
        return _items[key]

    @property
    def item_counts(self) -> CountDrafts:
        """Where the audits put how often each item is recommended; with the run's work, which goes when it ends."""
        bundled = Workspace(Workspace(self.storage).bundles.at(self.run.identity["bundle"]))
        return CountDrafts(self.run.storage.at(f"{self.run.work}/counts"), read_manifest(bundled.items).rows)

    def ranking(self, description: Mapping[str, Any]) -> dict[str, Any]:
        """What ranks a user's candidates, the same for all users and items.

        Args:
            description: of the bundle.
        """
        kept = {name: self.run.identity[name] for name in ("llm", "dtype", "seed", "algorithm")}
        models = dict(description["parts"])
        if self.config.ranking_system is not None:
            models |= part_of_system(description, self.config.ranking_system)
        wording = {section: description["config"][section] for section in ("prompt", "projection")}
        return {**kept, **models, **wording, **self.config.ranking(), "weight": self.weight}


class ScoreShards(ShardTask):
    """Puts a shard's recommendations into the store, and reports what was counted and what it cost.

    Loads the bundle once, and the LLM when the first user needs it.
    """

    def __init__(self, job: NightlyJob, gpus: int = 1):
        """Args: gpus: of this worker, over which the LLM is cut."""
        self._finished = time.perf_counter()
        self.job = job
        self.items = job.items()
        # LLM-SRec, where it retrieves, reads by the LLM as it is.
        merged = job.config.ranker == "tallrec" and not job.config.uses_llm_srec
        self.model = ALLMRec(load_bundle(job.storage, job.run.identity["bundle"]), job.llm, merged, gpus)
        self.catalogue = self.model.bundle.with_counts(read_item_table(Workspace(job.storage).items)).catalogue
        self.shown_I = item_digests(self.model.bundle)
        description = read_description(job.storage, self.model.bundle.version)
        self.ranking = job.ranking(description)
        self.vectors: NightlyVectors | None = None
        if job.config.uses_llm_srec:
            previous = job.previous if job.reuse else None
            self.vectors = NightlyVectors(self.model, job.run, previous, self.shown_I, description)
        self._preparing, self._ranking = Lock(), Lock()

    def process(self, shard: int) -> Report:
        job, clock = self.job, Phases(lambda doing: note(self.job.run, shard, doing))
        spent = Counter[str]()
        with self._preparing:
            with clock.phase("retrieve"):
                read = job.users.read(shard, self.items.index_P)
                users = read.users
            vectors = self._users_vectors(shard, users, clock, spent)
            with clock.phase("retrieve"):
                candidates = self.candidates(shard, users, vectors)
                digests_U = input_digests(users, candidates.items, self.shown_I, self.ranking)
                kept = self._reused(shard, users, candidates.items, digests_U)
        rows = np.flatnonzero(~pc.is_in(users.user_ids, kept.column("user_id")).to_numpy(zero_copy_only=False))
        clock.now("wait for the LLM")
        with self._asking(clock, spent):
            vectors_RV = self._vectors_of(vectors, rows)
            scores_RN = self.scores(users.take(rows), candidates.items[rows], vectors_RV)
        with clock.phase("write"):
            table = self.recommendations(users.take(rows), candidates.items[rows], scores_RN)
            table = pa.concat_tables([table, *([stamped(kept, job.run, SCHEMA)] if len(kept) else [])])
            table = table.take(pc.index_in(users.user_ids, table.column("user_id").combine_chunks()))
            write_digests(job.run, shard, digests_U)
            published = self._published_vectors(shard, vectors)
        counts = {
            "users": len(users),
            "reused": len(kept),
            "scored_by_llm": int((users.lengths[rows] > 0).sum()) if job.weight else 0,
            "filled_from_teacher": candidates.filled,
            **({} if vectors is None else vectors.counts),
            **read.filtered_out,
            **candidates.index,
            **spent,
        }
        sources = {source: _count(table, source) for source in (LLM, TEACHER, POPULAR)}
        report = Report(
            counts=Counter(counts),
            dropped=+Counter(candidates.dropped),
            sources=+Counter(sources),
            seconds={**clock.seconds, "worker": self._worker_seconds()},
        )
        job.run.commit_shard(shard, table, counters_of(report), published)
        clock.now("done")
        return report

    @contextmanager
    def _asking(self, clock: "Phases", spent: Counter[str]) -> Iterator[None]:
        """The LLM is asked by one thread at a time, and what that costs is added to `spent`."""
        with self._ranking, clock.phase("rank"):
            before = self.model.spent()
            yield
            spent.update({name: count - before.get(name, 0) for name, count in self.model.spent().items()})

    def _vectors_of(self, found: UserVectors | None, rows: np.ndarray) -> np.ndarray | None:
        """Those of the users who are ranked now, where LLM-SRec ranks."""
        if self.vectors is None or found is None or not self.job.config.ranks_by_llm_srec or not self.job.weight:
            return None
        self.vectors.ask(found, rows)
        return found.vectors_UV[rows]

    def _users_vectors(self, shard: int, users: Sequences, clock: "Phases", spent: Counter[str]) -> UserVectors | None:
        """LLM-SRec's vectors: of all users where they retrieve or are published, else those that are known."""
        if self.vectors is None:
            return None
        with clock.phase("retrieve"):
            found = self.vectors.of_users(shard, users)
        if self.job.config.retriever == "llm-srec" or self.job.config.publish_vectors:
            with self._asking(clock, spent):
                _ = self.vectors.items  # of which the LLM reads those that are new since training
                self.vectors.ask(found, np.arange(len(users)))
        return found

    def _published_vectors(self, shard: int, found: UserVectors | None) -> dict[str, pa.Table] | None:
        """Keeps the users' vectors; the tables of those that are to be published."""
        if self.vectors is None or found is None:
            return None
        self.vectors.keep(shard, found)
        if not self.job.config.publish_vectors:
            return None
        items = items_of_shard(self.items.filter, shard, num_shards(self.job.users.sequences))
        return self.vectors.tables(found, self.catalogue.item_ids, items)

    @cached_property
    def retriever(self) -> Retriever:
        """Made by the first call and not with the worker: Ray hands on an error of a call as it was raised."""
        job, items, teacher, lists = self.job, self.items, self.model.teacher, self.model.bundle.item_lists()
        if self.vectors is not None and job.config.retriever == "llm-srec":
            teacher, lists = self.vectors.items, None
        return Retriever(teacher, self.catalogue, items.filter.allowed_I, job.config, job.seed, items.new_I, lists)

    def candidates(self, shard: int, users: Sequences, vectors: UserVectors | None = None) -> Candidates:
        """(U, N) items that each user may be recommended; popular ones where there is no history."""
        job, filter = self.job, self.items.filter
        popular = most_popular(self.catalogue.popularity, filter.allowed_I, job.config.num_candidates)
        known = np.flatnonzero(users.lengths)
        x_UV = None
        if vectors is not None and job.config.retriever == "llm-srec":
            x_UV = torch.from_numpy(vectors.vectors_UV[known]).to(self.model.device)
        proposals = Candidates(np.zeros((0, len(popular)), int))
        if len(known):
            proposals = self.retriever(users.take(known), x_UV)
        items_UN = np.tile(popular, (len(users), 1))
        items_UN[known] = proposals.items
        proposals = replace(proposals, items=items_UN)
        if job.external_candidates is None:
            return proposals
        seen = hidden(users, job.config)
        return external_candidates(
            read_table(job.external_candidates, [shard]), proposals, self.catalogue, filter, seen
        )

    def scores(self, users: Sequences, candidates_UN: np.ndarray, vectors_UV: np.ndarray | None = None) -> np.ndarray:
        """float32 (U, N), higher is better; -inf for no candidate.

        The LLM's probability of a candidate, or the blend's; the teacher's or LLM-SRec's score where it ranks alone;
        the number of interactions for users without a history.

        Args:
            vectors_UV: LLM-SRec's, where it ranks.
        """
        scores_UN = self.catalogue.popularity[candidates_UN].astype(np.float32)
        if len(known := np.flatnonzero(users.lengths)):
            mine_UV = None if vectors_UV is None else vectors_UV[known]
            scores_UN[known] = self._personal(users.take(known), candidates_UN[known], mine_UV)
        return np.where(candidates_UN > 0, scores_UN, -np.inf)

    def _personal(self, users: Sequences, candidates_UN: np.ndarray, vectors_UV: np.ndarray | None) -> np.ndarray:
        weight = self.job.weight
        if self.job.config.ranker == "llm-srec":
            return self._by_llm_srec(vectors_UV, candidates_UN)
        x_UD = self.model.represent(users)
        if weight == 0:
            return self.model.teacher_scores(x_UD, candidates_UN)
        if self.job.config.ranks_by_llm_srec:
            scores_UN, temperature = self._by_llm_srec(vectors_UV, candidates_UN), self.model.readout[0].temperature
            log_p_UN = candidates_log_p(scores_UN, candidates_UN, temperature)
        else:
            key = key64(self.job.seed, Draw.NIGHTLY_SHOWN)
            order = ShownOrder.draw(users.hashes(), key, candidates_UN.shape[1])
            by_tallrec = self.job.config.ranker == "tallrec"
            soft = None if by_tallrec else self.model.soft_tokens(x_UD, candidates_UN)
            with self.model.tallrec() if by_tallrec else nullcontext():
                log_p_UN = self.model.log_probabilities(users, candidates_UN, order, soft)
        if weight < 1:
            log_p_UN = blended(log_p_UN, self.model.teacher_scores(x_UD, candidates_UN), weight)
        return np.exp(log_p_UN)

    def _by_llm_srec(self, vectors_UV: np.ndarray | None, candidates_UN: np.ndarray) -> np.ndarray:
        assert self.vectors is not None and vectors_UV is not None, "LLM-SRec ranks, so it has read them"
        return self.vectors.scores(vectors_UV, candidates_UN)

    def recommendations(self, users: Sequences, candidates_UN: np.ndarray, scores_UN: np.ndarray) -> pa.Table:
        """The best `top_k` of each user, as rows of the `recommendations` table.

        Equal scores (identical titles) keep the candidates' order, which is the teacher's.
        """
        proposed_1N = -np.arange(scores_UN.shape[1])[None, :]
        order_UK = np.argsort(-self.model.rank(scores_UN, proposed_1N), axis=1)[:, : self.job.config.top_k]
        items_UK = np.take_along_axis(candidates_UN, order_UK, axis=1)
        kept_UK = items_UK > 0
        flat = [
            self.catalogue.item_ids.take(pa.array(items_UK[kept_UK])),
            pa.array((np.nonzero(kept_UK)[1] + 1).astype(np.int16)),
            pa.array(np.take_along_axis(scores_UN, order_UK, axis=1)[kept_UK].astype(np.float32)),
        ]
        lists = pa.ListArray.from_arrays(
            pa.array(offsets_of(kept_UK.sum(axis=1)), pa.int32()), pa.StructArray.from_arrays(flat, fields=list(ITEM))
        )
        personal = LLM if self.job.weight else TEACHER
        source = pc.if_else(pa.array(users.lengths > 0), personal, POPULAR)
        rows = pa.table({"user_id": users.user_ids, "items": lists, "source": source})
        return stamped(rows, self.job.run, SCHEMA)

    def _reused(self, shard: int, users: Sequences, candidates_UN: np.ndarray, digests_U: np.ndarray) -> pa.Table:
        job = self.job
        if job.previous is None or not job.reuse:
            return SCHEMA.empty_table()
        # Popular items' scores are counts, which no digest holds: rows without a history are made by every run.
        lengths_U = np.where(users.lengths > 0, np.minimum((candidates_UN > 0).sum(axis=1), job.config.top_k), -1)
        return job.previous.unchanged(shard, users, digests_U, lengths_U)

    def _worker_seconds(self) -> float:
        """Since the last shard was finished, or the worker began: over its shards they add up to its life."""
        now = time.perf_counter()
        seconds, self._finished = now - self._finished, now
        return seconds


class Phases:
    """Seconds by phase of one shard's work, and a note at the beginning of each."""

    def __init__(self, tell: Callable[[str], None]):
        self.tell, self.seconds = tell, dict[str, float]()

    def now(self, doing: str) -> None:
        self.tell(doing)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.tell(name)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - started


def _count(table: pa.Table, source: str) -> int:
    return pc.sum(pc.equal(table.column("source"), source)).as_py() or 0
