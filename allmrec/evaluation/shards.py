"""One shard's evaluation: every system on every protocol, kept case by case, and boiled down to sums.

Protocol "full" places the target among all drawable items that the history has not, for systems that can score them
all.
Protocol "generation" lets LLM systems write their answers, for a sample of the users.

Dimensions: B cases, M metrics
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from allmrec import metrics
from allmrec.bundle.loading import load_bundle
from allmrec.core.artifacts import read_table, shard_name, write_shard
from allmrec.core.shard_tasks import Report, ShardTask
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.data.cases import Cases
from allmrec.data.catalogue import read_item_table
from allmrec.data.evaluation_cases import PROTOCOLS
from allmrec.data.sequences import Sequences
from allmrec.evaluation.answers import Answers
from allmrec.evaluation.caveats import thin_cases
from allmrec.evaluation.results import FULL, GENERATION, SHUFFLE, SWAP, metrics_of, rows, sums_of
from allmrec.evaluation.systems import IN_CATALOGUE, NEED_LLM, TEACHERS, Systems
from allmrec.llm.loading import LLMConfig
from allmrec.model import ALLMRec
from schemas.evaluation_results import SCHEMA

SPLIT = "test"
_BLOCK = 2048  # cases whose prompts are built at once


class EvaluateShards(ShardTask):
    """Shard numbers → shards of `evaluation_results`, and counts of what they hold.

    Details: `sums` of metrics as `results.sums_of` makes them, and `costs` of scoring by system and protocol. Loads the
    bundle and the LLM once. A shard is scored alone, so nothing depends on the other workers.
    """

    def __init__(
        self,
        storage: Storage,
        version: str,
        llm: LLMConfig,
        names: Sequence[str],
        seed: int,
        recall_at: int,
        baseline: str | None = None,
        generation: float = 0.0,
        shuffle: bool = False,
    ):
        """
        Args:
            recall_at: N of protocol full's Recall@N.
            baseline: the system that the others are compared with, user by user.
            generation: share of the users that LLM systems generate text for.
            shuffle: whether systems are also shown histories in a drawn order.
        """
        workspace = Workspace(storage)
        self.sequences, self.cases = workspace.sequences, workspace.evaluation_cases
        self.results = workspace.evaluation_results
        self.model = ALLMRec(load_bundle(storage, version).with_counts(read_item_table(workspace.items)), llm)
        self.systems = Systems(self.model, seed)
        self.answers = Answers(self.systems)
        self.names, self.seed, self.recall_at = names, seed, recall_at
        self.baseline, self.generation, self.shuffle = baseline, generation, shuffle
        if not NEED_LLM.isdisjoint(names):
            self.model.ranker(soft=True)  # loads the LLM now, while no clock runs
        for name in names:
            if name in TEACHERS:
                self.model.by_name(name)
            elif name == "tallrec":
                _ = self.model.adapter

    def process(self, shard: int) -> Report:
        sequences, table = Sequences.read(self.sequences, [shard]), read_table(self.cases, [shard])
        by_protocol = {protocol: Cases.select(table, sequences, SPLIT, protocol) for protocol in PROTOCOLS}
        drawn = by_protocol["random"]
        by_protocol |= {SWAP: drawn.swapped(self.seed), FULL: drawn}
        if self.shuffle:
            by_protocol[SHUFFLE] = drawn
        by_protocol[GENERATION] = drawn.sample(self.generation, self.seed)
        results, costs = {}, []
        for protocol, cases in by_protocol.items():
            for name in self._requested(protocol):
                results[protocol, name], cost = self._evaluated(name, protocol, cases)
                costs.append(cost)
        written = pa.concat_tables([SCHEMA.empty_table(), *results.values()])
        thin = thin_cases(drawn.candidates_BC)
        return Report(
            counts=Counter(users=len(sequences), interactions=len(sequences.items), **thin),
            files={shard_name(shard): write_shard(self.results, SCHEMA, shard_name(shard), written)},
            details={"sums": sums_of(results, self.baseline, self.recall_at), "costs": costs},
        )

    def _requested(self, protocol: str) -> list[str]:
        """The systems that a protocol is for."""
        if protocol == GENERATION:
            return [name for name in self.names if name in NEED_LLM] if self.generation else []
        return [name for name in self.names if protocol != FULL or name in IN_CATALOGUE]

    def _evaluated(self, name: str, protocol: str, cases: Cases) -> tuple[pa.Table, dict[str, Any]]:
        """Rows and costs of one system."""
        ways = {FULL: self._in_catalogue, SHUFFLE: self._shuffled, GENERATION: self.answers.evaluate}
        evaluate = ways.get(protocol, self._among_candidates)
        before, started = self._spent(), time.perf_counter()
        values, tied = [np.zeros((0, len(metrics_of(protocol))))], [np.zeros(0, dtype=np.int64)]
        for block in cases.blocks(_BLOCK):
            values_BM, tied_B = evaluate(name, block)
            values.append(values_BM)
            tied.append(tied_B)
        by_text = self.systems.uses_text_embedding(name)
        found = rows(name, protocol, cases, np.concatenate(values), np.concatenate(tied), by_text)
        spent = {what: count - before[what] for what, count in self._spent().items()}
        seconds = time.perf_counter() - started
        return found, {"system": name, "protocol": protocol, "cases": len(cases), "seconds": seconds, **spent}

    def _spent(self) -> dict[str, int]:
        return {what: count + self.answers.spent.get(what, 0) for what, count in self.model.spent().items()}

    def _among_candidates(self, name: str, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
        better_B, tied_B = metrics.standing(self.systems.score(name, cases), cases.candidates_BC)
        return metrics.expected_metrics(better_B, tied_B, cases.candidates_BC.shape[1]), tied_B

    def _shuffled(self, name: str, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
        shuffled = cases.shuffled(self.seed)
        cosine_B = self.systems.cosines(name, cases.histories, shuffled.histories)
        metrics_BM, tied_B = self._among_candidates(name, shuffled)
        return np.column_stack([metrics_BM, cosine_B]), tied_B

    def _in_catalogue(self, name: str, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
        better_B, tied_B = self.systems.in_catalogue[name](cases)
        metrics_BM = metrics.expected_metrics(better_B, tied_B, self.model.bundle.catalogue.num_items)
        return np.column_stack([metrics_BM, metrics.recall(better_B, tied_B, self.recall_at)]), tied_B
