"""A run that was evaluated, written by hand."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from allmrec.core.artifacts import writing
from allmrec.core.workspace import Workspace, open_workspace
from allmrec.data.cases import Cases
from allmrec.evaluation.results import rows, sums_of
from allmrec.metrics import METRICS, summarise
from schemas.evaluation_results import SCHEMA


def evaluated(root: Path, hits: dict[str, list[int]]) -> Workspace:
    """Hit@1 by system, user by user; targets of the first half of the users are warm, those of the others cold."""
    workspace = open_workspace(str(root))
    results = {}
    for system, found in hits.items():
        users, ones = pa.array([f"u{number}" for number in range(len(found))]), np.ones(len(found), dtype=np.int32)
        warm = np.arange(len(found)) < len(found) / 2
        cases = Cases(users, None, np.stack([ones, ones], axis=1), warm, ~warm)
        values = np.tile(np.array(found, dtype=np.float64)[:, None], len(METRICS))
        for protocol in ("random", "matched"):
            results[protocol, system] = rows(system, protocol, cases, values, np.zeros(len(found), dtype=int), None)
    with writing(workspace.evaluation_results, "evaluation_results", "") as out:
        out.table(0, SCHEMA, pa.concat_tables(results.values()))
        out.stats |= {"cases": "all", "recall_at": 20}
    workspace.storage.write("metrics.json", json.dumps(summarise(sums_of(results, None, 20))).encode())
    return workspace
