import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from allmrec.hashing import hash_strings
from allmrec.negatives import draw_negatives, popularity_pools

HISTORIES = st.lists(st.lists(st.integers(1, 12), max_size=12), min_size=1, max_size=6)


def draw(users, histories, num_items=12, count=4, pool=None, **keys):
    rows = np.repeat(np.arange(len(histories)), [len(items) for items in histories])
    seen = np.array([item for items in histories for item in items], dtype=np.int64)
    hashes = hash_strings(pa.array(users, pa.string()))
    return draw_negatives(hashes, rows, seen, num_items, count, **{"seed": 7, **keys}, pool=pool)


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


@given(histories=HISTORIES, data=st.data())
def test_from_a_pool_come_its_unseen_items_only(histories, data):
    pool = np.array([data.draw(st.lists(st.integers(0, 12), min_size=5, max_size=5)) for _ in histories], np.int32)
    drawn = draw(names(histories), histories, pool=pool)
    for items, allowed, found in zip(histories, pool, drawn, strict=True):
        open_items = set(allowed.tolist()) - set(items) - {0}
        assert set(found[found > 0].tolist()) <= open_items
        assert np.count_nonzero(found) == min(4, len(open_items)) == len(set(found[found > 0].tolist()))


def test_seeds_and_epochs_draw_anew():
    users, histories = [f"u{number}" for number in range(100)], [[1, 2]] * 100
    first = draw(users, histories, num_items=10_000)
    assert (first == draw(users, histories, num_items=10_000)).all()
    for other in ({"epoch": 1}, {"seed": 8}):
        assert (first == draw(users, histories, num_items=10_000, **other)).mean() < 0.01


def test_items_are_drawn_alike():
    users = [f"u{number}" for number in range(20_000)]
    counts = np.bincount(draw(users, [[5]] * 20_000, num_items=10, count=3).ravel(), minlength=11)
    assert counts[0] == counts[5] == 0
    drawn = np.delete(counts, [0, 5])
    assert np.abs(drawn - 20_000 / 3).max() < 350  # five standard deviations


def test_no_rows_and_no_items():
    assert draw([], []).shape == (0, 4)
    assert draw(["u"], [[]], num_items=1).tolist() == [[1, 0, 0, 0]]


def test_pools_are_neighbours_by_popularity():
    popularity = np.array([0, 10, 50, 30, 30, 20])  # ranking: 2, 3, 4, 5, 1
    assert popularity_pools(np.array([3, 2, 1]), popularity, 1).tolist() == [[2, 3, 4], [0, 2, 3], [5, 1, 0]]
    assert popularity_pools(np.array([4]), popularity, 9)[0].tolist() == [0] * 7 + [2, 3, 4, 5, 1] + [0] * 7
