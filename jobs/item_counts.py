"""A pass over shards that counts items; workers sum the counts, see `count_drafts`."""

from dataclasses import replace

from allmrec.core.shard_tasks import Report, ShardTask
from allmrec.data.prepare.count_drafts import FAN_IN, AddUp, CountDrafts, CountInto
from jobs.histories import clear
from jobs.runtime.ray_data import gather_reports
from jobs.runtime.step import Context


def count_over_shards(context: Context, title: str, task: ShardTask, num_items: int) -> Report:
    """Run a task on every shard: the sum of its reports, item_counts among them."""
    folder, files = context.workspace.count_drafts, context.config.data.num_shards
    drafts, level = CountDrafts(folder, num_items), 0
    clear(folder)
    try:
        _, total = gather_reports(context.console, title, files, CountInto(task, drafts))
        while files > FAN_IN:
            add_up = AddUp(drafts, level, files)
            files, level = -(-files // FAN_IN), level + 1
            gather_reports(context.console, "sum counts of items", files, add_up)
        return replace(total, item_counts=drafts.sum(level, range(files)))
    finally:
        clear(folder)
