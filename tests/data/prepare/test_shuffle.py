from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from allmrec.core.storage import open_storage
from allmrec.data.prepare.clean import EVENTS, REJECTIONS, Cleaned
from allmrec.data.prepare.shuffle import read_partition, write_piece

SHARDS = 4


def piece(seed):
    random = np.random.default_rng(seed)
    events = [
        {"shard": int(shard), "user_id": f"u{number}", "item_index": number, "timestamp": -number}
        for number, shard in enumerate(random.integers(1, SHARDS, 50))  # none of shard 0
    ]
    rejections = [
        {"shard": int(shard), "reason": "malformed", "row": '{"reason":"count"}', "file": None, "number": number}
        for number, shard in enumerate(random.integers(0, SHARDS, 7))
    ]
    counts = Counter({"a": seed, "b": 1})
    return Cleaned(pa.Table.from_pylist(events, EVENTS), pa.Table.from_pylist(rejections, REJECTIONS), counts)


@pytest.mark.parametrize("name", ["events", "rejections"])
def test_each_row_comes_to_its_shard_once(tmp_path, name):
    shuffle, pieces = open_storage(str(tmp_path)), [piece(1), piece(2), Cleaned()]
    for number, cleaned in enumerate(pieces):
        write_piece(shuffle, number, cleaned, SHARDS)
    for shard in range(SHARDS):
        found = getattr(read_partition(shuffle, range(3), shard), name)
        rows = [row for cleaned in pieces for row in getattr(cleaned, name).to_pylist() if row["shard"] == shard]
        assert sorted(map(str, found.to_pylist())) == sorted(
            str({key: value for key, value in row.items() if key != "shard"}) for row in rows
        )


def test_counts_come_to_one_shard(tmp_path):
    shuffle = open_storage(str(tmp_path))
    for number in range(2):
        write_piece(shuffle, number, piece(number + 1), SHARDS)
    counts = [read_partition(shuffle, range(2), shard).filtered_out for shard in range(SHARDS)]
    assert counts == [{"a": 3, "b": 2}, {}, {}, {}]


def test_a_log_without_pieces_has_no_rows(tmp_path):
    found = read_partition(open_storage(str(tmp_path)), [], 0)
    assert len(found.events) == len(found.rejections) == found.filtered_out.total() == 0
