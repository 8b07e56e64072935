from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from allmrec.core.storage import open_storage
from allmrec.data.prepare import runs
from allmrec.data.prepare.clean import EVENTS, REJECTIONS, Cleaned
from allmrec.data.prepare.runs import in_chunks
from allmrec.data.prepare.shuffle import MergeRuns, Shuffle
from tests.s3_fixtures import Proxy, proxied

# pieces, shards, max_fan_in: no round of merging, one, two and three, most of them with a rest.
SIZES = [(3, 4, 128), (2, 9, 4), (9, 2, 4), (5, 7, 3), (12, 11, 3), (9, 30, 2)]
sizes = pytest.mark.parametrize(("pieces", "shards", "most"), SIZES)


def piece(seed, shards=4, events=50):
    random = np.random.default_rng(seed)
    rows = [
        {"shard": int(shard), "user_id": f"u{number}", "item_index": number, "timestamp": -seed}
        for number, shard in enumerate(random.integers(1, shards, events))  # none of shard 0
    ]
    rejections = [
        {"shard": int(shard), "reason": "malformed", "row": f"{seed}", "file": None, "number": number}
        for number, shard in enumerate(random.integers(0, shards, 7))
    ]
    counts = Counter({"a": seed, "b": 1})
    return Cleaned(pa.Table.from_pylist(rows, EVENTS), pa.Table.from_pylist(rejections, REJECTIONS), counts)


def shuffled(shuffle, pieces):
    """Write the runs of the pieces and merge them."""
    for number, cleaned in enumerate(pieces):
        shuffle.write(0, number, in_chunks([cleaned]))
    for level in range(1, shuffle.rounds + 1):
        for number in range(shuffle.num_runs(level)):
            MergeRuns(shuffle, level).process(number)
    return [shuffle.read_shard(shard) for shard in range(shuffle.num_shards)]


def rows_of(table, shard):
    return [row for row in table.to_pylist() if row["shard"] == shard]


@sizes
def test_each_row_comes_to_its_shard_once_in_the_order_of_pieces(tmp_path, pieces, shards, most):
    log = [piece(seed + 1, shards) for seed in range(pieces - 1)] + [Cleaned()]
    whole = Cleaned.concat(log)
    found = shuffled(Shuffle(open_storage(str(tmp_path)), pieces, shards, most), log)
    for shard, cleaned in enumerate(found):
        assert cleaned.events.to_pylist() == rows_of(whole.events, shard)
        assert cleaned.rejections.to_pylist() == rows_of(whole.rejections, shard)
    assert [cleaned.filtered_out for cleaned in found] == [whole.filtered_out, *[Counter()] * (shards - 1)]


def test_rows_in_many_chunks_are_the_same_rows(tmp_path, monkeypatch):
    log = [piece(seed) for seed in range(9)]
    whole = shuffled(Shuffle(open_storage(str(tmp_path / "whole")), 9, 4, 2), log)
    monkeypatch.setattr(runs, "CHUNK_BYTES", 2_000)  # of two pieces
    chunks = list(in_chunks(log))
    assert [len(chunk.events) for chunk in chunks] == [100, 100, 100, 100, 50]
    assert shuffled(Shuffle(open_storage(str(tmp_path / "cut")), 9, 4, 2), log) == whole


def test_a_log_without_pieces_has_no_rows(tmp_path):
    found = Shuffle(open_storage(str(tmp_path)), 0, 4).read_shard(0)
    assert len(found.events) == len(found.rejections) == found.filtered_out.total() == 0


def test_a_task_that_runs_again_writes_the_same_bytes(tmp_path):
    storage = open_storage(str(tmp_path))
    shuffle = Shuffle(storage, 5, 7, 3)
    before, after = [], []
    for found in (before, after):
        shuffled(shuffle, [piece(seed, 7) for seed in range(5)])
        found += [(entry.key, storage.read(entry.key)) for entry in storage.list()]
    assert before == after


def requests(shuffle):
    """One for each run that is written, two for each part that is read."""
    levels = {level: shuffle.num_runs(level) for level in range(shuffle.rounds + 1)}
    readers = {level: count for level, count in levels.items() if level} | {shuffle.rounds + 1: shuffle.num_shards}
    parts = sum(len(shuffle.sources(level, number)) for level, count in readers.items() for number in range(count))
    return sum(levels.values()) + 2 * parts


@pytest.mark.s3
def test_requests_to_the_store_grow_with_pieces_and_shards_and_not_with_their_product(s3, s3_uri):
    class Counts(Proxy):
        requests = 0

        def forward(self):
            type(self).requests += 1
            super().forward()

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward

    counted = []
    with proxied(s3, Counts) as counting:
        for size in (6, 12):
            shuffle = Shuffle(open_storage(s3_uri, counting).at(str(size)), size, size, max_fan_in=3)
            Counts.requests = 0
            shuffled(shuffle, [piece(seed, size, events=9) for seed in range(size)])
            counted.append(Counts.requests)
            assert Counts.requests == requests(shuffle)
    assert counted == [72, 176], "twice the size: 4 times, if it were the product"


@pytest.mark.parametrize(("pieces", "shards", "most"), [(128, 2_000, 128), (2_000, 1_000, 16), (5_000, 2_000, 128)])
def test_requests_of_large_logs_are_bounded_by_pieces_and_shards(pieces, shards, most):
    shuffle = Shuffle(open_storage("/nowhere"), pieces, shards, most)
    count = requests(shuffle)
    assert count <= 2 * most * (shuffle.rounds + 1) * (pieces + shards)
    assert (pieces, shards) != (5_000, 2_000) or count < 1_000_000 < 4 * pieces * shards
