"""Failed shards of a run: each is retried once, after the others and by any worker that is free.

So one bad GPU, or a store that is unavailable for a while, costs the time of a shard and not the whole run. If many
shards fail, the run itself is broken and ends at once.
"""

from allmrec.core.errors import JobError
from allmrec.core.shard_tasks import Failure, Report

_NAMED = 4  # shards in a message


class Failures:
    """The failed shards of one run."""

    def __init__(self, most: int):
        """Args: most: the number of shards that may fail."""
        self.most, self.failed, self._waiting = most, dict[int, Failure](), list[int]()

    def take(self, report: Report) -> Failure | None:
        """The failure of a report's shard, if it failed.

        Raises:
            ValueError: too many shards have failed, or this one has failed twice; names them. It is a JobError if
                another attempt may succeed for one of them.
        """
        failure, before = report.failure, self.failed.pop(report.shard, None)
        if failure is None:
            return None
        self.failed[report.shard] = failure
        if before is not None or len(self.failed) > self.most:
            raise self._error()
        self._waiting.append(report.shard)
        return failure

    def to_retry(self) -> list[int]:
        """The shards that have failed since the last call."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def _error(self) -> ValueError:
        named = [f"shard {shard} on {failure.host}: {failure.error}" for shard, failure in self.failed.items()]
        more = [f"{len(named) - _NAMED} more"] if len(named) > _NAMED else []
        kind = JobError if any(failure.exit_code == 1 for failure in self.failed.values()) else ValueError
        return kind(f"{'; '.join([*named[:_NAMED], *more])} (tried again up to workers.max_failures = {self.most})")
