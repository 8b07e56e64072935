"""Places within a row: by score, ties left or broken, as pairwise comparison says; shuffling is undone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from allmrec.core.hashing import key64
from allmrec.llm.shown_order import ShownOrder
from allmrec.model import ALLMRec

SHAPE = (3, 6)
SCORES = arrays(np.float32, SHAPE, elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]))


def worse(scores_BC: np.ndarray) -> np.ndarray:
    return (scores_BC[:, :, None] > scores_BC[:, None, :]).sum(axis=2)


@given(SCORES, SCORES)
def test_ties_stay_or_are_the_teachers_to_break(scores_BC: np.ndarray, teacher_BC: np.ndarray) -> None:
    np.testing.assert_array_equal(ALLMRec.rank(scores_BC), worse(scores_BC))
    broken_BC = ALLMRec.rank(scores_BC, teacher_BC)
    np.testing.assert_array_equal(worse(broken_BC), worse(worse(scores_BC) * SHAPE[1] + worse(teacher_BC)))
    proposed_1C = -np.arange(SHAPE[1])[None, :]
    order_BC = np.argsort(-ALLMRec.rank(scores_BC, proposed_1C), axis=1)
    np.testing.assert_array_equal(order_BC, np.argsort(-scores_BC, axis=1, kind="stable"))


@given(SCORES)
def test_what_is_shown_is_put_back(scores_BC: np.ndarray) -> None:
    order = ShownOrder.draw(np.arange(3, dtype=np.uint64), key64(7), SHAPE[1])
    np.testing.assert_array_equal(order.unshuffled(order.shown(scores_BC)), scores_BC)
    assert not np.array_equal(order.order_BC[0], order.order_BC[1]), "each user has an order of its own"
