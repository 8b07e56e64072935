"""NCF's scores are the paper's network, its users are sets of items, and it learns which items go together."""

import numpy as np
import pytest
import torch
from torch import nn

from allmrec.cf import ncf
from allmrec.cf.ncf import NCF
from allmrec.cf.teacher import TeacherConfig
from allmrec.cf.training import TeacherTraining, ValidationCases
from tests.cf.conftest import ragged


@pytest.fixture
def teacher() -> NCF:
    torch.manual_seed(0)
    teacher = NCF(TeacherConfig(model="ncf", dim=8), 20)
    for weight in teacher.parameters():
        nn.init.normal_(weight, std=0.5)
    return teacher.eval().requires_grad_(False)


def test_a_score_is_neural_matrix_factorisation(teacher):
    """Equation 12 of the paper, with a whole first layer over [x_m ; e_m]."""
    x, e = torch.randn(8), teacher.item_embeddings[7]
    hidden = torch.cat([x[4:], e[4:]])
    first = torch.cat([teacher.from_user.weight, teacher.from_item.weight], 1)
    hidden = (first @ hidden + teacher.from_user.bias).relu()
    for layer in teacher.layers:
        hidden = layer(hidden).relu()
    assert [len(hidden), len(teacher.layers)] == [2, 2], "8, 4, 2: a tower of three layers"
    expected = torch.cat([teacher.h_G, teacher.h_H]) @ torch.cat([x[:4] * e[:4], hidden])
    torch.testing.assert_close(teacher.scores(x[None], torch.tensor([[7]]))[0, 0], expected)


@pytest.mark.parametrize("tile", [1, 5, 64, 10_000])
def test_the_catalogue_is_scored_in_tiles_of_any_size(teacher, tile, monkeypatch):
    x = torch.randn(6, 8)
    expected = teacher.scores(x, torch.arange(21).expand(6, -1))
    monkeypatch.setattr(ncf, "_TILE", tile)
    torch.testing.assert_close(teacher.shared_scores(x), expected)


def test_a_user_is_the_mean_of_the_history_in_any_order(teacher):
    x = teacher.represent(ragged([[3, 9, 4, 4], [4, 3, 4, 9]]))
    expected = teacher.read.weight[[3, 4, 4, 9]].mean(0)
    torch.testing.assert_close(x, expected.expand(2, -1))


def test_an_item_is_predicted_from_all_the_others_and_never_from_itself(teacher):
    (x,) = teacher.contexts(torch.tensor([[0, 3, 9, 4, 9]]))
    for place, others in enumerate([[9, 4, 9], [3, 4], [3, 9, 9], [3, 4]]):
        torch.testing.assert_close(x[place], teacher.read.weight[others].mean(0))


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_it_learns_which_items_go_together(loss):
    """Two groups of tastes, and users that training never saw."""
    rng = np.random.default_rng(0)
    users = [rng.permutation(10)[:6] + 1 + 10 * (user % 2) for user in range(220)]
    known, new = ragged(users[:200]), ragged(users[200:])
    config = TeacherConfig(
        model="ncf", dim=8, loss=loss, epochs=10, batch_size=32, learning_rate=0.01, num_negatives=20, dropout=0.0
    )
    run = TeacherTraining(config, [lambda: known], 20, ValidationCases(ragged([]), np.zeros((0, 2), np.int32)), 0)
    for _ in range(8):
        run.train_epoch()
    teacher = run.teacher.eval().requires_grad_(False)
    scores_BN = teacher.shared_scores(teacher.represent(new))
    liked_B2 = torch.stack([scores_BN[:, 1:11].mean(1), scores_BN[:, 11:].mean(1)], 1)
    assert (liked_B2.argmax(1) == torch.arange(20) % 2).all()


@pytest.mark.parametrize(("dim", "blocks"), [(7, 3), (2, 3)])
def test_a_dim_that_cannot_be_halved_is_refused(dim, blocks):
    with pytest.raises(ValueError, match="even and at least 4"):
        NCF(TeacherConfig(model="ncf", dim=dim, blocks=blocks), 20)
