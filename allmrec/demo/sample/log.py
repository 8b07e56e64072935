"""Users act on a shop: who met which item on which day.

Each next item is the last one's sequel, or something well known, or a draw by taste: a genre, a hidden cluster,
then an item of both by how well known it is. Vectorised over users, one step of everybody's history at a time.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from allmrec.demo.sample.shop import (
    DOMAINS,
    NUM_CLUSTERS,
    NUM_GENRES,
    Domain,
    LatentItems,
    SampleConfig,
    Tastes,
    generator,
)
from schemas import check, interactions

FOLLOW = 0.45  # probability of the last item's sequel, where there is one
MAINSTREAM = 0.1  # probability of an item for its popularity_weight alone
SAME_DAY = 0.1  # probability that an event falls on the day of the one before it
OPENED = np.datetime64("2019-01-01")
LONGEST = 100  # interactions of a user
PATIENCE = 16  # draws by taste before a user who has met everything there takes anything


@dataclass(frozen=True)
class Events:
    """The log, ordered by user and then by time."""

    user: np.ndarray  # int (E,)
    item: np.ndarray  # int (E,), positions among the latent items
    day: np.ndarray  # int (E,), days since the shop opened; no user meets an item twice


def draw_events(config: SampleConfig, domain: Domain, tastes: Tastes, latent: LatentItems) -> Events:
    """Everybody's history in a domain."""
    random = generator(config, 3, DOMAINS.index(domain))
    length = _lengths(config, random, len(latent))
    order = np.argsort(-length, kind="stable")  # long histories first: the users of step t are a prefix
    length = length[order]
    seen_UT = np.full((config.users, length[0]), -1)
    taste = _Taste(latent, tastes.early_UG[order], tastes.late_UG[order], tastes.cluster_UC[order])
    for step in range(length[0]):
        rows = np.arange(np.searchsorted(-length, -step))
        last = seen_UT[rows, step - 1]
        sequel = np.where(last >= 0, latent.sequel[last], -1)
        chosen = np.where(random.random(len(rows)) < FOLLOW, sequel, -1)
        again = rows
        for attempt in range(10 * PATIENCE):
            again = again[_refused(chosen[again], seen_UT[again, :step])]
            if not len(again):
                break
            if attempt < PATIENCE:
                chosen[again] = taste.draw(random, again, step / length[again])
            else:
                chosen[again] = random.integers(len(latent), size=len(again))
        assert not len(again), "no user meets more than half of the items"
        seen_UT[rows, step] = chosen
    day_UT = random.integers(900, size=(config.users, 1)) + _gaps(random, seen_UT.shape).cumsum(axis=1)
    back = np.argsort(order)
    seen_UT, day_UT = seen_UT[back], day_UT[back]
    user, at = np.nonzero(seen_UT >= 0)
    return Events(user, seen_UT[user, at], day_UT[user, at])


def interactions_table(
    config: SampleConfig, domain: Domain, tastes: Tastes, latent: LatentItems, user_ids: pa.Array, item_ids: pa.Array
) -> pa.Table:
    """The domain's log (schemas.interactions.SCHEMA) in order of time, to the day; ratings follow the genre taste."""
    events = draw_events(config, domain, tastes, latent)
    liked = tastes.early_UG[events.user, latent.genre[events.item]] > 0.1
    noise = generator(config, 4, DOMAINS.index(domain)).normal(size=len(liked))
    order = np.argsort(events.day, kind="stable")
    table = pa.table(
        {
            "user_id": user_ids.take(pa.array(events.user)),
            "item_id": item_ids.take(pa.array(events.item)),
            "timestamp": pa.array((OPENED + events.day).astype("datetime64[us]")).cast(pa.timestamp("us", "UTC")),
            "rating": np.clip(np.round(3.3 + liked + noise), 1, 5).astype(np.float32),
            "event": pa.array(np.full(len(liked), "purchase")),
        }
    )
    return check(table.take(pa.array(order)), interactions.SCHEMA)


class _Taste:
    """Draws items by taste: genre, cluster, item within both."""

    def __init__(self, latent: LatentItems, early_UG: np.ndarray, late_UG: np.ndarray, cluster_UC: np.ndarray):
        cell = latent.genre * NUM_CLUSTERS + latent.cluster
        self.items = np.argsort(cell, kind="stable")  # cell by cell
        self.ends = np.cumsum(latent.weight[self.items])
        edges = np.searchsorted(cell[self.items], np.arange(NUM_GENRES * NUM_CLUSTERS + 1))
        self.cells = np.concatenate([[0.0], self.ends])[edges]  # the weight before each cell
        self.early_UG, self.late_UG, self.cluster_UC = (p.cumsum(axis=1) for p in (early_UG, late_UG, cluster_UC))

    def draw(self, random: np.random.Generator, rows: np.ndarray, progress: np.ndarray) -> np.ndarray:
        """An item for each row (a user), at a point 0 ... 1 of its history."""
        drift, genre_u, cluster_u, item_u, popular_u = random.random((5, len(rows)))
        late = drift < progress
        genre = _choose(np.where(late[:, None], self.late_UG[rows], self.early_UG[rows]), genre_u)
        cell = genre * NUM_CLUSTERS + _choose(self.cluster_UC[rows], cluster_u)
        low, high = self.cells[cell], self.cells[cell + 1]
        popular = (popular_u < MAINSTREAM) | (low == high)
        at = np.where(popular, item_u * self.ends[-1], low + item_u * (high - low))
        return self.items[np.minimum(np.searchsorted(self.ends, at, side="right"), len(self.items) - 1)]


def _choose(cumulative: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """A draw from each row's distribution, given as cumulative sums."""
    return np.minimum((cumulative <= uniform[:, None]).sum(axis=1), cumulative.shape[1] - 1)


def _refused(chosen: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return (chosen < 0) | (seen == chosen[:, None]).any(axis=1)


def _lengths(config: SampleConfig, random: np.random.Generator, items: int) -> np.ndarray:
    """How many interactions each user has: three for cold users, a skew spread for the others."""
    cold = random.permutation(config.users) < round(config.cold_users * config.users)
    mean = (config.interactions_per_user - 3 * config.cold_users) / (1 - config.cold_users)
    longest = min(LONGEST, items // 2)
    shortest = min(5, longest)
    spread = random.gamma(2.0, max(mean - shortest, 0.0) / 2.0, config.users)
    return np.where(cold, 3, np.minimum(shortest + np.round(spread), longest)).astype(np.int64)


def _gaps(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Days between events; none for some, so that times tie."""
    return np.where(random.random(shape) < SAME_DAY, 0, random.geometric(0.08, shape))
