"""Read the log and the catalogue; write items, sequences, rejected rows and evaluation cases.

    python -m jobs.prepare --config jobs/configs/demo.yaml

Users are assigned to `data.num_shards` shards by a hash of their id. Ray Data streams the pieces of the log, which are
read, cleaned and shuffled through storage; the passes over shards, one by one, are tasks wherever a CPU is free.
Nothing on the driver grows with the number of users, events or items: workers read what is by item from drafts.
"""

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import find_manifest, writing
from allmrec.core.shard_tasks import read_reports
from allmrec.core.storage import Storage
from allmrec.data.catalogue import StoredCounts
from allmrec.data.config import least_shards
from allmrec.data.evaluation_cases import SPLITS, DrawCases
from allmrec.data.prepare.clean import log_columns
from allmrec.data.prepare.filters import FrequentItems
from allmrec.data.prepare.incremental import HistoriesPlan
from allmrec.data.prepare.items import ITEMS
from allmrec.data.prepare.sequences import BuildSequences, CountItems, CountUsers, DrawUsers
from allmrec.data.sources.lists import IdList, read_list, refuse_unknown
from allmrec.data.sources.source import Source, find_files, open_source
from allmrec.data.splits import Split
from jobs.config import Config
from jobs.histories import Contents, clear, over_shards, update_histories
from jobs.item_counts import count_over_shards
from jobs.items import clean_catalogue, merge_catalogue, write_catalogue
from jobs.runtime.cluster import start_ray
from jobs.runtime.command import main
from jobs.runtime.preflight import Needs
from jobs.runtime.prometheus import PrepareMetrics
from jobs.runtime.ray_data import iter_results, map_tasks, on_worker
from jobs.runtime.step import Context, Stats, Step


def run(context: Context) -> Stats:
    drafts = context.workspace.item_drafts
    clear(drafts)
    try:
        return _prepare(context, drafts)
    finally:
        clear(drafts)


