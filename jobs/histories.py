"""Brings the artifact `histories` up to date: every user's clean events, before any filter, and the rejected rows.

Passes over the pieces of the log that are new, through the shuffle, and over shards. The manifest is replaced at the
end, so a killed run leaves the previous histories valid. What is read and what stays is decided by `incremental`.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from allmrec.core.artifacts import ArtifactWriter, Manifest, read_manifest, writing
from allmrec.core.shard_tasks import Report, ShardTask, read_reports
from allmrec.core.storage import Storage
from allmrec.data.prepare.clean import CleanInteractions
from allmrec.data.prepare.histories import MentionsItems
from allmrec.data.prepare.incremental import HistoriesPlan, LogItems
from allmrec.data.prepare.shuffle import MergeRuns, PartitionRows, Shuffle
from jobs.runtime.ray_data import gather_reports, iter_results, map_tasks, on_worker, stream
from jobs.runtime.step import Context

Contents = ArtifactWriter | Manifest  # files and stats of histories, before or after the commit

_PARALLEL = 16  # deletes at once


def update_histories(
    context: Context, plan: HistoriesPlan, items: LogItems, check: Callable[[Contents], None]
) -> Manifest:
    """Make the histories, as far as they are not there.

    Args:
        check: called before they are committed; where it raises, the previous ones stay, and no item becomes known.
    """
    if plan.previous is not None and plan.previous.fingerprint == items.identity:
        check(plan.previous)
        return plan.previous
    previous = plan.previous if _can_be_extended(plan, items) else None
    drafts = context.workspace.shuffle
    clear(drafts)
    with writing(plan.storage, "histories", items.identity, plan.config, keep_previous=True) as out:
        try:
            shuffle, pieces = _partition(context, plan, previous, drafts, items)
            update = plan.update(previous, shuffle, items)
            shards, total = over_shards(context, "order events", update)
        finally:
            clear(drafts)
        out.add(total.files | {items.file: on_worker(plan.write_items, items)})
        plan.add_stats(out, items, pieces, shards)
        try:
            check(out)
        except Exception:
            plan.discard(out.files)
            raise
    return read_manifest(plan.storage)


def over_shards(context: Context, title: str, task: ShardTask) -> tuple[list[Report], Report]:
    """Run a task on every shard: its reports by shard, and their sum; see `gather`."""
    return gather_reports(context.console, title, context.config.data.num_shards, task)


def clear(storage: Storage, prefix: str = "") -> None:
    """Delete the files of a folder that is no artifact."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(storage.delete, [entry.key for entry in storage.list(prefix)]))


def _partition(
    context: Context, plan: HistoriesPlan, previous: Manifest | None, drafts: Storage, items: LogItems
) -> tuple[Shuffle, list[Report]]:
    """Read the new files into the shuffle, and merge its runs. Returns the report of each piece as well."""
    log, data = plan.unread(previous), context.config.data
    shuffle = Shuffle(drafts, len(log.pieces), data.num_shards)
    if not log.pieces:
        return shuffle, []
    partition = PartitionRows(CleanInteractions(log, data, items.ids), shuffle, items.exclusions)
    pieces, _ = gather_reports(context.console, "read the log", len(log.pieces), partition, stream)
    for level in range(1, shuffle.rounds + 1):
        gather_reports(context.console, "merge runs", shuffle.num_runs(level), MergeRuns(shuffle, level))
        clear(drafts, f"{level - 1}/")
    return shuffle, pieces


def _can_be_extended(plan: HistoriesPlan, items: LogItems) -> bool:
    """Whether no rejected row of the previous histories names an item that was added to the catalogue."""
    if plan.previous is None:
        return False
    if len(items.ids) == items.known:
        return True
    mentions = MentionsItems(plan.storage, plan.previous, items.ids, items.known)
    results = iter_results(map_tasks(len(plan.previous.stats["shards"]), mentions))
    return not any(report.counts["rows"] for report in read_reports(results))
