"""Places within a row: by score, ties left or broken, as pairwise comparison says; shuffling is undone."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from allmrec.core.hashing import key64
from allmrec.llm.shown_order import ShownOrder
from allmrec.model import ALLMRec
from allmrec.projection.user_inputs import choice

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


def test_a_users_token_is_made_of_what_it_was_trained_on(tiny_model: ALLMRec) -> None:
    bundle, teacher = tiny_model.bundle, tiny_model.teacher
    x_BD, candidates_BC = torch.randn(2, teacher.item_embeddings.shape[1]), np.array([[3, 5, 0], [1, 2, 4]])
    keys = {"loss": "candidates", "user_input": "choice", "sharpness": 2.0}
    chosen = ALLMRec(
        replace(bundle, config={**bundle.config, "projection": bundle.config["projection"] | keys}), tiny_model.config
    )
    choice_BD = choice(teacher, x_BD, torch.from_numpy(candidates_BC), 2.0)
    with torch.no_grad():
        for model, candidates, expected_BD in (
            (chosen, candidates_BC, choice_BD),
            (chosen, None, x_BD),
            (tiny_model, candidates_BC, x_BD),
        ):
            torch.testing.assert_close(
                model.soft_tokens(x_BD, candidates).user_BH, bundle.projectors.user(expected_BD), rtol=0, atol=0
            )
