"""The users that a model trains on: one sample however the table is cut, and parts that fit into memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from allmrec.core.artifacts import read_manifest
from allmrec.core.storage import Storage, open_storage
from allmrec.data import sequences as sequences_module
from allmrec.data.sequences import Sequences
from allmrec.data.training_users import Sample, TrainingUsers, num_parts, training_parts
from tests.data.stored_sequences import generated, write_sequences
from tests.own_process import traced

KEY = np.uint64(7)


@pytest.fixture(scope="module")
def users() -> Sequences:
    return generated(20_000)


def stored(folder: Path, users: Sequences, num_shards: int) -> Storage:
    storage = open_storage(str(folder / f"{len(users)}-{num_shards}"))
    write_sequences(storage, users, num_shards)
    return storage


def histories(users: TrainingUsers) -> dict[str, list[int]]:
    found = {}
    for part in users.parts:
        held = part()
        lists = np.split(held.items, held.offsets[1:-1])
        found |= dict(zip(held.user_ids.to_pylist(), [items.tolist() for items in lists], strict=True))
    return found


@pytest.mark.parametrize("max_users", [1, 5000, 15_000])
def test_a_sample_is_the_same_however_the_table_is_cut(tmp_path, users, max_users):
    expected = histories(TrainingUsers.of(users, Sample(max_users, KEY)))
    assert len(expected) == max_users and min(len(items) for items in expected.values()) == 2
    for num_shards, memory_mb, example_bytes in ((1, 1, 0), (3, 4096, 0), (16, 1, 1000), (16, 1, 0)):
        storage = stored(tmp_path, users, num_shards)
        found = TrainingUsers.read(storage, memory_mb, Sample(max_users, KEY), example_bytes=example_bytes)
        assert histories(found) == expected and len(found) == max_users
    assert histories(TrainingUsers.of(users, Sample(max_users, np.uint64(8)))) != expected


def test_a_sample_larger_than_all_is_all(tmp_path, users):
    everyone = histories(TrainingUsers.of(users))
    assert len(everyone) == (users.lengths >= 2).sum()
    storage = stored(tmp_path, users, 4)
    for max_users in (None, 10**6, len(users) - 1):  # the last is more than have two interactions
        assert histories(TrainingUsers.read(storage, 4096, Sample(max_users, KEY))) == everyone


def test_a_part_fits_into_memory_and_all_of_them_hold_everyone_once(tmp_path, users):
    storage = stored(tmp_path, users, 12)
    found = TrainingUsers.read(storage, 1)
    assert len(found.parts) == num_parts(read_manifest(storage), 1) == len(training_parts(storage, 1)) == 2
    for part, count, interactions in zip(found.parts, found.users_P, found.interactions_P, strict=True):
        held = part()
        assert (len(held), len(held.items)) == (count, interactions)
        assert held.items.nbytes + held.user_ids.nbytes + 16 * len(held) < 2**20
    assert histories(found) == histories(TrainingUsers.of(users))
    assert found.examples("last").sum() == len(found)
    assert found.examples("all").sum() == (users.lengths - 1).clip(min=0).sum()
    larger = [len(TrainingUsers.read(storage, 1, example_bytes=count, targets="all").parts) for count in (40, 10**6)]
    assert larger == [7, 12], "what a model holds of each target counts, and a part is a shard at least"
    assert sorted(found.order(KEY)) == [0, 1]


@pytest.mark.parametrize("max_users", [None, 3000])
def test_memory_does_not_grow_with_the_users(tmp_path, max_users):
    """Four times the users, in shards of the same size and parts of the same memory, or a sample of the same size."""
    peaks = []
    for num_users in (10_000, 40_000):
        storage = stored(tmp_path, generated(num_users), num_users // 1000)
        (parts, held), *memory = traced(largest_part, storage.uri, max_users)
        peaks.append((held, *memory))
    assert parts >= (3 if max_users else 20)
    for small, large in zip(*peaks, strict=True):
        assert large < 1.3 * small


def largest_part(uri: str, max_users: int | None) -> tuple[int, int]:
    """How many parts there are, and the items of the largest."""
    found = TrainingUsers.read(open_storage(uri), 1, Sample(max_users, KEY), "all", example_bytes=200)
    return len(found.parts), max(len(part().items) for part in found.parts)


def test_users_beyond_what_32_bits_address_are_put_together(users, monkeypatch):
    monkeypatch.setattr(sequences_module, "_STRING_BYTES", 1000)
    together = Sequences.concat([users, users])
    assert together.user_ids.type == pa.large_string() and len(together) == 2 * len(users)
    some = np.array([3, len(users) + 3])
    assert together.take(some).user_ids.to_pylist() == ["user-3"] * 2
    assert np.array_equal(together.hashes()[: len(users)], users.hashes())
    assert np.array_equal(together.items, np.tile(users.items, 2)) and len(Sequences.none()) == 0