def _prepare(context: Context, drafts: Storage) -> Stats:
    started, config, data, workspace = time.monotonic(), context.config, context.config.data, context.workspace
    log, catalogue = open_sources(context)
    start_ray(config)
    lists = excluded_lists(context.config)
    excluded = [sorted(found.spellings.to_pylist()) if found else [] for found in lists]
    histories = HistoriesPlan(workspace.histories, log, data, *excluded)

    # The order of the catalogue's ids gives the item indices, new ones after those that are known.
    items = clean_catalogue(context, catalogue, histories, drafts)
    listed: Stats = {}

    # What was not used, and whether it was too much: then nothing else is written, and the histories stay as they were.
    def check(made: Contents) -> None:
        listed.update(_lists_known(lists, histories.excluded_known(made.stats)))
        with writing(workspace.rejected, "rejected", context.fingerprint, context.resolved("data")) as out:
            out.add(merge_catalogue(context, items, drafts, excluded[1]))
            out.add(_rejected_rows(context, made))
        most, (rows, reasons, filtered_out) = data.max_rejected_fraction, _counted(made.stats)
        _refuse("items", items.listed, items.rejected, most, workspace.rejected)
        _refuse("interactions", rows - reasons.total(), reasons, most, workspace.rejected)
        if rows == reasons.total() + filtered_out.total():
            counts = ", ".join(f"{reason} {count:,}" for reason, count in (filtered_out + reasons).most_common())
            raise ValueError(
                f"interactions: none of {rows:,} rows is left ({counts}); see data.start, end, events, min_rating and "
                f"excluded_users, and {workspace.rejected.uri} for rejected rows"
            )

    rows, reasons, filtered_out = _counted(update_histories(context, histories, items.log_items, check).stats)

    frequent = _frequent_items(context, items.num_items, drafts)
    _refuse_no_user(context, frequent)
    before = find_manifest(workspace.sequences)
    resolved = context.resolved(*STEP.sections)
    with writing(workspace.sequences, "sequences", context.fingerprint, resolved) as out:
        split = _split(context, frequent)
        build = BuildSequences(workspace.histories, workspace.sequences, before, data, frequent, split)
        built, columns, occur = count_over_shards(
            context, "write sequences", build, items.num_items, drafts, "counts.arrow"
        )
        users, interactions = built.counts["users"], built.counts["interactions"]
        if (least := least_shards(users, workers=0)) > data.num_shards:
            context.console.warning(
                f"data.num_shards {data.num_shards} is too few for {users:,} users; set it to {least} or more. "
                "Then all shards are made again, and the next nightly run scores all users"
            )
        sizes = {"users": users, "items": occur["interactions"], "interactions": interactions}
        out.add(built.files)
        out.stats |= sizes

    counts = StoredCounts(columns, users)
    with writing(workspace.items, "items", context.fingerprint, context.resolved("data")) as out:
        out.add(write_catalogue(context, drafts, items.num_items, counts))
        out.stats |= sizes | {"tables": dict(catalogue.versions)}

    with writing(workspace.evaluation_cases, "evaluation_cases", context.fingerprint, resolved) as out:
        evaluation = config.evaluation
        fractions = {part: (evaluation.max_users or np.inf) / max(built.counts[part], 1) for part in SPLITS}
        cases = workspace.evaluation_cases
        draw = DrawCases(workspace.sequences, counts, cases, evaluation, split, config.seed, fractions)
        _, drawn = over_shards(context, "draw evaluation cases", draw)
        out.add(drawn.files)
        out.stats |= {part: drawn.counts[part] for part in SPLITS}

    return {
        "rows": rows,
        **_about(log),
        **_about(catalogue),
        **{f"rejected as {reason}": count for reason, count in sorted(reasons.items())},
        **{f"left out as {reason}": count for reason, count in sorted(filtered_out.items())},
        "rejected items": items.rejected.total(),
        **listed,
        **sizes,
        "items of the catalogue": items.listed,
        **({"items that have left the catalogue": items.numbered.gone} if items.numbered.gone else {}),
        "items with training interactions": occur["popularity"],
        "interactions per user": interactions / users,
        "evaluation cases": sum(entry["rows"] for entry in drawn.files.values()),
        "rows/s": round(rows / (time.monotonic() - started)),
    }


def plan(context: Context) -> Stats:
    log, catalogue = open_sources(context)
    stats: Stats = {}
    for source in (log, catalogue):
        stats[f"{source.name} files"] = len(source.files)
        stats[f"{source.name} MB"] = sum(file.size for file in source.files) / 1e6
        stats[f"{source.name} rows"] = "unknown until read" if source.rows is None else source.rows
        stats |= _about(source)
    return {**stats, "pieces": len(log.pieces), "shards": context.config.data.num_shards}


def _about(source: Source) -> Stats:
    """What the paths of a table mean, beyond the files that are read."""
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
    lists = [name for name in ("excluded_users", "excluded_items") if getattr(data, name).paths]
    names = ("interactions", "items", *lists)
    return {name: [vars(file) for file in find_files(name, getattr(data, name), s3)] for name in names}


STEP = Step(
    verb="prepare",
    sections=("data", "evaluation"),
    inputs=(),
    outputs=("items", "sequences", "rejected", "evaluation_cases"),
    run=run,
    plan=plan,
    external_inputs=input_files,
    needs=Needs("tasks"),
)


def excluded_lists(config: Config) -> tuple[IdList | None, IdList | None]:
    """The users and the items that must not appear; None where no table of them is configured."""
    users, items = (
        read_list(name, listed, column, config.storage, f"data.{name}") if listed.paths else None
        for name, listed, column in (
            ("excluded_users", config.data.excluded_users, "user_id"),
            ("excluded_items", config.data.excluded_items, "item_id"),
        )
    )
    return users, items


