"""What is true of the sample shop: items' factors and users' tastes.

A taste has two halves. Genres and franchises are in the titles, so that text shows them; each item's
cluster is in no text, so that only co-consumption does. Both domains share the users, their tastes and
the genres, and nothing else. Knows neither words nor events.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from allmrec.core.settings import Section

Domain = Literal["movies", "games"]
DOMAINS: tuple[Domain, ...] = ("movies", "games")

NUM_GENRES = 12
NUM_CLUSTERS = 6
GENRES_LIKED = 1.0  # concentrations of the tastes' Dirichlets: the smaller, the fewer a user likes
CLUSTERS_LIKED = 0.9
FRANCHISE = 4  # items of a franchise, about
ZIPF = 1.0  # exponent of popularity_weight


class SampleConfig(Section):
    """Sizes of the sample store, for each of its two domains."""

    users: int = Field(3000, ge=1)
    items: int = Field(800, ge=20)
    interactions_per_user: float = Field(12, ge=4)  # mean
    seed: int = Field(0, ge=0)
    dirty_fraction: float = Field(0.0, ge=0, le=0.5)  # corrupted rows for each good one
    cold_users: float = Field(0.1, ge=0, le=0.9)  # share with exactly three interactions
    cold_items: float = Field(0.1, ge=0, le=0.9)  # share that is hardly ever met

    @model_validator(mode="after")
    def _enough_items(self) -> "SampleConfig":
        if self.items < 2 * self.interactions_per_user:
            raise ValueError(
                f"items={self.items} is too few for {self.interactions_per_user:g} different ones a user; "
                "take at least twice as many"
            )
        return self


@dataclass(frozen=True)
class Tastes:
    """Of U users over G genres and C clusters; every row sums to one."""

    early_UG: np.ndarray  # genres at the beginning of a history
    late_UG: np.ndarray  # and at its end: tastes drift from one to the other
    cluster_UC: np.ndarray


@dataclass(frozen=True)
class LatentItems:
    """The N items of a domain, by position 0 ... N - 1."""

    franchise: np.ndarray  # int (N,), franchises are contiguous
    part: np.ndarray  # int (N,), 0 for a franchise's first item
    genre: np.ndarray  # int (N,), one genre a franchise
    cluster: np.ndarray  # int (N,), of the item, whatever its franchise
    weight: np.ndarray  # float (N,), how well known the item is
    sequel: np.ndarray  # int (N,), the item that follows, -1 for none

    def __len__(self) -> int:
        return len(self.franchise)


def generator(config: SampleConfig, *purpose: int) -> np.random.Generator:
    """The random numbers of one purpose: another size of one table does not move another table's draws."""
    return np.random.default_rng([config.seed, *purpose])


def draw_tastes(config: SampleConfig) -> Tastes:
    """The users' tastes, the same in every domain."""
    random = generator(config, 1)
    genre_share = np.arange(1, NUM_GENRES + 1) ** -0.3
    # A Dirichlet of small concentration: a user likes two or three genres and one or two clusters.
    early_UG = random.dirichlet(GENRES_LIKED * genre_share / genre_share.sum(), config.users)
    new_UG = random.dirichlet(GENRES_LIKED * genre_share / genre_share.sum(), config.users)
    cluster_UC = random.dirichlet(np.full(NUM_CLUSTERS, CLUSTERS_LIKED / NUM_CLUSTERS), config.users)
    return Tastes(early_UG, 0.5 * early_UG + 0.5 * new_UG, cluster_UC)


def draw_latent_items(config: SampleConfig, domain: Domain) -> LatentItems:
    """The items of a domain."""
    random = generator(config, 2, DOMAINS.index(domain))
    count = config.items
    sizes = np.minimum(random.geometric(1 / FRANCHISE, count), 9)
    franchise = np.repeat(np.arange(count), sizes)[:count]
    part = np.arange(count) - np.searchsorted(franchise, franchise)
    genre = random.integers(NUM_GENRES, size=count)[franchise]
    cluster = random.integers(NUM_CLUSTERS, size=count)
    weight = (random.permutation(count) + 0.02 * count + 1) ** -ZIPF  # Zipf's law, its head cut
    cold = random.permutation(count) < round(config.cold_items * count)
    weight[cold] *= 0.03
    follows = np.append((franchise[1:] == franchise[:-1]) & ~cold[1:], False)
    return LatentItems(franchise, part, genre, cluster, weight, np.where(follows, np.arange(count) + 1, -1))
