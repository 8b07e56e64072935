"""A teacher's figures without a bundle: on the stored cases, in the tables that `evaluate` writes.

Dimensions: B cases, C candidates
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from allmrec import metrics
from allmrec.cf.teacher import Teacher
from allmrec.core.artifacts import find_manifest, read_manifest, read_table, writing
from allmrec.core.hashing import fingerprint
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.data.cases import Cases
from allmrec.data.evaluation_cases import PROTOCOLS
from allmrec.data.sequences import Sequences, num_shards
from allmrec.evaluation.results import rows, sums_of
from allmrec.evaluation.shards import SPLIT
from schemas.evaluation_results import SCHEMA

SYSTEM = "teacher"


def evaluate_alone(teacher: Teacher, identity: Any, prepared: Workspace, storage: Storage, recall_at: int) -> Workspace:
    """Write `evaluation_results` and metrics.json of one teacher, unless they are there.

    Args:
        identity: of the teacher, to know its figures by.
        prepared: has the cases.
        storage: of the workspace that is written, and returned.
        recall_at: as the runs say that this one is compared with.
    """
    cases, out = read_manifest(prepared.evaluation_cases).digest, Workspace(storage)
    made_of = fingerprint({"teacher": identity, "cases": cases, "recall_at": recall_at})
    found = find_manifest(out.evaluation_results)
    if found is not None and found.fingerprint == made_of:
        return out
    sums: list[dict[str, Any]] = []
    with writing(out.evaluation_results, Workspace.evaluation_results, made_of) as written:
        for shard in range(num_shards(prepared.evaluation_cases)):
            results = evaluate_shard(teacher, prepared, shard)
            written.table(shard, SCHEMA, pa.concat_tables([SCHEMA.empty_table(), *results.values()]))
            sums += sums_of(results, None, recall_at)
        written.stats |= {"cases": cases, "recall_at": recall_at}
    storage.write("metrics.json", json.dumps(metrics.summarise(sums)).encode())
    return out


@torch.inference_mode()
def evaluate_shard(teacher: Teacher, prepared: Workspace, shard: int) -> dict[tuple[str, str], pa.Table]:
    """Rows of `evaluation_results` by protocol and system."""
    sequences, table = Sequences.read(prepared.sequences, [shard]), read_table(prepared.evaluation_cases, [shard])
    results = {}
    for protocol in PROTOCOLS:
        cases = Cases.select(table, sequences, SPLIT, protocol)
        if not len(cases):
            continue
        items_BC = torch.from_numpy(cases.candidates_BC.astype(np.int64))
        scores_BC = teacher.scores(teacher.represent(cases.histories), items_BC).numpy()
        better_B, tied_B = metrics.standing(scores_BC, cases.candidates_BC)
        values_BM = metrics.expected_metrics(better_B, tied_B, cases.candidates_BC.shape[1])
        results[protocol, SYSTEM] = rows(SYSTEM, protocol, cases, values_BM, tied_B, None)
    return results
