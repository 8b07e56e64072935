from dataclasses import dataclass

import numpy as np
import pytest

from allmrec.core.shard_tasks import Report, ShardTask
from jobs import item_counts
from jobs.config import Config
from jobs.runtime.console import Console
from jobs.runtime.step import Context
from tests.jobs.in_process import jobs_in_process

ITEMS = 50


@dataclass(frozen=True)
class Count(ShardTask):
    def process(self, shard):
        counts = {name: shard * np.bincount([shard % 7, at], minlength=ITEMS + 1) for name, at in (("a", 9), ("b", 50))}
        return Report(counts={"users": 1}, item_counts=counts)


@pytest.mark.parametrize("shards", [1, 16, 17, 40])
def test_counts_are_summed_and_no_shards_own_comes_to_the_driver(tmp_path, monkeypatch, shards):
    config = Config(name="shop", root=str(tmp_path), data={"num_shards": shards})
    context = Context(config, config.workspace, Console(log_json=True), "prepare")
    gathered = []

    def gather_reports(*arguments):
        reports, total = gather(*arguments)
        gathered.append((len(reports), total.item_counts))
        return reports, total

    gather = item_counts.gather_reports
    monkeypatch.setattr(item_counts, "gather_reports", gather_reports)
    with jobs_in_process():
        target = config.workspace.storage.at("sums")
        total, columns, occur = item_counts.count_over_shards(context, "count", Count(), ITEMS, target, "sums.arrow")
    expected = [Count().process(shard).item_counts for shard in range(shards)]
    for name in ("a", "b"):
        total_I = sum(counts[name] for counts in expected)
        assert columns.read().column(name).to_pylist() == total_I.tolist()
        assert occur[name] == np.count_nonzero(total_I)
    assert total.counts == {"users": shards} and not total.item_counts
    assert gathered == ([(shards, {})] if shards <= 16 else [(shards, {}), (-(-shards // 16), {})])
    assert not list(config.workspace.storage.list("drafts/"))
