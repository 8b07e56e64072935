"""Matched negatives: no rule that does not know the user finds the target, whatever the catalogue is like."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allmrec.core.hashing import hash_strings, key64
from allmrec.data.catalogue import ItemCounts
from allmrec.data.matched_negatives import PopularityLine

USERS = 2000
CATALOGUES = {
    "zipf": lambda count: 1 + 2000 // np.arange(1, count + 1),
    "uniform": lambda count: 1 + np.arange(count) * 40 // count,
    "all equal": lambda count: np.full(count, 7),
    "few classes": lambda count: 1 + np.arange(count) % 3,
    "reversed": lambda count: 1 + 2000 // np.arange(count, 0, -1),
}


@dataclass(frozen=True)
class Log:
    """Users' histories and the items they came to next, drawn by weights among what they had not met."""

    counts: ItemCounts
    histories: list[np.ndarray]
    targets: np.ndarray
    hashes: np.ndarray

    @classmethod
    def of(cls, shape: str, count: int, seed: int) -> "Log":
        """Histories are a small part of the catalogue: up to five items, and one for every twelve that there are."""
        rng, most, weights = np.random.default_rng(seed), min(5, count // 12), CATALOGUES[shape](count)
        keys = np.log(weights) + rng.gumbel(size=(USERS, count))  # sorted: draws by weights without repeats
        drawn = (np.argsort(-keys, axis=1)[:, : most + 1] + 1).astype(np.int32)
        lengths = rng.integers(0, most + 1, USERS)
        histories = [row[:length] for row, length in zip(drawn, lengths, strict=True)]
        targets = drawn[np.arange(USERS), lengths]
        popularity = np.bincount(np.concatenate(histories), minlength=count + 1) if most else np.append(0, weights)
        interactions = popularity + np.bincount(targets, minlength=count + 1)
        counts = ItemCounts(popularity, interactions, USERS if most else 10**9)  # without histories: others' weights
        hashes = hash_strings(pa.array([f"u{number}" for number in range(USERS)]))
        return cls(counts, histories, targets, hashes)

    def cases(self, count: int = 19, strata: int = 10) -> np.ndarray:
        """(B, C) candidates of those that are not left out, the target first."""
        line, key = PopularityLine.of(self.counts, count, strata), key64(0)
        kept = np.flatnonzero(line.keeps(self.hashes, self.targets, key))
        histories, targets = [self.histories[row] for row in kept], self.targets[kept]
        rows, seen = np.repeat(np.arange(len(kept)), [len(items) for items in histories]), np.concatenate(histories)
        negatives = line.draw(self.hashes[kept], targets, rows, seen, count, key)
        for target, history, drawn in zip(targets, histories, negatives, strict=True):
            found = drawn[drawn > 0].tolist()
            assert len(set(found)) == len(found) and not set(found) & {target, *history}
        has = negatives.any(axis=1)
        return np.concatenate([targets[has, None], negatives[has]], axis=1)


def rules(candidates: np.ndarray, popularity: np.ndarray) -> dict[str, np.ndarray]:
    """Scores (B, C) of rules that know no user; -inf where there is no candidate."""
    there = candidates > 0
    ranking = np.argsort(-popularity[1:], kind="stable")
    rank = np.zeros(len(popularity))
    rank[ranking + 1] = np.arange(len(ranking))
    ranks = np.where(there, rank[candidates], np.nan)
    middle = (np.nanmin(ranks, axis=1) + np.nanmax(ranks, axis=1)) / 2
    scores = {
        "nearest to the midrange": -np.abs(ranks - middle[:, None]),
        "nearest to the median": -np.abs(ranks - np.nanmedian(ranks, axis=1)[:, None]),
        "most popular": popularity[candidates].astype(float),
        "least popular": -popularity[candidates].astype(float),
        "lowest index": -candidates.astype(float),
    }
    return {name: np.where(there, score, -np.inf) for name, score in scores.items()}


def above_chance(candidates: np.ndarray, popularity: np.ndarray) -> dict[str, float]:
    """By rule: Hit@1 above chance in standard errors, a tie as a coin makes of it."""
    chance = 1 / np.count_nonzero(candidates, axis=1)
    stderr = np.sqrt((chance * (1 - chance)).sum())
    out = {}
    for name, score in rules(candidates, popularity).items():
        best = score == score.max(axis=1)[:, None]
        out[name] = ((best[:, 0] / best.sum(axis=1)).sum() - chance.sum()) / stderr
    return out


@settings(max_examples=30, derandomize=True, deadline=None)
@given(
    shape=st.sampled_from(sorted(CATALOGUES)),
    count=st.integers(2, 30) | st.integers(31, 600),
    negatives=st.sampled_from([1, 4, 19]),
    seed=st.integers(0, 1000),
)
def test_no_rule_that_knows_no_user_beats_chance(shape, count, negatives, seed):
    log = Log.of(shape, count, seed)
    found = log.cases(negatives)
    errors = above_chance(found, log.counts.popularity) if len(found) else {}
    assert all(abs(error) < 3 for error in errors.values()), errors


def test_candidates_are_about_as_popular_as_the_target():
    log = Log.of("uniform", 600, 0)
    found = log.counts.popularity[log.cases()]
    assert np.mean(found.max(axis=1) - found.min(axis=1)) < 3, "of popularities from 0 to 20"


@pytest.mark.parametrize(("shape", "least"), [("all equal", 0.95), ("uniform", 0.95), ("zipf", 0.8)])
def test_few_cases_are_left_out(shape, least):
    """Of Zipf's 600 items the first is every seventh target: no 19 others are as popular, whatever the strata."""
    log = Log.of(shape, 600, 1)
    assert least < len(log.cases()) / USERS <= 1
    assert PopularityLine.of(log.counts, 19, 10).strata == {"all equal": 10, "uniform": 10, "zipf": 1}[shape]


def test_a_tiny_catalogue_gives_the_items_that_there_are():
    found = Log.of("all equal", 8, 0).cases()
    assert len(found) > 0.8 * USERS and (np.sort(found, axis=1)[:, -8:] == np.arange(1, 9)).all()


def test_items_that_were_never_held_out_are_no_negatives():
    log = Log.of("uniform", 50, 0)
    popularity = np.append(log.counts.popularity, np.full(1000, 9))
    interactions = np.append(log.counts.interactions, np.full(1000, 9))
    assert replace(log, counts=ItemCounts(popularity, interactions, USERS)).cases(4).max() <= 50


def test_nothing_is_held_out():
    counts = ItemCounts(np.array([0, 3, 2]), np.array([0, 3, 2]), 4)
    line = PopularityLine.of(counts, 19, 10)
    assert not line.keeps(np.arange(4, dtype=np.uint64), np.array([1, 2, 1, 2]), key64(0)).any()
    none = np.zeros(0, np.int32)
    assert line.draw(none.astype(np.uint64), none, none, none, 19, key64(0)).shape == (0, 19)


def test_a_case_does_not_hang_on_the_others_or_on_its_place():
    log = Log.of("zipf", 300, 0)
    line, key = PopularityLine.of(log.counts, 9, 5), key64(1)
    rows = np.repeat(np.arange(USERS), [len(history) for history in log.histories])
    whole = line.draw(log.hashes, log.targets, rows, np.concatenate(log.histories), 9, key)
    for user in (0, 700, 1999):
        own, target = log.histories[user], log.targets[[user]]
        alone = line.draw(log.hashes[[user]], target, np.zeros(len(own), np.int64), own, 9, key)
        assert alone[0].tolist() == whole[user].tolist()
