"""One shard's evaluation: every system on every protocol, boiled down to sums.

Protocol "full" places the target among all items that the history has not, for systems that can score them all.

Dimensions: B cases, M metrics
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from allmrec.artifacts import read_table
from allmrec.bundle import load_bundle
from allmrec.data.sequences import Sequences
from allmrec.evaluation import metrics
from allmrec.evaluation.cases import PROTOCOLS
from allmrec.evaluation.doubts import thin_cases
from allmrec.evaluation.systems import IN_CATALOGUE, NEED_LLM, Cases, Systems
from allmrec.llm.loading import LLMConfig
from allmrec.scorer import Scorer
from allmrec.storage import Storage

SPLIT = "test"
FULL = "full"
_BLOCK = 2048  # cases whose prompts are built at once


class EvaluateShards:
    """Shard numbers → one row a shard: sums of metrics, what scoring cost, and how large the shard is.

    Loads the bundle and the LLM once. A shard is scored alone, so nothing depends on who else is at work.
    """

    def __init__(self, run: Storage, version: str, llm: LLMConfig, names: Sequence[str], seed: int, recall_at: int):
        """
        Args:
            recall_at: N of protocol full's Recall@N.
        """
        self.sequences, self.cases = run.at("sequences"), run.at("evaluation_cases")
        self.scorer = Scorer(load_bundle(run, version), llm)
        self.systems = Systems(self.scorer, seed)
        self.names, self.seed, self.recall_at = names, seed, recall_at
        if not NEED_LLM.isdisjoint(names):
            self.scorer.ranker(soft=True)  # loads the LLM now, while no clock runs

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for shard in batch["id"].tolist():
            sequences, table = Sequences.read(self.sequences, [shard]), read_table(self.cases, [shard])
            by_protocol = {protocol: Cases.select(table, sequences, SPLIT, protocol) for protocol in PROTOCOLS}
            drawn = by_protocol["random"]
            by_protocol |= {"swap": drawn.swapped(self.seed), FULL: drawn}
            sums, costs = [], []
            for protocol, cases in by_protocol.items():
                for name in self.names:
                    if protocol != FULL or name in IN_CATALOGUE:
                        rows, cost = self._measured(name, protocol, cases)
                        sums += rows
                        costs.append(cost)
            facts = {"users": len(sequences), "interactions": len(sequences.items), **thin_cases(drawn.candidates_BC)}
            yield pa.Table.from_pylist([{"shard": shard, "sums": sums, "costs": costs, **facts}])

    def _measured(self, name: str, protocol: str, cases: Cases) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Sums and costs of one system."""
        before, started = self.scorer.spent(), time.perf_counter()
        full = protocol == FULL
        names = (*metrics.METRICS, f"recall@{self.recall_at}") if full else metrics.METRICS
        measure = self._in_catalogue if full else self._among_candidates
        values = [np.zeros((0, len(names))), *(measure(name, block) for block in cases.blocks(_BLOCK))]
        sums = metrics.sums(name, protocol, np.concatenate(values), cases.subsets, names)
        spent = {what: count - before.get(what, 0) for what, count in self.scorer.spent().items()}
        return sums, {"system": name, "cases": len(cases), "seconds": time.perf_counter() - started, **spent}

    def _among_candidates(self, name: str, cases: Cases) -> np.ndarray:
        return metrics.measure(self.systems.score(name, cases), cases.candidates_BC)

    def _in_catalogue(self, name: str, cases: Cases) -> np.ndarray:
        better_B, tied_B = self.systems.in_catalogue[name](cases)
        worth_BM = metrics.worth(better_B, tied_B, self.scorer.bundle.catalogue.num_items)
        return np.column_stack([worth_BM, metrics.recall(better_B, tied_B, self.recall_at)])
