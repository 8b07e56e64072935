"""Brings the artifact `histories` up to date: every user's clean events, before any filter, and the rejected rows.

Two passes: over the pieces of the log that are new, through the shuffle, and over shards. The manifest is replaced at
the end, so a killed run leaves the previous histories valid. What is read and what stays is decided by `incremental`.
"""

import pyarrow as pa

from allmrec.core.artifacts import Manifest, read_manifest, writing
from allmrec.core.shard_tasks import Report, ShardTask, read_reports
from allmrec.core.storage import Storage
from allmrec.data.prepare.clean import CleanInteractions
from allmrec.data.prepare.histories import MentionsItems
from allmrec.data.prepare.incremental import HistoriesPlan
from allmrec.data.prepare.shuffle import PartitionRows
from jobs.runtime.ray_data import gather_reports, iter_results, map_tasks
from jobs.runtime.step import Context


def update_histories(context: Context, plan: HistoriesPlan, item_ids: pa.Array) -> Manifest:
    """Make the histories, as far as they are not there.

    Args:
        item_ids: string (n,), by item index from 1; begins with `plan.known_items()`.
    """
    identity = plan.identity(item_ids)
    if plan.previous is not None and plan.previous.fingerprint == identity:
        return plan.previous
    previous = plan.previous if _can_be_extended(plan, item_ids) else None
    shuffle = context.workspace.shuffle
    clear(shuffle)
    with writing(plan.storage, "histories", identity, plan.config, keep_previous=True) as out:
        try:
            pieces = _partition(context, plan, previous, shuffle, item_ids)
            update = plan.update(previous, shuffle, len(pieces), item_ids)
            shards, total = over_shards(context, "order events", update)
        finally:
            clear(shuffle)
        out.add(total.files)
        plan.write_manifest(out, item_ids, pieces, shards)
    return read_manifest(plan.storage)


def over_shards(context: Context, title: str, task: ShardTask) -> tuple[list[Report], Report]:
    """Run a task on every shard: its reports by shard, and their sum; see `gather`."""
    return gather_reports(context.console, title, context.config.data.num_shards, task)


def clear(storage: Storage) -> None:
    """Delete all files of a folder that is no artifact."""
    for entry in list(storage.list()):
        storage.delete(entry.key)


def _partition(
    context: Context, plan: HistoriesPlan, previous: Manifest | None, shuffle: Storage, item_ids: pa.Array
) -> list[Report]:
    """Read the new files into the shuffle. Returns the report of each piece."""
    log, data = plan.unread(previous), context.config.data
    if not log.pieces:
        return []
    clean = CleanInteractions(log, data, item_ids)
    partition = PartitionRows(clean, shuffle, plan.exclusions(item_ids), data.num_shards)
    return gather_reports(context.console, "read the log", len(log.pieces), partition)[0]


def _can_be_extended(plan: HistoriesPlan, item_ids: pa.Array) -> bool:
    """Whether no rejected row of the previous histories names an item that was added to the catalogue."""
    if plan.previous is None:
        return False
    new = item_ids[len(plan.known_items()) :]
    if not len(new):
        return True
    mentions = MentionsItems(plan.storage, plan.previous, new)
    results = iter_results(map_tasks(len(plan.previous.stats["shards"]), mentions))
    return not any(report.counts["rows"] for report in read_reports(results))
