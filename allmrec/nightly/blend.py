"""The blend of the LLM, or LLM-SRec, and the teacher, and the fit of its weight on validation cases.

Both opinions are log-probabilities over a user's candidates; the blend is their weighted sum, normalised again. The
weight is the one of a grid, 0 and 1 among them, that has the best NDCG@10 on the stored validation cases of both
protocols: there the blend is never worse than the better of the two.

Dimensions: B cases or users, C candidates, W weights
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from allmrec.bundle.items import renumbering
from allmrec.bundle.loading import load_bundle
from allmrec.core.artifacts import read_file, read_manifest, read_table
from allmrec.core.shard_tasks import Report, ShardTask
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.data.cases import Cases
from allmrec.data.evaluation_cases import PROTOCOLS
from allmrec.data.sequences import Sequences
from allmrec.evaluation.systems import Systems
from allmrec.llm.loading import LLMConfig
from allmrec.metrics import METRICS, evaluate_scores
from allmrec.model import ALLMRec

WEIGHTS = np.arange(21) / 20
SPLIT, METRIC = "valid", "ndcg@10"
NAME = "blend.json"
_BLOCK = 2048  # cases scored at once
BLENDED = {"blend": "a-llmrec", "llm-srec-blend": "llm-srec"}  # ranker → the system that is blended with the teacher


def blended(log_p_BC: np.ndarray, teacher_BC: np.ndarray, weight: float) -> np.ndarray:
    """log-probabilities (B, C): `weight` times the LLM's and the rest the teacher's; -inf where the LLM has that."""
    if weight == 1:
        return log_p_BC
    real_BC = np.isfinite(log_p_BC)
    by_teacher_BC = _normalised(np.where(real_BC, teacher_BC, -np.inf))
    mixed_BC = np.full(log_p_BC.shape, -np.inf)
    mixed_BC[real_BC] = weight * log_p_BC[real_BC] + (1 - weight) * by_teacher_BC[real_BC]
    return _normalised(mixed_BC).astype(np.float32)


def candidates_log_p(scores_BC: np.ndarray, candidates_BC: np.ndarray, temperature: float) -> np.ndarray:
    """log-probabilities (B, C) of candidates by logits `scores_BC / temperature`; -inf for zeros."""
    return _normalised(np.where(candidates_BC > 0, scores_BC / temperature, -np.inf)).astype(np.float32)


def _normalised(scores_BC: np.ndarray) -> np.ndarray:
    top_B1 = np.maximum(scores_BC.max(axis=1, keepdims=True), np.finfo(np.float32).min)
    return scores_BC - top_B1 - np.log(np.maximum(np.exp(scores_BC - top_B1).sum(axis=1, keepdims=True), 1))


class FitShards(ShardTask):
    """Counts a shard's validation cases, and sums NDCG@10 over them for each weight."""

    def __init__(self, storage: Storage, version: str, llm: LLMConfig, seed: int, ranker: str = "blend"):
        self.workspace, self.system = Workspace(storage), BLENDED[ranker]
        self.systems = Systems(ALLMRec(load_bundle(storage, version), llm), seed)
        self.index_I = renumbering(storage, version)

    def process(self, shard: int) -> Report:
        sequences = Sequences.read(self.workspace.sequences, [shard])
        table = read_table(self.workspace.evaluation_cases, [shard])
        by_protocol = (Cases.select(table, sequences, SPLIT, protocol) for protocol in PROTOCOLS)
        cases = [some.renumbered(self.index_I) for some in by_protocol]
        sums_W = sum(
            (self.ndcg_by_weight(block) for some in cases for block in some.blocks(_BLOCK)), np.zeros(len(WEIGHTS))
        )
        return Report(counts=Counter(cases=sum(map(len, cases))), sums={METRIC: sums_W})

    def ndcg_by_weight(self, cases: Cases) -> np.ndarray:
        """The sum of NDCG@10 by weight, float64 (W,). The teacher breaks ties, as in the nightly run."""
        llm_BC, teacher_BC = (self.systems.score(name, cases) for name in (self.system, "teacher"))
        if self.system == "llm-srec":
            temperature = self.systems.model.readout[0].temperature
            llm_BC = candidates_log_p(llm_BC, cases.candidates_BC, temperature)
        ranks = (ALLMRec.rank(blended(llm_BC, teacher_BC, weight), teacher_BC) for weight in WEIGHTS.tolist())
        column = METRICS.index(METRIC)
        return np.array([evaluate_scores(rank_BC, cases.candidates_BC)[:, column].sum() for rank_BC in ranks])


def best_weight(reports: Sequence[Report]) -> dict[str, Any]:
    """The weight, and the mean NDCG@10 of each; of equally good ones the smallest.

    Args:
        reports: of `FitShards`, in any order.

    Raises:
        ValueError: there is no validation case.
    """
    count = sum(report.counts["cases"] for report in reports)
    if not count:
        raise ValueError("no validation case to fit nightly.ranker blend on; prepare with longer histories, or use llm")
    ordered = sorted(reports, key=lambda report: report.shard)  # floating point sums depend on the order
    means_W = np.sum([report.sums[METRIC] for report in ordered], axis=0) / count
    by_weight = dict(zip(map(str, WEIGHTS.tolist()), means_W.tolist(), strict=True))
    return {"weight": float(WEIGHTS[means_W.argmax()]), "cases": count, METRIC: by_weight}


def fitted_weight(workspace: Workspace) -> float:
    """The LLM's share, as it was fitted."""
    return json.loads(read_file(workspace.blend, read_manifest(workspace.blend), NAME))["weight"]
