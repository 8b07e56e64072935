"""Read the log and the catalogue; write items, sequences, rejected rows and evaluation cases.

    python -m jobs.prepare --config jobs/configs/demo.yaml

Users are dealt to `data.num_shards` shards by a hash of their id. Ray Data runs the passes: over pieces of the input,
which it reads, cleans and deals to shards through storage, and then over shards, one by one, wherever a CPU is free.
Nothing on the driver grows with the number of users or events; it holds the catalogue and counts by item.
"""

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.artifacts import MANIFEST, Manifest, read_manifest, seal, shard_name, unseal, write_shard
from allmrec.data.catalogue import ItemCounts
from allmrec.data.clean import log_columns
from allmrec.data.finish import CountItems, DrawUsers, Finish
from allmrec.data.items import ITEMS, CleanItems, index_items, with_counts
from allmrec.data.lists import IdList, read_list, refuse_unknown
from allmrec.data.sources import Source, find_files, open_source
from allmrec.data.splits import Split
from allmrec.evaluation.cases import SPLITS, DrawCases
from allmrec.storage import Storage
from jobs.cli import main
from jobs.config import Config
from jobs.datasets import over, tables
from jobs.histories import Histories, clear, shard_reports
from jobs.step import Context, Facts, Step
from jobs.workers import start_ray
from schemas import items as items_schema
from schemas import rejected as rejected_schema


def run(context: Context) -> Facts:
    started, config, data = time.monotonic(), context.config, context.config.data
    items, sequences, rejected, cases = (context.artifact(name) for name in STEP.outputs)
    log, catalogue = open_sources(context)
    start_ray(config)
    lists = forgotten_lists(context.config)
    forgotten = [sorted(found.spellings.to_pylist()) if found else [] for found in lists]
    histories = Histories(context, log, *forgotten)

    # The catalogue is one table; the order of its ids gives the item indices, new ones after those that are known.
    cleaned = pa.concat_tables(tables(over(len(catalogue.pieces), CleanItems(catalogue))))
    item_table, bad_items = index_items(cleaned, histories.known_items(), forgotten[1])
    item_ids = item_table.column("item_id").combine_chunks()
    if not len(item_ids):
        raise ValueError(f"items: no row is left of {bad_items.num_rows:,}: {_counted(bad_items.column('reason'))}")
    logged = histories.update(item_ids)
    listed = _lists_known(lists, histories.forgotten_known(logged))

    # What was not used, and whether it was too much: then nothing else is written.
    _write_rejected(context, logged, bad_items)
    shards = logged.facts["shards"]
    reasons, left_out = (_totals(shards, key) for key in ("reasons", "left_out"))
    rows = sum(shard["kept"] for shard in shards) + left_out.total() + reasons.total()
    _refuse("items", len(item_table), _counted(bad_items.column("reason")), data.max_rejected_fraction, rejected)
    _refuse("interactions", rows - reasons.total(), reasons, data.max_rejected_fraction, rejected)

    frequent_I = _frequent_items(context, len(item_ids))
    before = read_manifest(sequences) if sequences.exists(MANIFEST) else None
    unseal(sequences)
    split = _split(context, frequent_I)
    finish = Finish(context.artifact("histories"), sequences, before, data, frequent_I, split)
    reports, counted = shard_reports(context, "write sequences", over(data.num_shards, finish))
    popularity_I, interactions_I = counted.reshape(2, -1)
    users, interactions = _sum(reports, "users"), _sum(reports, "interactions")
    if not users:
        raise ValueError("interactions: no user is left; lower data.min_user_interactions or let in more events")

    sizes = {"users": users, "items": int(np.count_nonzero(interactions_I)), "interactions": interactions}
    _seal(context, sequences, reports, "sequences", sizes)
    clear(items)
    entry = write_shard(
        items, items_schema.SCHEMA, shard_name(0), with_counts(item_table, popularity_I, interactions_I)
    )
    facts = sizes | {"tables": dict(catalogue.versions)}
    seal(items, "items", context.made_by, {shard_name(0): entry}, context.resolved("data"), facts)

    clear(cases)
    evaluation, counts = config.evaluation, ItemCounts(popularity_I, interactions_I, users)
    fractions = {part: (evaluation.max_users or np.inf) / max(_sum(reports, part), 1) for part in SPLITS}
    draw = DrawCases(sequences, counts, cases, evaluation, split, config.seed, fractions)
    reports, _ = shard_reports(context, "draw evaluation cases", over(data.num_shards, draw))
    _seal(context, cases, reports, "evaluation_cases", {part: _sum(reports, part) for part in SPLITS})

    return {
        "rows": rows,
        **_about(log),
        **_about(catalogue),
        **{f"rejected as {reason}": count for reason, count in sorted(reasons.items())},
        **{f"left out as {reason}": count for reason, count in sorted(left_out.items())},
        "rejected items": bad_items.num_rows,
        **listed,
        **sizes,
        "items of the catalogue": len(item_ids),
        "items with training interactions": int(np.count_nonzero(popularity_I)),
        "interactions per user": interactions / users,
        "evaluation cases": sum(report["evaluation_cases"]["rows"] for report in reports.values()),
        "rows/s": round(rows / (time.monotonic() - started)),
    }


