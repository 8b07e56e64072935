"""Per-case values, the table `evaluation_results`: its sums, and differences paired by user, also between two runs.

Knows rows; which cases they are of and who scored them is `shards`' business.

Dimensions: B cases, M metrics
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import read_manifest, read_part
from allmrec.core.storage import Storage
from allmrec.data.cases import Cases
from allmrec.metrics import METRICS, summarise, sums
from schemas.evaluation_results import SCHEMA

FULL, GENERATION, SHUFFLE, SWAP = "full", "generation", "shuffle", "swap"
CHANGED = (SWAP, SHUFFLE)  # protocols of other histories: a system's baseline is itself with its own
WRITTEN = ("named", "hit@1", "hit@1 substring")
# Of the other protocols: METRICS. The cosine is that of systems which represent users by vectors.
_METRICS = {FULL: (*METRICS, "recall"), SHUFFLE: (*METRICS, "cosine"), GENERATION: WRITTEN}

Results = Mapping[Any, pa.Table]  # by protocol and system: rows of `evaluation_results`


def metrics_of(protocol: str) -> Sequence[str]:
    return _METRICS.get(protocol, METRICS)


def rows(
    system: str, protocol: str, cases: Cases, values_BM: np.ndarray, tied_B: np.ndarray, by_text: np.ndarray | None
) -> pa.Table:
    """Rows of `evaluation_results`, in the order of the cases.

    Args:
        values_BM: the protocol's metrics; NaN for one that the system has not.
        tied_B: how many others are tied with the target.
        by_text: bool (n + 1,): items whose soft token is made of q_i; None where items have no soft tokens.
    """
    metrics = zip(metrics_of(protocol), values_BM.T, strict=True)
    columns: dict[str, Any] = {name: pa.array(values_B, from_pandas=True) for name, values_B in metrics}
    if by_text is not None:
        columns["candidates"] = (cases.candidates_BC > 0).sum(axis=1)
        columns["by_text"] = ((cases.candidates_BC > 0) & by_text[cases.candidates_BC]).sum(axis=1)
    columns |= {
        "user_id": cases.user_ids,
        "system": pa.repeat(system, len(cases)),
        "protocol": pa.repeat(protocol, len(cases)),
        "warm": cases.warm_B,
        "cold": cases.cold_B,
        "tied": tied_B,
    }
    arrays = [
        pa.nulls(len(cases), column.type)
        if column.name not in columns
        else pa.array(columns[column.name]).cast(column.type)
        for column in SCHEMA
    ]
    return pa.table(arrays, schema=SCHEMA)


def sums_of(results: Results, baseline: str | None, recall_at: int) -> list[dict[str, Any]]:
    """A shard's sums (see `metrics.sums`), with differences to the baseline system.

    Under the swap a system's baseline is itself with everybody's own history: what it loses is what it knew of users.
    So it is with shuffled histories: what it loses is what it knew of their order.
    Answers are compared with the baseline's, or with its choice among the same candidates where it writes none.

    Args:
        recall_at: N of Recall@N.
    """
    out: list[dict[str, Any]] = []
    for (protocol, system), own in results.items():
        columns = {metric: metric for metric in metrics_of(protocol)}
        key: tuple[str, str | None] = (protocol, baseline)
        if protocol in CHANGED:
            key, columns = ("random", system), {metric: metric for metric in METRICS}
        elif protocol == GENERATION and key not in results:
            key, columns = ("random", baseline), {"hit@1": "hit@1", "hit@1 substring": "hit@1"}
        other = results[key] if key in results and key != (protocol, system) else None
        out += _sums(own, system, protocol, other, key[1], columns, recall_at)
    return out


def compare(own: Storage, system: str, other: Storage, baseline: str) -> list[dict[str, Any]]:
    """Two runs' systems on the same cases, paired by user: rows as of metrics.json. Reads shard by shard.

    Args:
        own, other: `evaluation_results` of the runs.
        system, baseline: of the first and of the second run.

    Raises:
        ValueError: no user was evaluated by both, or the runs were evaluated on different cases.
    """
    ours, theirs = read_manifest(own), read_manifest(other)
    if any(ours.stats[fact] != theirs.stats[fact] for fact in ("cases", "recall_at")):
        raise ValueError(
            f"{own.uri} and {other.uri} are of different evaluation cases, or of another nightly.num_candidates; "
            "evaluate both over the same prepared tables"
        )
    out: list[dict[str, Any]] = []
    for name in ours.files:
        base = _by_protocol(read_part(other, theirs, name), baseline)
        for protocol, rows in _by_protocol(read_part(own, ours, name), system).items():
            columns = {metric: metric for metric in metrics_of(protocol)}
            out += _sums(rows, system, protocol, base.get(protocol), baseline, columns, ours.stats["recall_at"])
    if not any(row["pairs"] for row in out):
        raise ValueError(
            f"no user was evaluated by {system!r} in {own.uri} and by {baseline!r} in {other.uri}; add the systems to "
            "evaluation.systems and evaluate again"
        )
    return summarise(out)


def _by_protocol(table: pa.Table, system: str) -> dict[str, pa.Table]:
    table = table.filter(pc.equal(table.column("system"), system))
    protocols = table.column("protocol")
    return {protocol: table.filter(pc.equal(protocols, protocol)) for protocol in protocols.unique().to_pylist()}


def _sums(
    own: pa.Table,
    system: str,
    protocol: str,
    other: pa.Table | None,
    baseline: str | None,
    columns: Mapping[str, str],
    recall_at: int,
) -> list[dict[str, Any]]:
    """Sums of one system's rows on one protocol, and of what they have above the same users' rows of `other`.

    Args:
        columns: the other's by metric; a metric that is not among them has no differences.
    """
    metrics = [metric for metric in metrics_of(protocol) if not own.column(metric).null_count]
    values_BM = np.column_stack([own.column(metric).to_numpy() for metric in metrics])
    differences_BM = np.full(values_BM.shape, np.nan)
    if other is not None:
        theirs = other.take(pc.index_in(own.column("user_id"), value_set=other.column("user_id").combine_chunks()))
        for number, metric in enumerate(metrics):
            if metric in columns:
                differences_BM[:, number] = values_BM[:, number] - theirs.column(columns[metric]).to_numpy()
    subsets = {name: own.column(name).to_numpy() for name in ("warm", "cold")}
    tallies = {name: pc.fill_null(own.column(name), 0).to_numpy() for name in ("candidates", "by_text")}
    return sums(
        system,
        protocol,
        values_BM,
        {"all": np.ones(own.num_rows, dtype=bool), **subsets},
        [metric.replace("recall", f"recall@{recall_at}") for metric in metrics],
        differences_BM,
        baseline,
        {"tied": own.column("tied").to_numpy() > 0, **tallies},
    )