def _lists_known(lists: Iterable[IdList | None], known: Iterable[list[str]]) -> Stats:
    """How much of the lists is known. Raises ValueError where that is too little."""
    stats: Stats = {}
    for found, ids in zip(lists, known, strict=True):
        if found:
            count = found.known(pc.is_in(found.spellings, pa.array(ids, pa.string())).to_numpy(zero_copy_only=False))
            refuse_unknown(found.name, len(found), count, found.least)
            stats |= {f"{found.name} listed": len(found), f"{found.name} known": count}
    return stats


def _frequent_items(context: Context, num_items: int, drafts: Storage) -> FrequentItems:
    """Which items stay by `data.min_item_interactions`."""
    data, frequent = context.config.data, FrequentItems(num_items)
    least, min_user, rounds = data.min_item_interactions, data.min_user_interactions if data.k_core else 1, 0
    while least > 1:
        count = CountItems(context.workspace.histories, data, frequent, min_user)
        _, counts, _ = count_over_shards(context, "count items", count, num_items, drafts, f"kept-{rounds}.arrow")
        fewer = on_worker(frequent.with_at_least, least, counts, drafts, f"frequent-{rounds}.arrow")
        if not data.k_core or fewer is None:
            return fewer or frequent
        frequent, rounds = fewer, rounds + 1
    return frequent


def _refuse_no_user(context: Context, frequent: FrequentItems) -> None:
    """Raise ValueError if data.min_… leave no user, before anything is replaced."""
    data = context.config.data
    minima = ("min_user_interactions", "min_item_interactions")
    set_minima = [f"data.{name} = {getattr(data, name)}" for name in minima if getattr(data, name) > 1]
    if not set_minima:
        return  # an event is left, so its user is
    count = CountUsers(context.workspace.histories, data, frequent)
    for shards in dict.fromkeys((1, data.num_shards)):  # most often the first one has some
        reports = list(read_reports(iter_results(map_tasks(shards, count))))
        if any(report.counts["users"] for report in reports):
            return
    core = " (data.k_core: counted again until none is below)" if data.k_core else ""
    raise ValueError(
        f"interactions: no user is left by {' and '.join(set_minima)}{core}; lower them, or prepare more of the log"
    )


def _split(context: Context, frequent: FrequentItems) -> Split:
    """How histories are divided, its sample of users drawn."""
    data, split = context.config.data, Split(context.config.evaluation.split, context.config.seed)
    if not split.samples:
        return split
    draw = DrawUsers(context.workspace.histories, data, frequent, split)
    reports, _ = over_shards(context, "sample users", draw)
    return split.with_sample([drawn for report in reports for drawn in report.details["draws"]])


def _counted(histories: Stats) -> tuple[int, Counter[str], Counter[str]]:
    """The log's rows, and by reason those that were rejected and those that were left out."""
    shards = histories["shards"]
    reasons, filtered_out = (
        sum((Counter(shard[key]) for shard in shards), Counter[str]()) for key in ("reasons", "filtered_out")
    )
    rows = sum(shard["kept"] for shard in shards) + reasons.total() + filtered_out.total()
    return rows, reasons, filtered_out


def _refuse(table: str, used: int, reasons: Counter[str], most: float, rejected: Storage) -> None:
    """Raise ValueError if more than the fraction `most` of a table's rows was rejected."""
    total = used + reasons.total()
    PrepareMetrics().read(table, used, reasons)
    if reasons.total() > most * total:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        raise ValueError(
            f"{table}: {reasons.total():,} of {total:,} rows were rejected ({counts}), more than "
            f"data.max_rejected_fraction = {most:g} allows; see {rejected.uri} and fix the input, "
            "or raise the fraction"
        )


def _rejected_rows(context: Context, histories: Contents) -> dict[str, dict[str, Any]]:
    """The rejected rows of the log, copied from where they are kept; returns the files' entries."""
    entries = {}
    for number, shard in enumerate(histories.stats["shards"]):
        name = f"interactions-{number:05d}.parquet"
        context.storage.copy(f"histories/{shard['rejected']}", f"rejected/{name}")
        entries[name] = histories.files[shard["rejected"]]
    return entries


if __name__ == "__main__":
    main("prepare")
