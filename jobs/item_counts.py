"""A pass over shards that counts items; workers sum the counts, see `count_drafts`."""

from allmrec.core.mapped_columns import MappedColumns
from allmrec.core.shard_tasks import Report, ShardTask
from allmrec.core.storage import Storage
from allmrec.data.prepare.count_drafts import FAN_IN, AddUp, CountDrafts, CountInto
from jobs.histories import clear
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
    drafts, level = CountDrafts(folder, num_items), 0
    clear(folder)
    try:
        _, total = gather_reports(context.console, title, files, CountInto(task, drafts))
        while files > FAN_IN:
            add_up = AddUp(drafts, level, files)
            files, level = -(-files // FAN_IN), level + 1
            gather_reports(context.console, "sum counts of items", files, add_up)
        return total, *on_worker(drafts.to_columns, level, range(files), target, name)
    finally:
        clear(folder)
