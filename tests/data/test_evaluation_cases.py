import numpy as np
import pyarrow as pa
import pytest

from allmrec.data.catalogue import ItemCounts
from allmrec.data.evaluation_cases import CandidateItems, EvaluationConfig, draw_cases
from allmrec.data.sequences import Sequences
from allmrec.data.splits import NONE, Parts, Split, SplitConfig
from schemas import evaluation_cases, sequences

NUM_ITEMS = 200
CONFIG = EvaluationConfig(num_negatives=9, matched_strata=3)


def shop(num_items=NUM_ITEMS, users=300):
    """Item 1 is the most popular; popularity falls with the index. Each is held out as often as it trains."""
    popularity = np.append(0, np.arange(num_items, 0, -1))
    return ItemCounts(popularity, 2 * popularity, users)


SHOP = CandidateItems.of(shop(), CONFIG)


def leave_one_out(users, counts, config, seed, fraction=1.0):
    """Of the leave-one-out split, with one fraction for both of its parts."""
    parts = Split(SplitConfig(), seed).divide(users, np.zeros_like(users.items))
    return draw_cases(
        users, parts, CandidateItems.of(counts, config), config, seed, {"valid": fraction, "test": fraction}
    )


def crowd(count=300, seed=0):
    random = np.random.default_rng(seed)
    histories = [random.integers(1, NUM_ITEMS + 1, length).tolist() for length in random.integers(1, 12, count)]
    rows = [
        {"user_id": f"u{number:04d}", "item_index": history, "timestamp": [0] * len(history)}
        for number, history in enumerate(histories)
    ]
    return Sequences.from_table(pa.Table.from_pylist(rows, sequences.SCHEMA)), {
        row["user_id"]: row["item_index"] for row in rows
    }


def test_every_case_holds_what_the_schema_says():
    users, histories = crowd()
    table = leave_one_out(users, shop(), CONFIG, seed=3)
    assert table.schema == evaluation_cases.SCHEMA
    cases = table.to_pylist()
    evaluable = [user for user, items_ in histories.items() if len(items_) >= 3]
    kinds = [(split, protocol) for split in ("valid", "test") for protocol in ("random", "matched")]
    drawn = [(case["user_id"], case["split"], case["protocol"]) for case in cases]
    assert drawn == [(user, *kind) for user in evaluable for kind in kinds]
    for case in cases:
        history = histories[case["user_id"]]
        assert case["history_length"] == len(history) - {"test": 1, "valid": 2}[case["split"]]
        assert case["target"] == history[case["history_length"]]
        target, *negatives = case["candidates"]
        assert target == case["target"]
        assert len(negatives) == 9 == len(set(negatives))
        assert not set(negatives) & {0, *history}
        if case["protocol"] == "matched":
            assert max(negatives) - min(negatives) < 130  # the least popular third of the line is half of the items
        assert case["warm"] == (target <= 70)  # 35 % of 200
        assert case["cold"] == (target > 130)


def test_random_negatives_come_from_everywhere():
    users, _ = crowd()
    cases = leave_one_out(users, shop(), CONFIG, seed=3).to_pylist()
    drawn = [item for case in cases if case["protocol"] == "random" for item in case["candidates"][1:]]
    assert 95 < np.mean(drawn) < 106  # 100.5 expected, standard error 0.8


def test_no_negative_is_an_item_that_the_filtered_data_has_not():
    users, _ = crowd()
    counts = shop(NUM_ITEMS + 1000)
    counts.interactions[NUM_ITEMS + 1 :] = counts.popularity[NUM_ITEMS + 1 :] = 0
    drawn = {item for case in leave_one_out(users, counts, CONFIG, 3).to_pylist() for item in case["candidates"]}
    assert drawn <= set(range(1, NUM_ITEMS + 1))


def test_where_nothing_trains_there_is_no_matched():
    users, _ = crowd()
    counts = shop()
    counts = ItemCounts(0 * counts.popularity, counts.interactions, counts.users)
    cases = leave_one_out(users, counts, CONFIG, seed=3)
    assert set(cases.column("protocol").to_pylist()) == {"random"}
    whole = leave_one_out(users, shop(), CONFIG, seed=3).to_pylist()
    assert [case["candidates"] for case in cases.to_pylist()] == [
        case["candidates"] for case in whole if case["protocol"] == "random"
    ]


