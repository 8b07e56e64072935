"""The sample log behaves like a shop's: sequels follow, popularity is skewed, and taste tells more than it."""

import numpy as np
import pytest

from allmrec.demo.sample.log import FOLLOW, MAINSTREAM, Events, draw_events
from allmrec.demo.sample.shop import (
    NUM_CLUSTERS,
    NUM_GENRES,
    LatentItems,
    SampleConfig,
    Tastes,
    draw_latent_items,
    draw_tastes,
)

CONFIG = SampleConfig(users=2000, items=600)


@pytest.fixture(scope="module")
def shop() -> tuple[Tastes, LatentItems, Events]:
    tastes, latent = draw_tastes(CONFIG), draw_latent_items(CONFIG, "movies")
    return tastes, latent, draw_events(CONFIG, "movies", tastes, latent)


def test_sizes_are_what_was_asked(shop):
    _, latent, events = shop
    lengths = np.bincount(events.user, minlength=CONFIG.users)
    assert len(latent) == 600
    assert lengths.min() == 3
    assert lengths.mean() == pytest.approx(CONFIG.interactions_per_user, rel=0.05)
    assert (lengths == 3).sum() == 200  # cold users, exactly


def test_no_user_meets_an_item_twice_and_time_goes_forward(shop):
    _, latent, events = shop
    assert len(np.unique(events.user * len(latent) + events.item)) == len(events.item)
    same_user = np.diff(events.user) == 0
    days = np.diff(events.day)[same_user]
    assert days.min() == 0
    assert 0.05 < (days == 0).mean() < 0.2  # ties


def test_popularity_is_skewed_and_some_items_are_cold(shop):
    _, latent, events = shop
    counts = np.sort(np.bincount(events.item, minlength=len(latent)))[::-1]
    assert 0.2 < counts[:60].sum() / counts.sum() < 0.5  # a tenth of the items
    assert (counts <= 5).mean() > 0.05


def test_sequels_follow_each_other(shop):
    _, latent, events = shop
    pairs = np.diff(events.user) == 0
    before, after = events.item[:-1][pairs], events.item[1:][pairs]
    has = latent.sequel[before] >= 0
    assert (latent.sequel[before] == after)[has].mean() > 0.8 * FOLLOW
    assert (latent.franchise[latent.sequel >= 0] == latent.franchise[latent.sequel[latent.sequel >= 0]]).all()


def test_tastes_drift(shop):
    tastes, latent, events = shop
    first = np.flatnonzero(np.diff(events.user, prepend=-1))
    last = np.append(first[1:], len(events.user)) - 1
    late = tastes.late_UG[np.arange(CONFIG.users), latent.genre[events.item[last]]].mean()
    early = tastes.early_UG[np.arange(CONFIG.users), latent.genre[events.item[last]]].mean()
    assert late > early


def test_domains_share_tastes_but_not_items(shop):
    tastes, movies, _ = shop
    games = draw_latent_items(CONFIG, "games")
    assert (games.genre != movies.genre).any()
    played = draw_events(CONFIG, "games", tastes, games)
    affinity = tastes.cluster_UC[played.user, games.cluster[played.item]]
    assert affinity.mean() > 2 / NUM_CLUSTERS


def test_an_oracle_finds_the_next_item_and_popularity_does_not(shop):
    tastes, latent, events = shop
    target, before = _last_and_before(events)
    scores = _probabilities(tastes, latent, before)
    counts = np.bincount(events.item, minlength=len(latent))
    random, matched = _candidates(events, target, counts, None), _candidates(events, target, counts, 40)
    assert _hit(scores, random) > 0.6
    assert _hit(scores, matched) > 0.55
    popularity_weight = np.broadcast_to(counts.astype(float), scores.shape)
    assert 0.1 < _hit(popularity_weight, random) < 0.25
    assert _hit(popularity_weight, matched) < 0.1


def test_another_seed_is_another_log(shop):
    _, _, events = shop
    again = draw_events(CONFIG, "movies", draw_tastes(CONFIG), draw_latent_items(CONFIG, "movies"))
    assert (again.item == events.item).all()
    assert (again.day == events.day).all()
    other = SampleConfig(users=2000, items=600, seed=1)
    moved = draw_events(other, "movies", draw_tastes(other), draw_latent_items(other, "movies"))
    assert moved.item[:100].tolist() != events.item[:100].tolist()


def test_the_smallest_catalogue_still_serves_everybody():
    config = SampleConfig(users=50, items=20, interactions_per_user=10)
    latent = draw_latent_items(config, "games")
    events = draw_events(config, "games", draw_tastes(config), latent)
    assert np.bincount(events.user).min() == 3
    assert len(np.unique(events.user * 20 + events.item)) == len(events.item)


def test_too_few_items_are_refused():
    with pytest.raises(ValueError, match="too few"):
        SampleConfig(items=20, interactions_per_user=12)


def _last_and_before(events: Events) -> tuple[np.ndarray, np.ndarray]:
    last = np.append(np.flatnonzero(np.diff(events.user)), len(events.user) - 1)
    return events.item[last], events.item[last - 1]


def _probabilities(tastes: Tastes, latent: LatentItems, before: np.ndarray) -> np.ndarray:
    """Of each item coming last, by the generator's own factors: (U, N)."""
    cell = latent.genre * NUM_CLUSTERS + latent.cluster
    total = np.bincount(cell, latent.weight, minlength=NUM_GENRES * NUM_CLUSTERS)
    taste = tastes.late_UG[:, latent.genre] * tastes.cluster_UC[:, latent.cluster] * (latent.weight / total[cell])
    taste = (1 - MAINSTREAM) * taste + MAINSTREAM * latent.weight / latent.weight.sum()
    follows = np.arange(len(latent)) == latent.sequel[before][:, None]
    return (1 - FOLLOW) * taste + FOLLOW * follows


def _candidates(events: Events, target: np.ndarray, counts: np.ndarray, window: int | None) -> np.ndarray:
    """The target first, then 19 items that the user has not met, near it in popularity_weight if there is a window."""
    draw = np.random.default_rng(0).random((len(target), len(counts)))
    draw[events.user, events.item] = 2
    if window:
        rank = np.argsort(np.argsort(-counts, kind="stable"))
        draw[np.abs(rank - rank[target][:, None]) > window] = 1.5
    return np.concatenate([target[:, None], np.argsort(draw, axis=1)[:, :19]], axis=1)


def _hit(scores: np.ndarray, candidates: np.ndarray) -> float:
    """Hit@1; ties count as misses."""
    found = np.take_along_axis(scores, candidates, axis=1)
    return float((found[:, 0] > found[:, 1:].max(axis=1)).mean())
