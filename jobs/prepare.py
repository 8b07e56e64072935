"""Read the log and the catalogue; write items, sequences, rejected rows and evaluation cases.

    python -m jobs.prepare --config jobs/configs/demo.yaml

Users are dealt to `data.num_shards` shards by a hash of their id. Ray Data reads and cleans pieces of the input
wherever a CPU is free, brings each shard's rows together (a hash shuffle), and works on whole shards from there.
Nothing on the driver grows with the number of users or events; it holds the catalogue and counts by item.
"""

import json
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from allmrec.artifacts import seal, shard_name, unseal, write_shard
from allmrec.data.assemble import Draft, Finish, rejected_name
from allmrec.data.clean import CleanInteractions, log_columns
from allmrec.data.items import ITEMS, CleanItems, index_items, with_popularity
from allmrec.data.sources import Source, find_files, open_source
from allmrec.evaluation.cases import DrawCases
from allmrec.storage import Storage
from jobs.cli import main
from jobs.datasets import over, tables
from jobs.step import Context, Facts, Step
from jobs.workers import start_ray
from schemas import items as items_schema
from schemas import rejected as rejected_schema


def run(context: Context) -> Facts:
    started, config, data = time.monotonic(), context.config, context.config.data
    items, sequences, rejected, cases = (context.artifact(name) for name in STEP.outputs)
    drafts = context.artifact("drafts/prepare")
    log, catalogue = open_sources(context)
    start_ray(config)

    # The catalogue is one table; the order of its ids gives the item indices.
    item_table, bad_items = index_items(pa.concat_tables(tables(over(len(catalogue.pieces), CleanItems(catalogue)))))
    item_ids = item_table.column("item_id").combine_chunks()
    if not len(item_ids):
        raise ValueError(f"items: no row is left of {bad_items.num_rows:,}: {_counted(bad_items.column('reason'))}")

    # The log: clean rows where they are read, bring each shard's rows together, put its events in order.
    _clear(drafts)
    _clear(rejected)
    cleaned = over(len(log.pieces), CleanInteractions(log, data, item_ids))
    shuffled = cleaned.repartition(data.num_shards, keys=["shard"])
    drafted = shuffled.map_batches(Draft(drafts, rejected, item_ids), batch_size=None, batch_format="pyarrow")
    reports, item_counts = _reports(context, "read the log", drafted, len(item_ids))

    # What was not used, and whether it was too much: then nothing else is written.
    _seal_rejected(context, reports, bad_items)
    kept = _sum(reports, "kept")
    reasons, left_out = (_total(reports, key) for key in ("reasons", "left_out"))
    try:
        _refuse("items", len(item_table), _counted(bad_items.column("reason")), data.max_rejected_fraction, rejected)
        _refuse("interactions", kept + left_out.total(), reasons, data.max_rejected_fraction, rejected)
        _clear(sequences)
        finish = Finish(drafts, sequences, data, item_counts)
        reports, popularity = _reports(context, "write sequences", over(data.num_shards, finish), len(item_ids))
    finally:
        _clear(drafts)
    users, interactions = _sum(reports, "users"), _sum(reports, "interactions")
    if not users:
        raise ValueError("interactions: no user is left; lower data.min_user_interactions or let in more events")

    sizes = {"users": users, "items": len(item_ids), "interactions": interactions}
    _seal(context, sequences, reports, "sequences", sizes)
    _clear(items)
    entry = write_shard(items, items_schema.SCHEMA, shard_name(0), with_popularity(item_table, popularity))
    seal(items, "items", context.made_by, {shard_name(0): entry}, context.resolved("data"), sizes)

    _clear(cases)
    evaluation = config.evaluation
    fraction = (evaluation.max_users or np.inf) / max(_sum(reports, "evaluable"), 1)
    draw = DrawCases(sequences, items, cases, evaluation, config.seed, fraction)
    reports, _ = _reports(context, "draw evaluation cases", over(data.num_shards, draw), 0)
    _seal(context, cases, reports, "evaluation_cases", {})

    rows = kept + left_out.total() + reasons.total()
    return {
        "rows": rows,
        **{f"rejected as {reason}": count for reason, count in sorted(reasons.items())},
        **{f"left out as {reason}": count for reason, count in sorted(left_out.items())},
        "rejected items": bad_items.num_rows,
        **sizes,
        "interactions per user": interactions / users,
        "evaluation cases": sum(report["evaluation_cases"]["rows"] for report in reports.values()),
        "rows/s": round(rows / (time.monotonic() - started)),
    }


