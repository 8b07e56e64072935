import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from allmrec.core.hashing import hash_strings, key64
from allmrec.data.negative_sampling import draw_negatives

ITEMS = np.arange(1, 13, dtype=np.int32)
HISTORIES = st.lists(st.lists(st.integers(1, 12), max_size=12), min_size=1, max_size=6)


def draw(users, histories, items=ITEMS, count=4, key=(7, 0)):
    rows = np.repeat(np.arange(len(histories)), [len(items) for items in histories])
    seen = np.array([item for items in histories for item in items], dtype=np.int64)
    hashes = hash_strings(pa.array(users, pa.string()))
    return draw_negatives(hashes, rows, seen, items, count, key64(*key))


def names(histories):
    return [f"u{number}" for number in range(len(histories))]


@given(histories=HISTORIES, count=st.integers(1, 13))
def test_negatives_are_distinct_unseen_items_as_many_as_there_are(histories, count):
    for items, drawn in zip(histories, draw(names(histories), histories, count=count), strict=True):
        left = 12 - len(set(items))
        found = drawn[drawn > 0]
        assert len(found) == min(count, left) and (drawn[len(found) :] == 0).all()
        assert len(set(found)) == len(found)
        assert set(found) <= set(range(1, 13)) - set(items)


@given(histories=HISTORIES, data=st.data())
def test_a_users_negatives_do_not_hang_on_the_others(histories, data):
    users = names(histories)
    together = draw(users, histories)
    order = data.draw(st.permutations(range(len(users))))
    shuffled = draw([users[row] for row in order], [histories[row] for row in order])
    assert (shuffled == together[order]).all()
    for row, user in enumerate(users):
        assert (draw([user], [histories[row]]) == together[row]).all()


@given(histories=HISTORIES, items=st.sets(st.integers(1, 12)))
def test_only_items_that_may_be_drawn_are(histories, items):
    drawn = draw(names(histories), histories, items=np.array(sorted(items), np.int32))
    for seen, found in zip(histories, drawn, strict=True):
        assert set(found[found > 0].tolist()) <= items - set(seen)
        assert np.count_nonzero(found) == min(4, len(items - set(seen))) == len(set(found[found > 0].tolist()))


def test_another_key_draws_other_negatives():
    users, histories, items = [f"u{number}" for number in range(100)], [[1, 2]] * 100, np.arange(1, 10_001)
    first = draw(users, histories, items)
    assert (first == draw(users, histories, items)).all()
    for other in ((7, 1), (8, 0)):
        assert (first == draw(users, histories, items, key=other)).mean() < 0.01


def test_items_are_drawn_alike():
    users = [f"u{number}" for number in range(20_000)]
    counts = np.bincount(draw(users, [[5]] * 20_000, ITEMS[:10], count=3).ravel(), minlength=11)
    assert counts[0] == counts[5] == 0
    drawn = np.delete(counts, [0, 5])
    assert np.abs(drawn - 20_000 / 3).max() < 350  # five standard deviations


def test_no_rows_and_no_items():
    assert draw([], []).shape == (0, 4)
    assert draw(["u"], [[]], ITEMS[:1]).tolist() == [[1, 0, 0, 0]]
