"""The systems that are compared, each a function from cases to scores of their candidates.

All see the same cases. LLM systems show a case's candidates in the same shuffled order: the table has the target
first. Candidates of the same probability, such as those of one title, stay tied for all of them: the nightly run
orders these by the teacher, but the figure of an LLM holds nothing that another model knows. *The swap* gives every
user another user's representation and history and leaves the candidates: a system that is personal must lose by it.
A *shuffle* gives every user the own history in another order: what a system loses by it, it knew from the order.
Systems that can score every item also place the target in the whole catalogue.

Dimensions: B cases, C candidates (the target first)
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import pyarrow as pa
from torch.nn import functional as F

from allmrec.cf.retrieval import held_out_ranks, refuse_nonfinite
from allmrec.core.hashing import Draw, draws, key64, mix64
from allmrec.data.cases import Cases
from allmrec.data.evaluation_cases import TRAINED_BESIDE
from allmrec.data.sequences import Sequences
from allmrec.llm.batches import SoftTokens
from allmrec.llm.shown_order import ShownOrder
from allmrec.model import ALLMRec

# Systems of an LLM: what `ALLMRec.soft_tokens` is told; None for prompts without soft tokens.
SOFT: dict[str, dict[str, bool] | None] = {
    "llm-only": None,
    "a-llmrec": {},
    "a-llmrec-untrained": {"untrained": True},
    "a-llmrec-sbert": {"text": True},
    "tallrec": None,
}
# Those that score by vectors of users and items.
TEACHERS = ("teacher", *[name for name in TRAINED_BESIDE if name not in SOFT])
NEED_LLM = frozenset(SOFT)
IN_CATALOGUE = frozenset({"random", "popularity", *TEACHERS})  # those that can score every item


class Systems:
    """Scores cases by name of the system: `systems.score("a-llmrec", cases)`.

    `systems.in_catalogue` has those that can place a target in the whole catalogue. They give int64 (B,) twice: how
    many of the drawable items that the history has not are above the target, and how many are tied with it.
    """

    def __init__(self, model: ALLMRec, seed: int):
        self.model, self.seed = model, seed
        self.by_name: dict[str, Callable[[Cases], np.ndarray]] = {
            "random": self.random,
            "popularity": self.popularity,
            **{name: partial(self.by_teacher, name) for name in TEACHERS},
            **{name: partial(self.by_llm, name) for name in SOFT},
        }
        self.in_catalogue: dict[str, Callable[[Cases], tuple[np.ndarray, np.ndarray]]] = {
            "random": self.random_in_catalogue,
            "popularity": self.popularity_in_catalogue,
            **{name: partial(self.teacher_in_catalogue, name) for name in TEACHERS},
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
            raise ValueError(f"{system} gave NaN or inf for users {users} …; check the training of its models")
        return scores_BC

    def random(self, cases: Cases) -> np.ndarray:
        key = key64(self.seed, Draw.EVALUATION_SCORES)
        return mix64(cases.hashes[:, None] ^ mix64(cases.candidates_BC.astype(np.uint64) ^ key))

    def random_in_catalogue(self, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
        """In a random order the target is anywhere."""
        seen, _ = _seen_others(cases)
        competing_B = len(self.model.bundle.catalogue.drawable) - np.bincount(seen, minlength=len(cases))
        drawn_B = draws(cases.hashes, key64(self.seed, Draw.EVALUATION_RANKS), 1)[:, 0]
        return (drawn_B % competing_B.astype(np.uint64)).astype(np.int64), np.zeros(len(cases), np.int64)

    def popularity(self, cases: Cases) -> np.ndarray:
        return self.model.bundle.catalogue.popularity[cases.candidates_BC]

    def popularity_in_catalogue(self, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
        popularity = self.model.bundle.catalogue.popularity
        ordered, own_B = (
            np.sort(popularity[self.model.bundle.catalogue.drawable]),
            popularity[cases.candidates_BC[:, 0]],
        )
        up_to_B = np.searchsorted(ordered, own_B, side="right")
        better_B, tied_B = len(ordered) - up_to_B, up_to_B - np.searchsorted(ordered, own_B) - 1  # without itself
        row, item = _seen_others(cases)
        better_B -= np.bincount(row[popularity[item] > own_B[row]], minlength=len(cases))
        tied_B -= np.bincount(row[popularity[item] == own_B[row]], minlength=len(cases))
        return better_B, tied_B

    def by_teacher(self, name: str, cases: Cases) -> np.ndarray:
        return self.model.scores_by(name, cases.histories, cases.candidates_BC)

    def cosines(self, name: str, histories: Sequences, others: Sequences) -> np.ndarray:
        """Of each user's vectors by both histories, float64 (B,); NaN for systems that represent users by no vector."""
        if name not in TEACHERS:
            return np.full(len(histories), np.nan)
        teacher = self.model.by_name(name)
        return F.cosine_similarity(teacher.represent(histories), teacher.represent(others)).double().cpu().numpy()

    def teacher_in_catalogue(self, name: str, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
        """Raises ValueError for NaN and inf, which would be below every target."""
        teacher = self.model.by_name(name)
        x_BD = teacher.represent(cases.histories)
        refuse_nonfinite(teacher.item_embeddings, self.model.bundle.catalogue.item_ids, "embeds items")
        refuse_nonfinite(x_BD, cases.user_ids, "represents users")
        drawable = self.model.bundle.catalogue.drawable
        return held_out_ranks(teacher, x_BD, cases.histories, cases.candidates_BC[:, 0], drawable)

    def by_llm(self, system: str, cases: Cases) -> np.ndarray:
        """log P of every candidate; those of identical titles stay tied."""
        order, soft = self.shown_order(cases), self.soft_tokens(system, cases)
        with self.weights_of(system):
            return self.model.log_probabilities(cases.histories, cases.candidates_BC, order, soft)

    def weights_of(self, system: str) -> AbstractContextManager[None]:
        """Within it the LLM's weights are those of the system: TALLRec has its own."""
        return self.model.tallrec() if system == "tallrec" else nullcontext()

    def soft_tokens(self, system: str, cases: Cases) -> SoftTokens | None:
        """What goes into the slots of an LLM system's prompts; None for prompts without (LLM-Only, paper Figure 6)."""
        how = SOFT[system]
        return (
            None
            if how is None
            else self.model.soft_tokens(self.model.represent(cases.histories), cases.candidates_BC, **how)
        )

    def uses_text_embedding(self, system: str) -> np.ndarray | None:
        """bool (n + 1,): the items whose soft token is made of q_i; None where items have no soft tokens."""
        how, bundle = SOFT.get(system), self.model.bundle
        if how is None or not bundle.prompt.item_slots:
            return None
        if how.get("text"):
            return np.ones(bundle.catalogue.num_items + 1, dtype=bool)
        joint = bundle.projection.item_input == "joint"
        return bundle.uses_text_embedding().numpy() & joint

    def shown_order(self, cases: Cases) -> ShownOrder:
        """In which order a prompt shows the candidates: by the user, so that all systems agree."""
        return ShownOrder.draw(cases.hashes, key64(self.seed, Draw.EVALUATION_SHOWN), cases.candidates_BC.shape[1])


def _seen_others(cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    """Rows and items of the histories, each pair once and without the target, int64 (S,) each."""
    row, item = cases.histories.rows(), cases.histories.items.astype(np.int64)
    other = item != cases.candidates_BC[row, 0]
    base = int(item.max(initial=0)) + 1
    row, item = np.divmod(np.unique(row[other] * base + item[other]), base)
    return row, item
