from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmrec.core.shard_tasks import ARRAYS, COUNTERS, REPORT, Report, ShardTask, Task, gather, read_reports


class Square(ShardTask):
    def process(self, shard):
        return Report(counts=Counter(square=shard**2), item_counts={"seen": np.arange(4) * shard})


class Repeat(Task):
    def tables(self, number):
        for _ in range(number):
            yield pa.table({"number": [number]})


def full(shard):
    return Report(
        shard,
        counts=Counter(users=3, nothing=0),
        dropped=Counter({"a reason, with: marks": 2}),
        rejected=Counter(malformed=1),
        sources=Counter(llm=2, popular=1),
        seconds={"rank": 0.1 + shard},
        files={f"a-{shard}": {"sha256": "ab", "size": 7, "rows": 2}, f"b-{shard}": {"sha256": "cd", "size": 2**40}},
        item_counts={"train": np.array([0, 2**53 + 1]), "all": np.zeros(0, dtype=np.int64)},
        sums={"scores": np.array([0.1, np.inf])},
        details={"drawn": [2**64 - 1, 0.1], "text": "é\0"},
    )


def equal(one, other):
    arrays = all(
        getattr(one, kind).keys() == getattr(other, kind).keys()
        and all(np.array_equal(values, getattr(other, kind)[name]) for name, values in getattr(one, kind).items())
        for kind in ARRAYS
    )
    plain = ("shard", *COUNTERS, "seconds", "files", "details")
    return arrays and all(getattr(one, name) == getattr(other, name) for name in plain)


def test_a_report_is_read_back_as_it_was():
    (found,) = read_reports([full(5).to_table()])
    assert equal(found, full(5))
    assert found.item_counts["train"].dtype == np.int64 and found.sums["scores"].dtype == np.float64
    (empty,) = read_reports([Report(2).to_table()])
    assert equal(empty, Report(2))


def test_every_report_has_the_same_schema():
    assert Report().to_table().schema.equals(REPORT) and full(1).to_table().schema.equals(REPORT)
    with pytest.raises(AssertionError, match="row of REPORT"):
        next(read_reports([pa.table({"shard": [1]})]))


def test_rows_that_were_put_together_or_sliced_are_read_one_by_one():
    table = pa.concat_tables([full(shard).to_table() for shard in range(3)])
    for form in (table, table.combine_chunks()):
        assert [equal(*pair) for pair in zip(read_reports([form]), map(full, range(3)), strict=True)] == [True] * 3
        assert equal(next(read_reports([form.slice(2)])), full(2))


@given(order=st.permutations(range(4)))
def test_reports_are_gathered_in_any_order(order):
    by_shard, total = gather(full(shard) for shard in order)
    assert [report.shard for report in by_shard] == [0, 1, 2, 3]
    assert all(not report.sums and not report.item_counts for report in by_shard)
    assert total.counts == {"users": 12, "nothing": 0} and total.dropped == {"a reason, with: marks": 8}
    assert total.seconds["rank"] == pytest.approx(6.4)
    assert total.item_counts["train"].tolist() == [0, 4 * (2**53 + 1)]
    assert len(total.files) == 8 and not total.details
    assert by_shard[1].details == full(1).details


def test_a_shard_reports_once_and_a_file_has_one_writer():
    with pytest.raises(AssertionError, match="reports once"):
        gather([Report(1), Report(1)])
    with pytest.raises(AssertionError, match="one shard"):
        gather([Report(1, files={"a": {}}), Report(2, files={"a": {}})])


def test_adding_leaves_the_added_report_as_it_was():
    one, total = full(1), Report()
    total.add(one)
    total.add(full(2))
    assert equal(one, full(1))


def test_a_task_does_each_number_of_a_batch():
    reports = list(read_reports(Square()({"id": np.array([2, 3])})))
    assert [(report.shard, report.counts["square"]) for report in reports] == [(2, 4), (3, 9)]
    assert reports[1].item_counts["seen"].tolist() == [0, 3, 6, 9]
    assert [len(table) for table in Repeat()({"id": [0, 2, 1]})] == [1, 1, 1]


def test_a_task_without_its_work_cannot_be_made():
    with pytest.raises(TypeError):
        ShardTask()
