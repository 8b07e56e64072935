"""Metrics: golden numbers, chance for a model that knows nothing, paired intervals, and sums whatever the shards."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from allmrec.metrics import METRICS, evaluate_scores, gain_table, interval, recall, standing, student, summarise, sums


def case(*scores: float) -> tuple[np.ndarray, np.ndarray]:
    return np.array([scores]), np.arange(1, len(scores) + 1)[None, :]


def test_golden():
    best, third, eleventh = case(9, 1, 2, 3), case(5, 9, 8, 1), case(1, *range(2, 12))
    np.testing.assert_allclose(evaluate_scores(*best)[0], [1, 1, 1, 1])
    np.testing.assert_allclose(evaluate_scores(*third)[0], [0, 1, 0.5, 1 / 3])  # 1 / log2(3 + 1)
    np.testing.assert_allclose(evaluate_scores(*eleventh)[0], [0, 0, 0, 1 / 11])


def test_a_constant_score_gets_exactly_chance():
    values = evaluate_scores(np.full((3, 20), 0.7), np.tile(np.arange(1, 21), (3, 1)))
    expected = [1 / 20, 5 / 20, (1 / np.log2(np.arange(2, 12))).sum() / 20, (1 / np.arange(1, 21)).sum() / 20]
    np.testing.assert_allclose(values, np.tile(expected, (3, 1)))


@given(hnp.arrays(np.int64, st.integers(1, 6), elements=st.integers(0, 3)))
def test_ties_are_worth_their_mean_over_all_orders(scores):
    """Against brute force: every order of the candidates, sorted stably."""
    expected = np.zeros(len(METRICS))
    orders = list(itertools.permutations(range(len(scores))))
    for order in orders:
        ranking = sorted(order, key=lambda candidate: -scores[candidate])
        expected += gain_table(len(scores))[:, ranking.index(0)] / len(orders)
    np.testing.assert_allclose(evaluate_scores(scores[None, :], np.ones((1, len(scores))))[0], expected)


@given(hnp.arrays(np.int64, st.integers(1, 6), elements=st.integers(0, 3)), st.integers(1, 7))
def test_recall_of_a_tie_is_the_share_of_orders_in_which_it_is_found(scores, count):
    orders = list(itertools.permutations(range(len(scores))))
    found = [sorted(order, key=lambda item: -scores[item]).index(0) < count for order in orders]
    better, tied = (scores[1:] > scores[0]).sum(keepdims=True), (scores[1:] == scores[0]).sum(keepdims=True)
    np.testing.assert_allclose(recall(better, tied, count), np.mean(found))


def test_zeros_are_no_candidates():
    scores, candidates = np.array([[1.0, 2.0, 9.0, 9.0]]), np.array([[7, 3, 0, 0]])
    np.testing.assert_allclose(evaluate_scores(scores, candidates)[0], [0, 1, 1 / np.log2(3), 1 / 2])
    np.testing.assert_allclose(evaluate_scores(np.zeros((1, 3)), np.array([[7, 0, 0]]))[0], 1)


def test_summary_is_mean_and_standard_error_however_cases_are_partitioned():
    values = np.random.default_rng(0).random((50, len(METRICS)))
    subsets = {"all": np.ones(50, dtype=bool), "cold": np.arange(50) < 9, "warm": np.zeros(50, dtype=bool)}

    def table(rows: slice):
        return sums("teacher", "random", values[rows], {name: chosen[rows] for name, chosen in subsets.items()})

    whole = summarise(table(slice(None)))
    partitioned = summarise([*table(slice(0, 7)), *table(slice(7, 7)), *table(slice(7, 50))])
    assert [row["subset"] for row in whole] == ["all"] * 4 + ["cold"] * 4, "an empty subset has no mean"
    for one, other in zip(whole, partitioned, strict=True):
        assert one == pytest.approx(other)
    first = whole[0]
    assert (first["system"], first["protocol"], first["metric"], first["count"]) == ("teacher", "random", "hit@1", 50)
    assert first["value"] == pytest.approx(values[:, 0].mean())
    assert first["stderr"] == pytest.approx(values[:, 0].std(ddof=1) / np.sqrt(50))


def test_a_single_case_has_no_standard_error():
    only = summarise(sums("teacher", "random", np.ones((1, len(METRICS))), {"all": np.ones(1, dtype=bool)}))
    assert only[0]["value"] == 1 and only[0]["stderr"] is None


def test_standing_counts_ties():
    scores, candidates = np.array([[1.0, 2.0, 1.0, 1.0, 0.0]]), np.array([[7, 3, 2, 0, 5]])
    better, tied = standing(scores, candidates)
    assert better.tolist() == [1] and tied.tolist() == [1], "a zero is no candidate"


@pytest.mark.parametrize(("freedom", "quantile"), [(3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)])
def test_students_quantile_is_the_printed_one(freedom, quantile):
    assert student(freedom) == pytest.approx(quantile, rel=2e-3)


def test_paired_interval_by_hand():
    """Differences 1, 0, 0, 1, -1, 1: mean 1/3, standard deviation 0.8165, t of 5 degrees of freedom 2.5706."""
    mean, low, high = interval(6, 2.0, 4.0)
    reach = 2.5706 * np.sqrt(2 / 3 / 6)  # 0.8165 ** 2 = 2 / 3
    assert (mean, low, high) == pytest.approx((1 / 3, 1 / 3 - reach, 1 / 3 + reach), abs=1e-3)
    assert interval(0, 0.0, 0.0) == (None, None, None) and interval(1, 1.0, 1.0) == (1.0, None, None)


def test_paired_interval_agrees_with_the_bootstrap():
    """Of two systems that mostly find the same targets: narrower than unpaired errors by far."""
    rng = np.random.default_rng(0)
    own, other = (rng.random((2, 400)) < 0.05) ^ (rng.random(400) < 0.4)
    difference = own.astype(float) - other
    _, low, high = interval(400, difference.sum(), (difference**2).sum())
    means = difference[rng.integers(0, 400, (4000, 400))].mean(axis=1)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.004)
    assert high - low < 0.5 * 4 * np.sqrt(own.var() / 400 + other.var() / 400)


def test_differences_are_summed_where_there_are_pairs():
    values = np.array([[1.0], [0.0], [1.0], [1.0]])
    differences = np.array([[1.0], [0.0], [np.nan], [0.0]])
    subsets = {"all": np.ones(4, bool), "cold": np.array([0, 0, 1, 0], bool)}
    tallies = {"tied": np.array([1, 0, 0, 1]), "candidates": np.full(4, 5), "by_text": np.array([2, 0, 1, 0])}

    def table(rows: slice):
        chosen = {name: mask[rows] for name, mask in subsets.items()}
        counts = {name: tally[rows] for name, tally in tallies.items()}
        return sums("a-llmrec", "random", values[rows], chosen, ["hit@1"], differences[rows], "teacher", counts)

    everyone, cold = summarise([*table(slice(0, 1)), *table(slice(1, 4))])
    assert everyone["value"] == 0.75 and everyone["difference"] == pytest.approx(1 / 3)
    assert (everyone["pairs"], everyone["tied"], everyone["by_text"]) == (3, 2, 3 / 20)
    assert everyone["baseline"] == "teacher" and everyone["low"] < 0 < everyone["high"]
    assert (cold["value"], cold["difference"], cold["baseline"], cold["pairs"]) == (1.0, None, None, 0)
    for one, other in zip([everyone, cold], summarise(table(slice(None))), strict=True):
        assert one == pytest.approx(other)
