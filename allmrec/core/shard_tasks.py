"""What a task over shards reports: one row a shard."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

REPORT = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("report", pa.string(), nullable=False),  # JSON: entries for the manifests, counts
        # By item_index, entry 0 is padding; one list behind another.
        pa.field("item_counts", pa.list_(pa.int64()), nullable=False),
    ]
)


def report_row(shard: int, report: dict[str, Any], item_counts: np.ndarray) -> pa.Table:
    return pa.table([[shard], [json.dumps(report)], [item_counts.astype(np.int64)]], schema=REPORT)
