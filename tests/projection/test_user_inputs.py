"""What F_U projects of a user: x^u, or the teacher's choice among the candidates."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from allmrec.cf.teacher import TeacherConfig, build_teacher
from allmrec.projection.projectors import ProjectionConfig
from allmrec.projection.user_inputs import choice, user_inputs

NUM_ITEMS = 12
CHOICE = ProjectionConfig(loss="candidates", user_input="choice", sharpness=2.0)


@pytest.fixture(scope="module")
def sasrec():
    torch.manual_seed(0)
    return build_teacher(TeacherConfig(model="sasrec", dim=8, blocks=1), NUM_ITEMS).eval().requires_grad_(False)


def test_it_is_the_candidates_by_the_teachers_distribution(sasrec):
    x_BD, candidates_BC = torch.randn(2, 8), torch.tensor([[3, 7, 0], [1, 0, 0]])
    items_ND = sasrec.item_embeddings
    share = (2.0 * torch.stack([x_BD[0] @ items_ND[3], x_BD[0] @ items_ND[7]])).softmax(0)
    expected_BD = torch.stack([share[0] * items_ND[3] + share[1] * items_ND[7], items_ND[1]])
    torch.testing.assert_close(user_inputs(CHOICE, sasrec, x_BD, candidates_BC), expected_BD)
    best = items_ND[[3, 7]][share.argmax()]
    torch.testing.assert_close(choice(sasrec, 1e4 * x_BD[:1], candidates_BC[:1], 1.0)[0], best)


def test_without_candidates_and_by_default_it_is_the_representation(sasrec):
    x_BD = torch.randn(2, 8)
    assert user_inputs(CHOICE, sasrec, x_BD, None) is x_BD
    assert user_inputs(ProjectionConfig(), sasrec, x_BD, torch.ones(2, 3, dtype=torch.int64)) is x_BD
    assert not choice(sasrec, x_BD, torch.zeros(2, 3, dtype=torch.int64), 1.0).any(), "nor NaN where there are none"


@given(st.integers(0, 2**31), st.floats(0.1, 100))
def test_the_order_of_candidates_and_their_padding_change_nothing(sasrec, seed, sharpness):
    generator = np.random.default_rng(seed)
    x_BD = torch.from_numpy(generator.normal(size=(3, 8)).astype(np.float32))
    candidates_BC = torch.from_numpy(generator.permuted(np.tile(np.arange(1, NUM_ITEMS + 1), (3, 1)), axis=1)[:, :5])
    padded_BC = torch.nn.functional.pad(candidates_BC.flip(1), (2, 1))
    one, other = (choice(sasrec, x_BD, some_BC, sharpness) for some_BC in (candidates_BC, padded_BC))
    torch.testing.assert_close(one, other)


def test_it_is_for_the_loss_that_compares_candidates():
    with pytest.raises(ValidationError, match="set loss: candidates"):
        ProjectionConfig(user_input="choice")
