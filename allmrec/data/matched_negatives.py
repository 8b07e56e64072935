"""Negatives matched to the target: drawn as held-out items are, among items about as popular as the target.

The items that are held out for any user form a line, popular ones first and equally popular ones in no order, each as
long as it is often held out. A target is thus a uniform point on the line. The line is cut into strata of one length,
and a target's negatives are the items at the points that divide its stratum, from the target's point on and around,
into equal parts. Whichever of these points had been the target, the case would hold the same items; so each of them is
the target with the same probability, and no rule that does not know the user beats chance. (A systematic sample with
unequal probabilities: Madow 1949.) What a user has seen is cut out of the user's line.

No item may cover two points. A longer one is shortened, and as large a share of its cases is left out: there are too
few others that are as popular.

Dimensions: B cases, C negatives, I = n + 1 items (0 is padding), M items on the line, S seen items
"""

from dataclasses import dataclass

import numpy as np

from allmrec.core.hashing import mix64, uniforms
from allmrec.data.catalogue import ItemCounts

_LENGTH = 1 << 46  # of the line: times the rows of a block of 2^15 it fits into an int64
_LEFT_OUT = 0.05  # of the cases; where it would be more, the line has fewer strata
_RESERVE = 0.8  # of a stratum is shared out; what users have seen comes out of the rest


@dataclass(frozen=True)
class PopularityLine:
    """The line, which costs a sort of the catalogue; a case costs a few binary searches."""

    items_M: np.ndarray  # int32
    ends: np.ndarray  # int64 (M + 1,): where each item begins, and the end of the line
    place_I: np.ndarray  # int64: where in `items_M` an item is; M: nowhere
    kept_I: np.ndarray  # float64: the share of a target's cases that are not left out
    strata: int

    @classmethod
    def of(cls, counts: ItemCounts, count: int, strata: int) -> "PopularityLine":
        """
        Args:
            count: negatives of a case.
            strata: how many there are at most. Fewer where the line would lose more than a 20th of the cases.
        """
        popularity_I, held_out_I = counts.popularity, counts.interactions - counts.popularity
        items = np.flatnonzero(held_out_I > 0)
        items = items[np.lexsort((mix64(items.astype(np.uint64)), -popularity_I[items]))]
        # How often it is held out for those who can come to it: who has it from before cannot.
        weight_M = held_out_I[items] / (counts.users - popularity_I[items]).clip(counts.users / 4)
        for number in range(strata, 0, -1):
            longest = _longest(weight_M, number * min(count + 1, len(items)))
            if weight_M.clip(max=longest).sum() >= (1 - _LEFT_OUT) * weight_M.sum():
                break
        short_M = weight_M.clip(max=longest or weight_M.min(initial=np.inf))
        length_M = (short_M * (_LENGTH / (short_M.sum() or 1))).astype(np.int64)
        place_I, kept_I = np.full(len(popularity_I), len(items)), np.zeros(len(popularity_I))
        place_I[items], kept_I[items] = np.arange(len(items)), short_M / weight_M
        return cls(items.astype(np.int32), np.append(0, length_M.cumsum()), place_I, kept_I, number)

    def keeps(self, hashes: np.ndarray, targets: np.ndarray, key: np.uint64) -> np.ndarray:
        """Which of B targets have negatives, bool (B,); by a draw of the user."""
        return uniforms(hashes, key, 1)[:, 0] < self.kept_I[targets]

    def draw(
        self, hashes: np.ndarray, targets: np.ndarray, rows: np.ndarray, seen: np.ndarray, count: int, key: np.uint64
    ) -> np.ndarray:
        """Negatives of B cases, by counter: they depend on the user, the target and what the user has seen alone.

        Args:
            hashes: uint64 (B,), of the users.
            targets: int32 (B,), item indices that the line `keeps`.
            rows, seen: (S,) pairs of a case and an item that must not be drawn; the target may be among them.

        Returns:
            int32 (B, count), with 0 where the unseen items ran out. A row of zeros is a case that is left out: so much
            has its user seen that an item would cover two points.
        """
        place_B, within_B = self.place_I[targets], uniforms(hashes, key, 1, first=1)[:, 0]
        cut = _Cut.of(self, targets, rows, seen)
        point_B = cut.shorter(self.ends[place_B]) + (np.diff(self.ends)[place_B] * within_B).astype(np.int64)
        length_B, others_B = cut.left()
        count_B = np.minimum(others_B, count)
        strata_B = np.where(count_B < count, 1, self.strata)  # who has few items left gets them all
        first_B, width_B = _stratum(point_B, length_B, strata_B)
        step_BC = np.arange(1, count + 1) * width_B[:, None] // (count_B[:, None] + 1)
        points_BC = first_B[:, None] + ((point_B - first_B)[:, None] + step_BC) % width_B[:, None]
        place_BC = np.searchsorted(self.ends, cut.longer(points_BC), side="right") - 1
        there_BC = np.arange(count) < count_B[:, None]
        drawn_BC = np.where(there_BC, self.items_M[place_BC], 0)
        ordered = np.sort(np.concatenate([targets[:, None], drawn_BC], axis=1), axis=1)
        twice_B = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)).any(axis=1)
        drawn_BC[twice_B] = 0
        return drawn_BC


