"""Splits of the log: which part of every user's history trains, and which of the items after it are held out.

A training part is always the beginning of a history (`train_length` of the `sequences` table; zero leaves the user
out), so whatever is trained needs to know no more. Held-out items are targets of `evaluation_cases`. Which users are
sampled is drawn by a hash of their id: it depends on the seed and on who there is, on nothing else.

leave-one-out  the last item is the test target, the one before it the validation target (paper section 5.1)
temporal       everyone's events from `test_from` on are held out; the first of them is the test target
cold-users     users with exactly three items are held out, their last item is the test target (section 5.2.3)
few-shot       K users train, everyone is tested (section 5.2.4)
cross-domain   no user trains, every user is tested: with the models of another catalogue's workspace (section 5.2.5)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from allmrec.core.hashing import Draw, draws, key64
from allmrec.core.settings import Section
from allmrec.data.sequences import Sequences

NONE = -1  # no held-out item
COLD = 3  # items of a cold user


class SplitConfig(Section):
    """Which part of every history trains, and which items are held out."""

    # leave-one-out is the paper's; the keys below say which kind they belong to.
    kind: Literal["leave-one-out", "temporal", "cold-users", "few-shot", "cross-domain"] = "leave-one-out"
    valid_from: datetime | None = None  # temporal: earlier events train; UTC
    test_from: datetime | None = None  # temporal: the first event from then on is the test target; UTC
    trained_in: str | None = None  # cross-domain: folder or URI of the workspace whose models are taken
    item_embeddings: Literal["decoded", "drawn"] = "decoded"  # cross-domain: E_i from its text, or of any trained item
    users: int | None = Field(None, ge=1)  # few-shot: how many train; cold-users: how many are held out, null: all
    # Train on histories in a drawn order, their last item kept in its place; held-out items have true histories.
    shuffle_training: bool = False

    @model_validator(mode="after")
    def _complete(self) -> "SplitConfig":
        if self.kind == "temporal" and (self.valid_from is None or self.test_from is None):
            raise ValueError("split temporal needs valid_from and test_from")
        if self.kind == "few-shot" and self.users is None:
            raise ValueError("split few-shot needs users, the number of users who train")
        if self.kind == "cross-domain" and self.trained_in is None:
            raise ValueError(
                "split cross-domain needs trained_in, the folder or URI of the workspace whose models are used"
            )
        if self.valid_from and self.test_from and _micros(self.valid_from) >= _micros(self.test_from):
            raise ValueError(f"valid_from ({self.valid_from}) must come before test_from ({self.test_from})")
        return self


@dataclass(frozen=True)
class Parts:
    """Of U users' histories, int64 (U,) each."""

    train: np.ndarray  # how many items train
    valid: np.ndarray  # position of the validation target in the history; NONE: there is none
    test: np.ndarray  # and the test target


@dataclass(frozen=True)
class Split:
    """A split of one log. Where it has a sample, `with_sample` must be told everybody's draws before `divide`."""

    config: SplitConfig
    seed: int
    last: int = 2**64 - 1  # the largest draw of the sample

    @property
    def samples(self) -> bool:
        return self.config.users is not None and self.config.kind in ("cold-users", "few-shot")

    def smallest(self, users: Sequences) -> list[int]:
        """The draws of those users who may be in the sample, as many as it is large."""
        drawn = np.sort(self._draws(users)[self._eligible(users.lengths)])
        return drawn[: self.config.users].tolist()

    def with_sample(self, drawn: Sequence[int]) -> "Split":
        """The split whose sample are the users with the smallest of all draws: `config.users` of them, if there are."""
        assert self.samples and self.config.users is not None
        smallest = sorted(drawn)[: self.config.users]
        return replace(self, last=smallest[-1] if smallest else 0)

    def divide(self, users: Sequences, times: np.ndarray) -> Parts:
        """
        Args:
            times: int64 (sum of lengths,), microseconds since 1970 in UTC, of `users.items`.
        """
        length, kind = users.lengths, self.config.kind
        enough = length >= 3
        train = np.where(enough, length - 2, length)
        valid, test = np.where(enough, length - 2, NONE), np.where(enough, length - 1, NONE)
        if kind == "temporal":
            train, held_out = (self._before(users, times, start) for start in self._starts())
            valid = np.where((train > 0) & (train < held_out), train, NONE)
            test = np.where((held_out > 0) & (held_out < length), held_out, NONE)
        elif kind == "cold-users":
            sampled = self._sampled(users)
            train, valid = np.where(sampled, 0, train), np.where(sampled, NONE, valid)
            test = np.where(sampled, test, NONE)
        elif kind == "few-shot":
            sampled = self._sampled(users)
            train, valid = np.where(sampled, train, 0), np.where(sampled, valid, NONE)
        elif kind == "cross-domain":
            train, valid = np.zeros_like(length), np.full_like(length, NONE)
        return Parts(train, valid, test)

    def training(self, users: Sequences, parts: Parts) -> Sequences:
        """The items that train, in the order in which they do."""
        users = users.shortened(parts.train)
        if not self.config.shuffle_training:
            return users
        return users.shuffled(key64(self.seed, Draw.SPLIT_ORDER), keep_last=True)

    def _eligible(self, lengths: np.ndarray) -> np.ndarray:
        return lengths == COLD if self.config.kind == "cold-users" else lengths >= 3

    def _draws(self, users: Sequences) -> np.ndarray:
        return draws(users.hashes(), key64(self.seed, Draw.SPLIT_USERS), 1)[:, 0]

    def _sampled(self, users: Sequences) -> np.ndarray:
        return self._eligible(users.lengths) & (self._draws(users) <= np.uint64(self.last))

    def _starts(self) -> tuple[int, int]:
        assert self.config.valid_from and self.config.test_from
        return _micros(self.config.valid_from), _micros(self.config.test_from)

    @staticmethod
    def _before(users: Sequences, times: np.ndarray, start: int) -> np.ndarray:
        """How many of each user's events are earlier than `start`."""
        return np.diff(np.append(0, np.cumsum(times < start))[users.offsets])


def times_of(table: pa.Table) -> np.ndarray:
    """int64 (sum of lengths,): microseconds since 1970 in UTC, from rows of the `sequences` table."""
    times = [chunk.flatten().cast(pa.int64()).to_numpy() for chunk in table.column("timestamp").chunks]
    return np.concatenate([np.zeros(0, np.int64), *times])


def _micros(moment: datetime) -> int:
    """Since 1970; a moment without a zone is in UTC."""
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)
