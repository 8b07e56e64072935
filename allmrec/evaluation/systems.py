"""The systems that are compared, each a function from cases to scores of their candidates.

All see the same cases. LLM systems show a case's candidates in the same shuffled order: the table has the target
first. *The swap* gives every user another user's representation and history and leaves the candidates: a system
that is personal must lose by it. Systems that can score every item also place the target in the whole catalogue.

Dimensions: B cases, C candidates (the target first)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.cf.retrieval import places_in_catalogue, refuse_nonfinite
from allmrec.data.sequences import Sequences
from allmrec.hashing import draws, hash_strings, key64, mix64, permutations
from allmrec.scorer import Scorer

NEED_LLM = frozenset({"llm-only", "a-llmrec", "a-llmrec-untrained", "a-llmrec-sbert"})
IN_CATALOGUE = frozenset({"random", "popularity", "teacher"})  # those that can score every item
_SCORES, _ORDER, _PARTNERS, _PLACES = 0x5243, 0x4F52, 0x5057, 0x504C  # keys of the draws


@dataclass(frozen=True)
class Cases:
    """Cases of one shard, split and protocol."""

    user_ids: pa.Array  # string (B,)
    histories: Sequences  # of B users; another user's in the swap
    candidates_BC: np.ndarray  # int32, zeros are no candidates
    warm_B: np.ndarray  # bool: of the target
    cold_B: np.ndarray

    @classmethod
    def select(cls, table: pa.Table, sequences: Sequences, split: str, protocol: str) -> "Cases":
        """Those of one split and protocol from rows of `evaluation_cases`, joined with their users' sequences."""
        wanted = pc.and_(pc.equal(table.column("split"), split), pc.equal(table.column("protocol"), protocol))
        table = table.filter(wanted).combine_chunks()
        user_ids = pa.concat_arrays([pa.array([], pa.string()), *table.column("user_id").chunks])
        users = pc.index_in(user_ids, value_set=sequences.user_ids)
        assert users.null_count == 0, "every case is of a user of its shard"
        lists = pa.concat_arrays([pa.array([], pa.list_(pa.int32())), *table.column("candidates").chunks])
        lengths = np.diff(lists.offsets.to_numpy())
        candidates = lists.flatten().to_numpy().reshape(len(lists), -1 if len(lists) else 1).copy()
        assert (lengths == candidates.shape[1]).all()
        return cls(
            user_ids,
            sequences.take(users.to_numpy()).shortened(table.column("history_length").to_numpy()),
            candidates,
            table.column("warm").to_numpy(),
            table.column("cold").to_numpy(),
        )

    def __len__(self) -> int:
        return len(self.user_ids)

    @cached_property
    def hashes(self) -> np.ndarray:
        """uint64 (B,), of the users whose candidates these are."""
        return hash_strings(self.user_ids)

    @property
    def subsets(self) -> dict[str, np.ndarray]:
        return {"all": np.ones(len(self), dtype=bool), "warm": self.warm_B, "cold": self.cold_B}

    def take(self, rows: np.ndarray) -> "Cases":
        return Cases(
            self.user_ids.take(pa.array(rows)),
            self.histories.take(rows),
            self.candidates_BC[rows],
            self.warm_B[rows],
            self.cold_B[rows],
        )

    def blocks(self, size: int) -> Iterator["Cases"]:
        for first in range(0, len(self), size):
            yield self.take(np.arange(first, min(first + size, len(self))))

    def swapped(self, seed: int) -> "Cases":
        """Every user with the history of the next one in a shuffled circle. A single user has nobody: no cases."""
        if len(self) < 2:
            return self.take(np.arange(0))
        circle = np.argsort(draws(self.hashes, key64(seed, _PARTNERS), 1)[:, 0], kind="stable")
        partner = np.empty(len(self), dtype=np.int64)
        partner[circle] = np.roll(circle, -1)
        return replace(self, histories=self.histories.take(partner))


