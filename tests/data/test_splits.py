"""Splits: nothing that is held out trains, and samples depend on the seed and the users alone."""

from datetime import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmrec.data.sequences import Sequences, offsets_of
from allmrec.data.splits import NONE, Parts, Split, SplitConfig, times_of
from schemas import sequences

DAY = 86_400_000_000
KINDS = ("leave-one-out", "temporal", "cold-users", "few-shot", "cross-domain")


def config_of(kind: str, users: int | None = None) -> SplitConfig:
    more = {
        "temporal": {"valid_from": "1970-01-04", "test_from": "1970-01-06"},
        "cross-domain": {"trained_in": "runs/movies"},
    }
    return SplitConfig(kind=kind, users=users, **more.get(kind, {}))  # type: ignore[arg-type]


def crowd(lengths) -> Sequences:
    lengths = np.asarray(lengths)
    offsets = offsets_of(lengths)
    return Sequences(pa.array([f"u{n}" for n in range(len(lengths))]), offsets, np.ones(offsets[-1], np.int32))


def divided(kind: str, lengths, days=None, users: int | None = None, seed: int = 0) -> Parts:
    crowd_, split = crowd(lengths), Split(config_of(kind, users), seed)
    if split.samples:
        split = split.with_sample(split.smallest(crowd_))
    days = np.zeros(sum(lengths), np.int64) if days is None else np.concatenate(days).astype(np.int64)
    return split.divide(crowd_, days * DAY)


def columns(parts: Parts) -> list[list[int]]:
    return [parts.train.tolist(), parts.valid.tolist(), parts.test.tolist()]


def test_leave_one_out():
    assert columns(divided("leave-one-out", [4, 3, 2, 1])) == [[2, 1, 2, 1], [2, 1, -1, -1], [3, 2, -1, -1]]


def test_temporal_holds_out_all_that_comes_after():
    days = [[0, 1, 3, 4, 5, 6], [0, 1], [3, 5], [5, 6, 7], [0, 4], [0, 2, 9]]
    parts = divided("temporal", [len(one) for one in days], days)
    # Day 3 begins the validation, day 5 the test: the first event of either, if a history is before it.
    assert columns(parts) == [[2, 2, 0, 0, 1, 2], [2, -1, -1, -1, 1, -1], [4, -1, 1, -1, -1, 2]]


def test_cold_users_have_three_items_and_do_not_train():
    lengths = [3, 4, 3, 2, 3, 1] * 50
    everyone = divided("cold-users", lengths)
    cold = np.array(lengths) == 3
    assert (everyone.train[cold] == 0).all() and (everyone.test[cold] == 2).all() and (everyone.valid[cold] == -1).all()
    assert (everyone.test[~cold] == NONE).all() and (everyone.train[~cold] > 0).all()
    some = divided("cold-users", lengths, users=20)
    sampled = some.train == 0
    assert sampled.sum() == 20 and not (sampled & ~cold).any() and ((some.test != NONE) == sampled).all()
    assert (some.valid[cold & ~sampled] == 1).all()


def test_few_shot_trains_on_exactly_k_and_tests_everyone():
    lengths = [1, 2, 3, 4, 9] * 60
    parts = divided("few-shot", lengths, users=16)
    assert (parts.train > 0).sum() == 16 == (parts.valid != NONE).sum()
    assert ((parts.test != NONE) == (np.array(lengths) >= 3)).all()
    assert not (parts.train == divided("few-shot", lengths, users=16, seed=1).train).all()
    more = divided("few-shot", lengths, users=32)
    assert ((parts.train > 0) <= (more.train > 0)).all()


def test_in_another_domain_no_user_trains():
    assert columns(divided("cross-domain", [4, 2])) == [[0, 0], [-1, -1], [3, -1]]


@given(
    days=st.lists(st.lists(st.integers(0, 8), max_size=7).map(sorted), min_size=1, max_size=30),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 3),
    cut=st.integers(0, 30),
)
def test_targets_come_after_what_trains_and_shards_do_not_matter(days, kind, seed, cut):
    lengths = np.array([len(one) for one in days])
    users, times = crowd(lengths), np.array([day for one in days for day in one], np.int64) * DAY
    split = Split(config_of(kind, users=5 if kind in ("cold-users", "few-shot") else None), seed)
    shards = [shard for shard in (np.arange(len(users))[:cut], np.arange(len(users))[cut:]) if len(shard)]
    if split.samples:
        split = split.with_sample([drawn for shard in shards for drawn in split.smallest(users.take(shard))])
    parts = split.divide(users, times)
    for target in (parts.valid, parts.test):
        there = target != NONE
        assert (target[there] >= np.maximum(parts.train, 1)[there]).all() and (target < lengths).all()
    assert (parts.train <= lengths).all()
    both = (parts.valid != NONE) & (parts.test != NONE)
    assert (parts.valid < parts.test)[both].all()
    row = users.rows()
    for shard in shards:
        part = split.divide(users.take(shard), times[np.isin(row, shard)])
        assert columns(part) == [[one[n] for n in shard] for one in columns(parts)]


def test_times_are_those_of_the_table():
    rows = [{"user_id": "a", "item_index": [1, 2], "timestamp": [5, 7], "train_length": 0}]
    table = pa.Table.from_pylist(rows, sequences.SCHEMA)
    assert times_of(table).tolist() == [5, 7] and times_of(table.slice(1)).tolist() == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "temporal", "valid_from": "2020-01-01"}, "needs valid_from and test_from"),
        ({"kind": "few-shot"}, "needs users"),
        ({"kind": "cross-domain"}, "needs trained_in"),
        ({"kind": "temporal", "valid_from": "2020-01-02", "test_from": datetime(2020, 1, 1)}, "must come before"),
    ],
)
def test_what_a_split_needs(values, message):
    with pytest.raises(ValueError, match=message):
        SplitConfig(**values)
