"""One shard's evaluation: every system on every protocol, boiled down to sums.

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
from allmrec.evaluation.systems import NEED_LLM, Cases, Systems
from allmrec.llm.loading import LLMConfig
from allmrec.scorer import Scorer
from allmrec.storage import Storage

SPLIT = "test"
_BLOCK = 2048  # cases whose prompts are built at once


class EvaluateShards:
    """Shard numbers → one row a shard: sums of metrics, what scoring cost, and how large the shard is.

    Loads the bundle and the LLM once. A shard is scored alone, so nothing depends on who else is at work.
    """

    def __init__(self, run: Storage, version: str, llm: LLMConfig, names: Sequence[str], seed: int):
        self.sequences, self.cases = run.at("sequences"), run.at("evaluation_cases")
        self.scorer = Scorer(load_bundle(run, version), llm)
        self.systems = Systems(self.scorer, seed)
        self.names, self.seed = names, seed
        if not NEED_LLM.isdisjoint(names):
            self.scorer.ranker(soft=True)  # loads the LLM now, while no clock runs

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for shard in batch["id"].tolist():
            sequences, table = Sequences.read(self.sequences, [shard]), read_table(self.cases, [shard])
            by_protocol = {protocol: Cases.select(table, sequences, SPLIT, protocol) for protocol in PROTOCOLS}
            by_protocol["swap"] = by_protocol["random"].swapped(self.seed)
            sums, costs = [], []
            for protocol, cases in by_protocol.items():
                for name in self.names:
                    values_BM, cost = self._measured(name, cases)
                    sums += metrics.sums(name, protocol, values_BM, cases.subsets)
                    costs.append(cost)
            facts = {"users": len(sequences), "interactions": len(sequences.items)}
            yield pa.Table.from_pylist([{"shard": shard, "sums": sums, "costs": costs, **facts}])

    def _measured(self, name: str, cases: Cases) -> tuple[np.ndarray, dict[str, Any]]:
        before, started = self.scorer.spent(), time.perf_counter()
        values = [np.zeros((0, len(metrics.METRICS)))]
        for block in cases.blocks(_BLOCK):
            values.append(metrics.measure(self.systems.score(name, block), block.candidates_BC))
        spent = {what: count - before.get(what, 0) for what, count in self.scorer.spent().items()}
        seconds = time.perf_counter() - started
        return np.concatenate(values), {"system": name, "cases": len(cases), "seconds": seconds, **spent}
