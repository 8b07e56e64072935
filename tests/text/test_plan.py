"""The plan of embedding: every text that the cache lacks once, in blocks of similar length that tasks share."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from allmrec.core.columns import to_lists
from allmrec.core.drafts import write_draft
from allmrec.core.hashing import hash_strings
from allmrec.core.storage import Storage, open_storage
from allmrec.text import plan
from allmrec.text.cache import TextCache
from allmrec.text.plan import Plan, by_length, make_plan

LENGTHS = [number * 7 % 13 for number in range(25)]


@pytest.fixture
def drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The numbers of 25 items in two files, ten to a shard; the last five have the texts of the first."""
    monkeypatch.setattr(plan, "ITEMS_PER_SHARD", 10)
    storage, keys = open_storage(str(tmp_path / "drafts")), hash_strings(pa.array([f"h{n % 20}" for n in range(25)]))
    numbers = pa.table({"key": keys, "length": pa.array(LENGTHS, pa.int32())})
    for file, part in enumerate((numbers[:12], numbers[12:])):
        write_draft(storage, f"numbers-{file}", part.schema, part.to_batches())
    return storage


@pytest.fixture
def cache(tmp_path: Path) -> TextCache:
    return TextCache.of(open_storage(str(tmp_path)), "standin")


def keep(cache: TextCache, *numbers: int) -> str:
    return cache.write(pa.array([f"h{n}" for n in numbers]), to_lists(np.zeros((len(numbers), 2), np.float32)))


def blocks(planned: Plan) -> list[list[list[int]]]:
    return [[rows.tolist() for rows in planned.rows(task)] for task in range(planned.tasks)]


def test_blocks_hold_every_text_once_longest_first_within_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "ITEMS_PER_SHARD", 10)
    found = [block.tolist() for block in by_length(np.arange(25), np.array(LENGTHS), 4)]
    assert [len(block) for block in found] == [4, 4, 2, 4, 4, 2, 4, 1]
    for shard, part in enumerate((found[:3], found[3:6], found[6:])):
        rows = [row for block in part for row in block]
        assert sorted(rows) == list(range(10 * shard, min(10 * shard + 10, 25)))
        assert [LENGTHS[row] for row in rows] == sorted((LENGTHS[row] for row in rows), reverse=True)


def test_what_the_cache_lacks_is_planned_and_then_where_every_text_is(drafts: Storage, cache: TextCache) -> None:
    first = keep(cache, *range(16))
    planned = make_plan(drafts, 2, cache, batch_size=1, workers=1)
    assert (planned.missing, planned.texts, planned.blocks, planned.shards) == (4, 4, 4, 0)
    assert blocks(planned) == [[[row]] for row in (18, 16, 19, 17)]  # of lengths 9, 8, 3 and 2
    second = keep(cache, 19, 18, 17, 16)
    planned = make_plan(drafts, 2, cache, batch_size=1, workers=1)
    assert (planned.missing, planned.tasks, planned.shards) == (0, 0, 3)
    located = [place for shard in range(3) for place in planned.located(shard).to_pylist()]
    assert [len(planned.located(shard)) for shard in range(3)] == [10, 10, 5]
    expected = [(first, item % 20) if item % 20 < 16 else (second, 19 - item % 20) for item in range(25)]
    assert located == [{"item": item, "file": file, "row": row} for item, (file, row) in enumerate(expected)]


def test_tasks_share_the_blocks_where_there_are_many(
    drafts: Storage, cache: TextCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MOST_BATCHES", 1)
    every = [block for (block,) in blocks(make_plan(drafts, 2, cache, batch_size=1, workers=1))]
    monkeypatch.setattr(plan, "MOST_TASKS", 3)
    monkeypatch.setattr(plan, "TASKS_PER_WORKER", 1)
    shared = blocks(make_plan(drafts, 2, cache, batch_size=1, workers=1))
    assert [len(task) for task in shared] == [6, 7, 7] and [block for task in shared for block in task] == every
    assert len(blocks(make_plan(drafts, 2, cache, batch_size=1, workers=5))) == 5
