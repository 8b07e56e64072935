"""The users that a model trains on, all or a sample, in parts of bounded size that are read when they are needed.

A sample is drawn by a hash of the users' ids: the same users whatever the number of shards, parts and workers. A part
consists of whole shards. Users need at least two training interactions: an item and a history before it. What is learnt
from the users, and in which order, is left to the models.

Dimensions: P parts
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from allmrec.core.artifacts import Manifest, read_manifest, read_part
from allmrec.core.hashing import draws
from allmrec.core.storage import Storage
from allmrec.data.sequences import Sequences

Part = Callable[[], Sequences]  # reads the training sequences of some users
Targets = Literal["last", "all"]  # a user's last training item, or each one after the first

MAX_USERS = 300_000  # by default: the paper's largest data set has 297,498, and all of them train
_USER_BYTES = 64  # of a user in memory, without the items: id, hash and offset
_ALL = np.uint64(2**64 - 1)  # no draw is greater


@dataclass(frozen=True)
class Sample:
    """The users with the smallest draws by a hash of their ids."""

    max_users: int | None  # None: all
    key: np.uint64

    def draws(self, users: Sequences) -> np.ndarray:
        """uint64 (U,)"""
        return draws(users.hashes(), self.key, 1)[:, 0]

    def take(self, users: Sequences, bound: np.uint64) -> Sequences:
        """Those whose draws are at most `bound`."""
        return users if bound == _ALL else users.take(np.flatnonzero(self.draws(users) <= bound))


EVERYONE = Sample(None, np.uint64(0))


@dataclass(frozen=True)
class TrainingUsers:
    parts: Sequence[Part]
    users_P: np.ndarray  # int64
    interactions_P: np.ndarray  # int64, of their training parts

    @classmethod
    def of(cls, sequences: Sequences, sample: Sample = EVERYONE) -> "TrainingUsers":
        """A single part, of training sequences in memory (`Sequences.read_train`)."""
        users = learnable(sequences)
        bound = _bound([sample.draws(users)], sample.max_users)
        return cls._held(sample.take(users, bound))

    @classmethod
    def read(
        cls,
        storage: Storage,
        memory_mb: int,
        sample: Sample = EVERYONE,
        targets: Targets = "last",
        example_bytes: int = 0,
    ) -> "TrainingUsers":
        """From the stored `sequences`, in the fewest parts that fit into `memory_mb` each, of at least one shard.

        The table is read shard by shard, once to draw a sample and once to count several parts. A single part stays
        in memory.

        Args:
            targets, example_bytes: which examples the model makes of a user, and the memory that each takes.
        """
        manifest = read_manifest(storage)
        bound = _ALL
        if sample.max_users is not None and sample.max_users < manifest.rows:
            shards = (_train(storage, manifest, [name]) for name in manifest.files)
            bound = _bound((sample.draws(learnable(users)) for users in shards), sample.max_users)

        def keep(users: Sequences) -> Sequences:
            return sample.take(learnable(users), bound)

        groups = _groups(manifest, memory_mb, sample.max_users, targets, example_bytes)
        if len(groups) == 1:
            return cls._held(_train(storage, manifest, groups[0], keep))
        parts = [partial(_train, storage, manifest, names, keep) for names in groups]
        counts = [(len(users), len(users.items)) for part in parts for users in [part()]]
        users_P, interactions_P = np.array(counts, dtype=np.int64).T
        return cls(parts, users_P, interactions_P)

    @classmethod
    def _held(cls, users: Sequences) -> "TrainingUsers":
        return cls([lambda: users], np.array([len(users)]), np.array([len(users.items)]))

    def __len__(self) -> int:
        """Users in all parts."""
        return int(self.users_P.sum())

    def examples(self, targets: Targets) -> np.ndarray:
        """int64 (P,): how many targets the users of each part have."""
        return self.users_P if targets == "last" else self.interactions_P - self.users_P

    def order(self, key: np.uint64) -> np.ndarray:
        """A permutation of the parts, int64 (P,)."""
        return shuffled(np.arange(len(self.parts)), key)


def training_parts(storage: Storage, memory_mb: int) -> list[Part]:
    """All users' training sequences, in the fewest parts that fit into `memory_mb` each; at least a shard each."""
    manifest = read_manifest(storage)
    return [partial(_train, storage, manifest, names) for names in _groups(manifest, memory_mb)]


def num_parts(
    manifest: Manifest, memory_mb: int, max_users: int | None = None, targets: Targets = "last", example_bytes: int = 0
) -> int:
    """Number of parts that `TrainingUsers.read` makes of the `sequences` of this manifest."""
    return len(_groups(manifest, memory_mb, max_users, targets, example_bytes))


def learnable(users: Sequences) -> Sequences:
    """Users with an item and a history before it."""
    return users.take(np.flatnonzero(users.lengths >= 2))


def shuffled(numbers: np.ndarray, key: np.uint64) -> np.ndarray:
    return numbers[draws(numbers.astype(np.uint64), key, 1)[:, 0].argsort(kind="stable")]


def _groups(
    manifest: Manifest, memory_mb: int, max_users: int | None = None, targets: Targets = "last", example_bytes: int = 0
) -> list[list[str]]:
    """The names of each part's shards. Sizes are estimated before the sample is drawn, assuming equal shares."""
    users, interactions = manifest.rows, manifest.stats["interactions"]
    share = 1 if max_users is None else min(1, max_users / max(users, 1))
    examples = users if targets == "last" else interactions
    needed = share * (4 * interactions + _USER_BYTES * users + example_bytes * examples)
    count = min(math.ceil(needed / (memory_mb * 2**20)), len(manifest.files))
    return [names.tolist() for names in np.array_split(list(manifest.files), max(count, 1))]


def _train(
    storage: Storage,
    manifest: Manifest,
    names: Sequence[str],
    keep: Callable[[Sequences], Sequences] = lambda users: users,
) -> Sequences:
    """The training sequences of some shards that `keep` returns; one shard is in memory at a time."""
    return Sequences.concat([keep(Sequences.train_part(read_part(storage, manifest, name))) for name in names])


def _bound(drawn: Iterable[np.ndarray], count: int | None) -> np.uint64:
    """The greatest draw of a sample: the `count`-th smallest of all."""
    if count is None:
        return _ALL
    bound, least = _ALL, np.zeros(0, np.uint64)
    for draws_U in drawn:
        least = np.append(least, draws_U[draws_U <= bound])
        if len(least) >= 2 * count:
            least = np.partition(least, count - 1)[:count]
            bound = least.max()
    return _ALL if len(least) < count else np.partition(least, count - 1)[count - 1]