def plan(context: Context) -> Facts:
    log, catalogue = open_sources(context)
    facts: Facts = {}
    for source in (log, catalogue):
        files = find_files(source.name, source.config, context.config.storage)
        facts[f"{source.name} files"] = len(files)
        facts[f"{source.name} MB"] = sum(file.size for file in files) / 1e6
        facts[f"{source.name} rows"] = "unknown until read" if source.rows is None else source.rows
    return {**facts, "pieces": len(log.pieces), "shards": context.config.data.num_shards}


def open_sources(context: Context) -> tuple[Source, Source]:
    """The log and the catalogue, their columns checked. Raises ValueError for what is wrong with them."""
    data, s3 = context.config.data, context.config.storage
    return (
        open_source("interactions", data.interactions, s3, log_columns(data)),
        open_source("items", data.items, s3, ITEMS),
    )


def input_files(context: Context) -> Any:
    """What the step's identity takes from outside the run: path, size and time of change of every input file."""
    data, s3 = context.config.data, context.config.storage
    sources = {"interactions": data.interactions, "items": data.items}
    return {name: [vars(file) for file in find_files(name, source, s3)] for name, source in sources.items()}


STEP = Step(
    verb="prepare",
    sections=("data", "evaluation"),
    inputs=(),
    outputs=("items", "sequences", "rejected", "evaluation_cases"),
    run=run,
    plan=plan,
    outside=input_files,
)


def _reports(
    context: Context, title: str, dataset: Dataset, num_items: int
) -> tuple[dict[int, dict[str, Any]], np.ndarray]:
    """Run a pass over shards: what it reports by shard, and the sum of its counts by item, int64 (n + 1,)."""
    reports, item_counts = {}, np.zeros(num_items + 1, dtype=np.int64)
    with context.console.progress(title, context.config.data.num_shards) as bar:
        for table in tables(dataset):
            for shard, report, counts in zip(*table.columns, strict=True):
                assert shard.as_py() not in reports, "a shard comes whole, in one block"
                reports[shard.as_py()] = json.loads(report.as_py())
                if len(counts):
                    item_counts += counts.values.to_numpy()
                bar.advance()
    return reports, item_counts


def _sum(reports: dict[int, dict[str, Any]], key: str) -> int:
    return sum(report[key] for report in reports.values())


def _total(reports: dict[int, dict[str, Any]], key: str) -> Counter[str]:
    return sum((Counter(report[key]) for report in reports.values()), Counter[str]())


def _counted(reasons: pa.ChunkedArray) -> Counter[str]:
    return Counter({entry["values"]: entry["counts"] for entry in reasons.value_counts().to_pylist()})


def _refuse(table: str, used: int, reasons: Counter[str], most: float, rejected: Storage) -> None:
    """Raise ValueError if more than the fraction `most` of a table's rows was rejected."""
    total = used + reasons.total()
    if reasons.total() > most * total:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        raise ValueError(
            f"{table}: {reasons.total():,} of {total:,} rows were rejected ({counts}), more than "
            f"data.max_rejected_fraction = {most:g} allows; look at them in {rejected.uri} and mend the input, "
            "or raise the fraction"
        )


def _clear(storage: Storage) -> None:
    """Take an artifact away: first its manifest, then what files there are."""
    unseal(storage)
    for entry in list(storage.list()):
        storage.delete(entry.key)


def _seal(
    context: Context, storage: Storage, reports: dict[int, dict[str, Any]], kind: str, facts: dict[str, int]
) -> None:
    files = {shard_name(shard): report[kind] for shard, report in reports.items()}
    assert len(files) == context.config.data.num_shards
    seal(storage, kind, context.made_by, files, context.resolved(*STEP.sections), facts)


def _seal_rejected(context: Context, reports: dict[int, dict[str, Any]], bad_items: pa.Table) -> None:
    storage, schema = context.artifact("rejected"), rejected_schema.SCHEMA
    files = {rejected_name(shard): report["rejected"] for shard, report in reports.items()}
    files["items.parquet"] = write_shard(storage, schema, "items.parquet", bad_items)
    for shard in set(range(context.config.data.num_shards)) - set(reports):  # nothing of the log fell into it
        files[rejected_name(shard)] = write_shard(storage, schema, rejected_name(shard), schema.empty_table())
    seal(storage, "rejected", context.made_by, files, context.resolved("data"))


if __name__ == "__main__":
    main(STEP)
