"""A shard that fails is tried once more; one that fails again, or one too many, ends the run and is named."""

from collections import Counter

import pytest
import torch

from allmrec.core.errors import exit_code
from allmrec.core.shard_tasks import Attempt, Report, ShardTask, read_reports
from allmrec.nightly.failures import Failures


class Refusing(ShardTask):
    def __init__(self, error: Exception):
        self.error = error

    def process(self, shard: int) -> Report:
        if shard % 2:
            raise self.error
        return Report(counts=Counter(done=1))


def reports(error: Exception, *shards: int) -> list[Report]:
    return [*read_reports(Attempt(Refusing, error)({"id": shards}))]


def test_one_shard_s_error_is_reported_and_the_others_are_done(capsys: pytest.CaptureFixture[str]) -> None:
    done, failed = reports(KeyError("a\nb"), 0, 1)
    assert done.failure is None and done.counts == {"done": 1}
    assert failed.shard == 1 and failed.failure and failed.failure.error == r"KeyError: 'a\nb'"
    assert failed.failure.exit_code == 1 and "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(ValueError("NaN of u1"), 2), (torch.OutOfMemoryError("full"), 1)])
def test_those_that_fail_are_tried_again_and_then_named(error: Exception, code: int) -> None:
    failures = Failures(2)
    one, three, five = reports(error, 1, 3, 5)
    assert failures.take(one) and failures.take(three) and failures.to_retry() == [1, 3] and not failures.to_retry()
    assert failures.take(Report(shard=1)) is None, "it was done"
    with pytest.raises(ValueError, match=rf"^shard 3 on .*: .*{error} \(tried again") as named:
        failures.take(three)
    assert exit_code(named.value) == code and "\n" not in str(named.value)
    failures = Failures(2)
    assert all(map(failures.take, (one, three)))
    with pytest.raises(ValueError, match=r"^shard 1 .*; shard 3 .*; shard 5 "):
        failures.take(five)
    with pytest.raises(ValueError, match="shard 1"):
        Failures(0).take(one)