@dataclass(frozen=True)
class _Cut:
    """B users' lines without what they have seen: how a point of the whole line is found on theirs, and back."""

    line: PopularityLine
    row_S: np.ndarray  # int64, ascending
    begin_S: np.ndarray  # int64, ascending within a row: where a seen item begins
    sums: np.ndarray  # int64 (S + 1,): how long the seen items before each are together
    edges: np.ndarray  # int64 (B + 1,): which of S are a row's

    @classmethod
    def of(cls, line: PopularityLine, targets: np.ndarray, rows: np.ndarray, seen: np.ndarray) -> "_Cut":
        place_S, base = line.place_I[seen], len(line.items_M)
        cut_S = (place_S < base) & (seen != targets[rows])
        row_S, place_S = np.divmod(np.unique(rows[cut_S] * base + place_S[cut_S]), max(base, 1))
        edges = np.searchsorted(row_S, np.arange(len(targets) + 1))
        return cls(line, row_S, line.ends[place_S], np.append(0, np.diff(line.ends)[place_S].cumsum()), edges)

    def left(self) -> tuple[np.ndarray, np.ndarray]:
        """How long each row's line is, and how many items it has beside the target: int64 (B,) twice."""
        seen_B = np.diff(self.edges)
        return self.line.ends[-1] - np.diff(self.sums[self.edges]), len(self.line.items_M) - seen_B - 1

    def shorter(self, point_B: np.ndarray) -> np.ndarray:
        """Where points of the whole line, none of them seen, are on the rows' own."""
        before_B = np.searchsorted(self._keys(self.row_S, self.begin_S), self._keys(np.arange(len(point_B)), point_B))
        return point_B - (self.sums[before_B] - self.sums[self.edges[:-1]])

    def longer(self, point_BC: np.ndarray) -> np.ndarray:
        """Where points of the rows' own lines are on the whole one."""
        sums_B = self.sums[self.edges[:-1]]
        begin_S = self.begin_S - (self.sums[:-1] - sums_B[self.row_S])
        wanted_BC = self._keys(np.arange(len(point_BC))[:, None], point_BC)
        before_BC = np.searchsorted(self._keys(self.row_S, begin_S), wanted_BC, side="right")
        return point_BC + self.sums[before_BC] - sums_B[:, None]

    def _keys(self, row: np.ndarray, point: np.ndarray) -> np.ndarray:
        """Ascending by row and point."""
        return row * (self.line.ends[-1] + 1) + point


def _stratum(point_B: np.ndarray, length_B: np.ndarray, strata_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where points' strata begin and how wide they are, on lines that are cut into equal ones: int64 (B,) twice."""
    number_B = point_B * strata_B // length_B
    first_B, end_B = (-(-number * length_B // strata_B) for number in (number_B, number_B + 1))
    return first_B, end_B - first_B


def _longest(weight_M: np.ndarray, points: int) -> float:
    """The greatest length at which no item covers two of the points; 0 where there are too many points for any."""
    ordered = np.sort(weight_M)[::-1]
    # With the first t shortened: points x longest = reserve x (t x longest + the others' sum).
    others_M, share_M = ordered[::-1].cumsum()[::-1], points - _RESERVE * np.arange(len(ordered))
    longest_M = np.divide(_RESERVE * others_M, share_M, out=np.zeros(len(ordered)), where=share_M > 0)
    fits = np.flatnonzero(ordered <= longest_M)
    return float(longest_M[fits[0]]) if len(fits) else 0.0
