"""The systems that are compared, each a function from cases to scores of their candidates.

All see the same cases. LLM systems show a case's candidates in the same shuffled order: the table has the target
first. Candidates of the same probability, such as those of one title, stay tied for all of them: the nightly run
orders these by the teacher, but the figure of an LLM holds nothing that another model knows. *The swap* gives every
user another user's representation and history and leaves the candidates: a system that is personal must lose by it.
Systems that can score every item also place the target in the whole catalogue.

Dimensions: B cases, C candidates (the target first)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.cf.retrieval import places_in_catalogue, refuse_nonfinite
from allmrec.data.sequences import Sequences
from allmrec.hashing import Draw, draws, hash_strings, key64, mix64, permutations, uniforms
from allmrec.llm.batches import SoftTokens
from allmrec.projection.projectors import ProjectionConfig
from allmrec.scorer import Scorer

# Systems of an LLM: what `Scorer.soft_tokens` is told; None for prompts without soft tokens.
SOFT: dict[str, dict[str, bool] | None] = {
    "llm-only": None,
    "a-llmrec": {},
    "a-llmrec-untrained": {"untrained": True},
    "a-llmrec-sbert": {"text": True},
}
NEED_LLM = frozenset(SOFT)
IN_CATALOGUE = frozenset({"random", "popularity", "teacher"})  # those that can score every item


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

    def sample(self, share: float, seed: int) -> "Cases":
        """Those of about this share of the users, drawn by hash."""
        return self.take(
            np.flatnonzero(uniforms(self.hashes, key64(seed, Draw.EVALUATION_GENERATION), 1)[:, 0] < share)
        )

    def swapped(self, seed: int) -> "Cases":
        """Every user with the history of the next one in a shuffled circle. A single user has nobody: no cases."""
        if len(self) < 2:
            return self.take(np.arange(0))
        circle = np.argsort(draws(self.hashes, key64(seed, Draw.EVALUATION_PARTNERS), 1)[:, 0], kind="stable")
        partner = np.empty(len(self), dtype=np.int64)
        partner[circle] = np.roll(circle, -1)
        return replace(self, histories=self.histories.take(partner))


class Systems:
    """Scores cases by name of the system: `systems.score("a-llmrec", cases)`.

    `systems.in_catalogue` has those that can place a target in the whole catalogue. They give int64 (B,) twice: how
    many of the drawable items that the history has not are above the target, and how many are tied with it.
    """

    def __init__(self, scorer: Scorer, seed: int):
        self.scorer, self.seed = scorer, seed
        self.by_name: dict[str, Callable[[Cases], np.ndarray]] = {
            "random": self.random,
            "popularity": self.popularity,
            "teacher": self.teacher,
            **{name: partial(self.by_llm, name) for name in SOFT},
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
        key = key64(self.seed, Draw.EVALUATION_SCORES)
        return mix64(cases.hashes[:, None] ^ mix64(cases.candidates_BC.astype(np.uint64) ^ key))

    def random_in_catalogue(self, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
        """In a random order, the target stands anywhere."""
        seen, _ = _seen_others(cases)
        competing_B = len(self.scorer.bundle.catalogue.drawable) - np.bincount(seen, minlength=len(cases))
        drawn_B = draws(cases.hashes, key64(self.seed, Draw.EVALUATION_PLACES), 1)[:, 0]
        return (drawn_B % competing_B.astype(np.uint64)).astype(np.int64), np.zeros(len(cases), np.int64)

    def popularity(self, cases: Cases) -> np.ndarray:
        return self.scorer.bundle.catalogue.popularity[cases.candidates_BC]

    def popularity_in_catalogue(self, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
        popularity = self.scorer.bundle.catalogue.popularity
        ordered, own_B = (
            np.sort(popularity[self.scorer.bundle.catalogue.drawable]),
            popularity[cases.candidates_BC[:, 0]],
        )
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
        drawable = self.scorer.bundle.catalogue.drawable
        return places_in_catalogue(teacher, x_BD, cases.histories, cases.candidates_BC[:, 0], drawable)

    def by_llm(self, system: str, cases: Cases) -> np.ndarray:
        """log P of every candidate; those of identical titles stay tied."""
        soft, order = self.soft_tokens(system, cases), self.shown_order(cases)
        shown = np.take_along_axis(cases.candidates_BC, order, axis=1)
        ranker = self.scorer.ranker(soft is not None)
        return _unshuffled(ranker.log_probabilities(cases.histories, shown, soft), order)

    def soft_tokens(self, system: str, cases: Cases) -> SoftTokens | None:
        """What goes into the slots of an LLM system's prompts; None for prompts without (LLM-Only, paper Figure 6)."""
        how = SOFT[system]
        return None if how is None else self.scorer.soft_tokens(self.scorer.represent(cases.histories), **how)

    def by_text(self, system: str) -> np.ndarray | None:
        """bool (n + 1,): the items whose soft token is made of q_i; None where items have no soft tokens."""
        how, bundle = SOFT.get(system), self.scorer.bundle
        if how is None or not bundle.prompt.item_slots:
            return None
        if how.get("text"):
            return np.ones(bundle.catalogue.num_items + 1, dtype=bool)
        joint = ProjectionConfig(**bundle.config["projection"]).item_input == "joint"
        return bundle.by_text().numpy() & joint

    def shown_order(self, cases: Cases) -> np.ndarray:
        """In which order a prompt shows the candidates, int64 (B, C): by the user, so that all systems agree."""
        return permutations(cases.hashes, key64(self.seed, Draw.EVALUATION_SHOWN), cases.candidates_BC.shape[1])


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
