"""Shards of a run that failed: each is tried once more, behind the others and by whichever worker is free.

So one bad GPU, or a store that did not answer for a while, costs a shard's time and not the night. Where many shards
fail something is wrong with the run, which then ends at once.
"""

from allmrec.core.errors import JobError
from allmrec.core.shard_tasks import Failure, Report

_NAMED = 4  # shards in a message


class Failures:
    """Of one run."""

    def __init__(self, most: int):
        """Args: most: how many shards may fail."""
        self.most, self.failed, self._waiting = most, dict[int, Failure](), list[int]()

    def take(self, report: Report) -> Failure | None:
        """How the shard of a report failed, if it did.

        Raises:
            ValueError: naming the shards that failed, if it is one too many or has failed before. A JobError where
                another attempt may mend one of them.
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
        """The shards that failed since this was asked last."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def _error(self) -> ValueError:
        named = [f"shard {shard} on {failure.host}: {failure.error}" for shard, failure in self.failed.items()]
        more = [f"{len(named) - _NAMED} more"] if len(named) > _NAMED else []
        kind = JobError if any(failure.exit_code == 1 for failure in self.failed.values()) else ValueError
        return kind(f"{'; '.join([*named[:_NAMED], *more])} (tried again up to workers.max_failures = {self.most})")