def plan(context: Context) -> Facts:
    log, catalogue = open_sources(context)
    facts: Facts = {}
    for source in (log, catalogue):
        facts[f"{source.name} files"] = len(source.files)
        facts[f"{source.name} MB"] = sum(file.size for file in source.files) / 1e6
        facts[f"{source.name} rows"] = "unknown until read" if source.rows is None else source.rows
        facts |= _about(source)
    return {**facts, "pieces": len(log.pieces), "shards": context.config.data.num_shards}


def _about(source: Source) -> Facts:
    """What stands behind a table's paths beside the files that are read."""
    versions = {f"{source.name} version": ", ".join(source.versions.values())} if source.versions else {}
    skipped = {f"{source.name} files skipped as {why}": count for why, count in sorted(source.skipped.items())}
    return versions | skipped


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
    lists = [name for name in ("forgotten_users", "forgotten_items") if getattr(data, name).paths]
    names = ("interactions", "items", *lists)
    return {name: [vars(file) for file in find_files(name, getattr(data, name), s3)] for name in names}


STEP = Step(
    verb="prepare",
    sections=("data", "evaluation"),
    inputs=(),
    outputs=("items", "sequences", "rejected", "evaluation_cases"),
    run=run,
    plan=plan,
    outside=input_files,
)


def forgotten_lists(config: Config) -> tuple[IdList | None, IdList | None]:
    """The users and the items that must not appear; None where no table of them is configured."""
    users, items = (
        read_list(name, listed, column, config.storage, f"data.{name}") if listed.paths else None
        for name, listed, column in (
            ("forgotten_users", config.data.forgotten_users, "user_id"),
            ("forgotten_items", config.data.forgotten_items, "item_id"),
        )
    )
    return users, items


def _lists_known(lists: Iterable[IdList | None], known: Iterable[list[str]]) -> Facts:
    """How much of the lists is known. Raises ValueError where that is too little."""
    facts: Facts = {}
    for found, ids in zip(lists, known, strict=True):
        if found:
            count = found.known(pc.is_in(found.spellings, pa.array(ids, pa.string())).to_numpy(zero_copy_only=False))
            refuse_unknown(found.name, len(found), count, found.least)
            facts |= {f"{found.name} listed": len(found), f"{found.name} known": count}
    return facts


def _frequent_items(context: Context, num_items: int) -> np.ndarray:
    """Which items stay by `data.min_item_interactions`, by item index: bool (n + 1,)."""
    data, frequent_I = context.config.data, np.arange(num_items + 1) > 0
    least, min_user = data.min_item_interactions, data.min_user_interactions if data.core == "iterated" else 1
    while least > 1:
        count = CountItems(context.artifact("histories"), data, frequent_I, min_user)
        _, counts_I = shard_reports(context, "count items", over(data.num_shards, count))
        left_I = frequent_I & (counts_I >= least)
        if data.core == "once" or (left_I == frequent_I).all():
            return left_I
        frequent_I = left_I
    return frequent_I


def _split(context: Context, frequent_I: np.ndarray) -> Split:
    """How histories are divided, its sample of users drawn."""
    data, split = context.config.data, Split(context.config.evaluation.split, context.config.seed)
    if not split.samples:
        return split
    draw = DrawUsers(context.artifact("histories"), data, frequent_I, split)
    reports, _ = shard_reports(context, "sample users", over(data.num_shards, draw))
    return split.with_sample([drawn for report in reports.values() for drawn in report["draws"]])


def _sum(reports: dict[int, dict[str, Any]], key: str) -> int:
    return sum(report[key] for report in reports.values())


def _totals(shards: list[dict[str, Any]], key: str) -> Counter[str]:
    return sum((Counter(shard[key]) for shard in shards), Counter[str]())


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


def _seal(
    context: Context, storage: Storage, reports: dict[int, dict[str, Any]], kind: str, facts: dict[str, int]
) -> None:
    files = {shard_name(shard): report[kind] for shard, report in reports.items()}
    assert len(files) == context.config.data.num_shards
    seal(storage, kind, context.made_by, files, context.resolved(*STEP.sections), facts)


def _write_rejected(context: Context, histories: Manifest, bad_items: pa.Table) -> None:
    """The rejected rows of the log, copied from where they are kept, and those of the catalogue."""
    storage = context.artifact("rejected")
    unseal(storage)
    files = {"items.parquet": write_shard(storage, rejected_schema.SCHEMA, "items.parquet", bad_items)}
    for number, shard in enumerate(histories.facts["shards"]):
        name = f"interactions-{number:05d}.parquet"
        context.storage.copy(f"histories/{shard['rejected']}", f"rejected/{name}")
        files[name] = histories.files[shard["rejected"]]
    seal(storage, "rejected", context.made_by, files, context.resolved("data"))


if __name__ == "__main__":
    main(STEP)