class Systems:
    """Scores cases by name of the system: `systems.score("a-llmrec", cases)`.

    `systems.in_catalogue` has those that can place a target in the whole catalogue. They give int64 (B,) twice: how
    many of the items that the history has not are above the target, and how many are tied with it.
    """

    def __init__(self, scorer: Scorer, seed: int):
        self.scorer, self.seed = scorer, seed
        self.by_name: dict[str, Callable[[Cases], np.ndarray]] = {
            "random": self.random,
            "popularity": self.popularity,
            "teacher": self.teacher,
            "llm-only": self.llm_only,
            "a-llmrec": self.a_llmrec,
            "a-llmrec-untrained": lambda cases: self.a_llmrec(cases, untrained=True),
            "a-llmrec-sbert": lambda cases: self.a_llmrec(cases, text=True),
        }
        self.in_catalogue: dict[str, Callable[[Cases], tuple[np.ndarray, np.ndarray]]] = {
            "random": self.random_in_catalogue,
            "popularity": self.popularity_in_catalogue,
            "teacher": self.teacher_in_catalogue,
        }

    def score(self, system: str, cases: Cases) -> np.ndarray:
        """Scores (B, C) to compare within a row, higher is better.

        Raises:
            ValueError: a score is NaN or inf; names the system and users.
        """
        scores_BC = self.by_name[system](cases)
        wrong = (~np.isfinite(scores_BC) & (cases.candidates_BC > 0)).any(axis=1)
        if wrong.any():
            users = cases.user_ids.filter(pa.array(wrong))[:5].to_pylist()
            raise ValueError(f"{system} gave NaN or inf for users {users} …; look at the training of its models")
        return scores_BC

    def random(self, cases: Cases) -> np.ndarray:
        key = key64(self.seed, _SCORES)
        return mix64(cases.hashes[:, None] ^ mix64(cases.candidates_BC.astype(np.uint64) ^ key))

    def random_in_catalogue(self, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
        """In a random order, the target stands anywhere."""
        seen, _ = _seen_others(cases)
        competing_B = self.scorer.bundle.catalogue.num_items - np.bincount(seen, minlength=len(cases))
        drawn_B = draws(cases.hashes, key64(self.seed, _PLACES), 1)[:, 0]
        return (drawn_B % competing_B.astype(np.uint64)).astype(np.int64), np.zeros(len(cases), np.int64)

    def popularity(self, cases: Cases) -> np.ndarray:
        return self.scorer.bundle.catalogue.popularity[cases.candidates_BC]

    def popularity_in_catalogue(self, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
        popularity = self.scorer.bundle.catalogue.popularity
        ordered, own_B = np.sort(popularity[1:]), popularity[cases.candidates_BC[:, 0]]
        up_to_B = np.searchsorted(ordered, own_B, side="right")
        better_B, tied_B = len(ordered) - up_to_B, up_to_B - np.searchsorted(ordered, own_B) - 1  # without itself
        row, item = _seen_others(cases)
        better_B -= np.bincount(row[popularity[item] > own_B[row]], minlength=len(cases))
        tied_B -= np.bincount(row[popularity[item] == own_B[row]], minlength=len(cases))
        return better_B, tied_B

    def teacher(self, cases: Cases) -> np.ndarray:
        return self.scorer.teacher_scores(self.scorer.represent(cases.histories), cases.candidates_BC)

    def teacher_in_catalogue(self, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
        """Raises ValueError for NaN and inf, which would be below every target."""
        teacher, x_BD = self.scorer.teacher, self.scorer.represent(cases.histories)
        refuse_nonfinite(teacher.item_embeddings, self.scorer.bundle.catalogue.item_ids, "embeds items")
        refuse_nonfinite(x_BD, cases.user_ids, "represents users")
        return places_in_catalogue(teacher, x_BD, cases.histories, cases.candidates_BC[:, 0])

    def llm_only(self, cases: Cases) -> np.ndarray:
        """The same LLM and prompt without soft tokens (paper Figure 6). Identical titles stay tied."""
        order = self.shown_order(cases)
        shown = np.take_along_axis(cases.candidates_BC, order, axis=1)
        return _unshuffled(self.scorer.ranker(False).log_probabilities(cases.histories, shown), order)

    def a_llmrec(self, cases: Cases, text: bool = False, untrained: bool = False) -> np.ndarray:
        """Candidates with identical titles share a probability and are ordered by the teacher."""
        x_BD, order = self.scorer.represent(cases.histories), self.shown_order(cases)
        shown = np.take_along_axis(cases.candidates_BC, order, axis=1)
        log_p = _unshuffled(self.scorer.llm_scores(x_BD, cases.histories, shown, text, untrained), order)
        by_teacher = places(self.scorer.teacher_scores(x_BD, cases.candidates_BC))
        return np.where(np.isfinite(log_p), places(log_p) * log_p.shape[1] + by_teacher, log_p)

    def shown_order(self, cases: Cases) -> np.ndarray:
        """In which order a prompt shows the candidates, int64 (B, C): by the user, so that all systems agree."""
        return permutations(cases.hashes, key64(self.seed, _ORDER), cases.candidates_BC.shape[1])


def places(scores_BC: np.ndarray) -> np.ndarray:
    """How many of the row's candidates are worse, int64 (B, C); equal scores have equal places."""
    return (scores_BC[:, :, None] > scores_BC[:, None, :]).sum(axis=2)


def _seen_others(cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    """Rows and items of the histories, each pair once and without the target, int64 (S,) each."""
    row, item = cases.histories.rows(), cases.histories.items.astype(np.int64)
    other = item != cases.candidates_BC[row, 0]
    base = int(item.max(initial=0)) + 1
    row, item = np.divmod(np.unique(row[other] * base + item[other]), base)
    return row, item


def _unshuffled(scores_BC: np.ndarray, order_BC: np.ndarray) -> np.ndarray:
    out = np.empty_like(scores_BC)
    np.put_along_axis(out, order_BC, scores_BC, axis=1)
    return out