def test_splits_and_protocols_are_drawn_apart():
    users, _ = crowd()
    by_kind: dict = {}
    for case in leave_one_out(users, shop(), CONFIG, seed=3).to_pylist():
        by_kind.setdefault((case["split"], case["protocol"]), []).append(case["candidates"][1:])
    valid, test = np.array(by_kind["valid", "random"]), np.array(by_kind["test", "random"])
    assert (valid == test).mean() < 0.03


def test_a_users_cases_do_not_hang_on_the_others():
    users, _ = crowd()
    whole = leave_one_out(users, shop(), CONFIG, seed=3)
    parts = [leave_one_out(users.take(part), shop(), CONFIG, seed=3) for part in np.array_split(np.arange(300), 7)]
    assert pa.concat_tables(parts).combine_chunks().equals(whole.combine_chunks())
    assert not leave_one_out(users, shop(), CONFIG, seed=4).equals(whole)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_a_sample_is_the_same_part_of_any_whole(fraction):
    users, _ = crowd(3000)
    sample = leave_one_out(users, shop(), CONFIG, 3, fraction)
    assert abs(sample.num_rows / leave_one_out(users, shop(), CONFIG, 3).num_rows - fraction) < 0.04
    smaller = leave_one_out(users, shop(), CONFIG, 3, fraction / 2).column("user_id").to_pylist()
    assert set(smaller) <= set(sample.column("user_id").to_pylist())
    alone = leave_one_out(users.take(np.arange(100)), shop(), CONFIG, 3, fraction)
    assert alone.equals(sample.slice(0, alone.num_rows))


def test_a_tiny_catalogue_runs_out_of_items():
    rows = [{"user_id": "u", "item_index": [1, 2, 3], "timestamp": [0] * 3}]
    users = Sequences.from_table(pa.Table.from_pylist(rows, sequences.SCHEMA))
    for case in leave_one_out(users, shop(5), CONFIG, seed=0).to_pylist():
        assert case["candidates"][0] == case["target"]
        assert sorted(case["candidates"][1:]) == [0] * 7 + [4, 5]


def test_no_user_to_evaluate():
    users, _ = crowd()
    assert leave_one_out(users.take(np.flatnonzero(users.lengths < 3)), shop(), CONFIG, 0).num_rows == 0


def test_only_what_is_held_out_is_asked():
    users, histories = crowd(6)
    length = users.lengths
    parts = Parts(length, valid=np.full(6, NONE), test=np.full(6, NONE))
    assert draw_cases(users, parts, SHOP, CONFIG, 0).num_rows == 0
    long = np.flatnonzero(length >= 2)
    parts.valid[long[0]], parts.test[long[1]] = 1, 0
    drawn = draw_cases(users, parts, SHOP, CONFIG, 0).to_pylist()
    names = [f"u{user:04d}" for user in long]
    assert [(case["user_id"], case["split"], case["protocol"], case["history_length"]) for case in drawn] == [
        (names[0], "valid", "random", 1),
        (names[0], "valid", "matched", 1),
        (names[1], "test", "random", 0),
        (names[1], "test", "matched", 0),
    ]
    assert [case["target"] for case in drawn] == [histories[names[0]][1]] * 2 + [histories[names[1]][0]] * 2
    seen = {name: set(items_) for name, items_ in histories.items()}  # also what comes after the target
    assert not any(seen[case["user_id"]] & set(case["candidates"][1:]) for case in drawn)


def test_each_split_has_its_own_fraction():
    users, _ = crowd(400)
    parts = Split(SplitConfig(), 0).divide(users, np.zeros_like(users.items))
    drawn = draw_cases(users, parts, SHOP, CONFIG, 0, {"valid": 1.0, "test": 0.2})
    count = {split: sum(row["split"] == split for row in drawn.to_pylist()) / 2 for split in ("valid", "test")}
    assert count["valid"] == (parts.valid != NONE).sum() and 0.1 < count["test"] / count["valid"] < 0.3
