"""The blend of the LLM and the teacher, and the fit of its weight on validation cases.

Both opinions are log-probabilities over a user's candidates; the blend is their weighted sum, normalised again. The
weight is the one of a grid, 0 and 1 among them, that has the best NDCG@10 on the stored validation cases of both
protocols: there the blend is never worse than the better of the two.

Dimensions: B cases or users, C candidates, W weights
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from allmrec.bundle import load_bundle
from allmrec.core.artifacts import read_table
from allmrec.core.storage import Storage
from allmrec.data.evaluation_cases import PROTOCOLS
from allmrec.data.sequences import Sequences
from allmrec.evaluation.systems import Cases, Systems, within_row_ranks
from allmrec.llm.loading import LLMConfig
from allmrec.metrics import METRICS, evaluate_scores
from allmrec.model import ALLMRec

WEIGHTS = np.arange(21) / 20
SPLIT, METRIC = "valid", "ndcg@10"
_BLOCK = 2048  # cases scored at once


def blended(log_p_BC: np.ndarray, teacher_BC: np.ndarray, weight: float) -> np.ndarray:
    """log-probabilities (B, C): `weight` times the LLM's and the rest the teacher's; -inf where the LLM has that."""
    if weight == 1:
        return log_p_BC
    real_BC = np.isfinite(log_p_BC)
    by_teacher_BC = _normalised(np.where(real_BC, teacher_BC, -np.inf))
    mixed_BC = np.full(log_p_BC.shape, -np.inf)
    mixed_BC[real_BC] = weight * log_p_BC[real_BC] + (1 - weight) * by_teacher_BC[real_BC]
    return _normalised(mixed_BC).astype(np.float32)


def _normalised(scores_BC: np.ndarray) -> np.ndarray:
    top_B1 = np.maximum(scores_BC.max(axis=1, keepdims=True), np.finfo(np.float32).min)
    return scores_BC - top_B1 - np.log(np.maximum(np.exp(scores_BC - top_B1).sum(axis=1, keepdims=True), 1))


class FitShards:
    """Shard numbers → one row a shard: how many validation cases it has, and each weight's sum of NDCG@10."""

    def __init__(self, run: Storage, version: str, llm: LLMConfig, seed: int):
        self.sequences, self.cases = run.at("sequences"), run.at("evaluation_cases")
        self.scorer = ALLMRec(load_bundle(run, version), llm)
        self.systems = Systems(self.scorer, seed)

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for shard in batch["id"].tolist():
            sequences, table = Sequences.read(self.sequences, [shard]), read_table(self.cases, [shard])
            cases = [Cases.select(table, sequences, SPLIT, protocol) for protocol in PROTOCOLS]
            sums_W = sum((self.gains(block) for some in cases for block in some.blocks(_BLOCK)), np.zeros(len(WEIGHTS)))
            yield pa.Table.from_pylist([{"shard": shard, "cases": sum(map(len, cases)), "sums": sums_W.tolist()}])

    def gains(self, cases: Cases) -> np.ndarray:
        """The sum of NDCG@10 by weight, float64 (W,). Ties are the teacher's to break, as in the nightly run."""
        order_BC = self.systems.shown_order(cases)
        shown_BC = np.take_along_axis(cases.candidates_BC, order_BC, axis=1)
        x_BD, llm_BC = self.scorer.represent(cases.histories), np.empty(shown_BC.shape, dtype=np.float32)
        np.put_along_axis(llm_BC, order_BC, self.scorer.llm_scores(x_BD, cases.histories, shown_BC), axis=1)
        teacher_BC = self.systems.score("teacher", cases)
        first_BC = within_row_ranks(teacher_BC)
        return np.array(
            [
                evaluate_scores(
                    within_row_ranks(blended(llm_BC, teacher_BC, weight)) * first_BC.shape[1] + first_BC,
                    cases.candidates_BC,
                )[:, METRICS.index(METRIC)].sum()
                for weight in WEIGHTS.tolist()
            ]
        )


def best_weight(shards: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The weight, and the mean NDCG@10 of each; of equally good ones the smallest.

    Args:
        shards: what `FitShards` found.

    Raises:
        ValueError: there is no validation case.
    """
    ordered = sorted(shards, key=lambda row: row["shard"])
    count = sum(row["cases"] for row in ordered)
    if not count:
        raise ValueError("no validation case to fit nightly.ranker blend on; prepare with longer histories, or use llm")
    means_W = np.sum([row["sums"] for row in ordered], axis=0) / count
    by_weight = dict(zip(map(str, WEIGHTS.tolist()), means_W.tolist(), strict=True))
    return {"weight": float(WEIGHTS[means_W.argmax()]), "cases": count, METRIC: by_weight}
