"""A pass over shards that counts items; workers sum the counts, see `count_drafts`."""

from allmrec.core.count_drafts import FAN_IN, AddUp, CountDrafts, CountInto, SummedCounts
from allmrec.core.mapped_columns import MappedColumns
from allmrec.core.shard_tasks import Report, ShardTask
from allmrec.core.storage import Storage
from jobs.histories import clear
from jobs.runtime.console import Console
from jobs.runtime.ray_data import gather_reports, on_worker
from jobs.runtime.step import Context


def count_over_shards(
    context: Context, title: str, task: ShardTask, num_items: int, target: Storage, name: str
) -> tuple[Report, MappedColumns, dict[str, int]]:
    """Run a task on every shard and write the sums of its item_counts as a draft.

    Returns:
        the sum of its reports, without item_counts; the draft; how many items occur, by what is counted.
    """
    folder, files = context.workspace.count_drafts, context.config.data.num_shards
    drafts = CountDrafts(folder, num_items)
    clear(folder)
    try:
        _, total = gather_reports(context.console, title, files, CountInto(task, drafts))
        return total, *on_worker(add_up(context.console, drafts, files).to_columns, target, name)
    finally:
        clear(folder)


def add_up(console: Console, drafts: CountDrafts, shards: int) -> SummedCounts:
    """Sum the counts of shards, all of which are in the drafts, on workers, until one process may read what is left."""
    level, files = 0, shards
    while files > FAN_IN:
        gather_reports(console, "sum counts of items", -(-files // FAN_IN), AddUp(drafts, level, files))
        level, files = level + 1, -(-files // FAN_IN)
    return SummedCounts(drafts, level, files)
