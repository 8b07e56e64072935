"""SASRec: no look into the future, padding changes nothing, weights survive the disk."""

import numpy as np
import pytest
import torch

from allmrec.artifacts import seal
from allmrec.cf.sasrec import SASRec
from allmrec.cf.teacher import WEIGHTS, TeacherConfig, build_teacher, load_teacher, save_teacher
from allmrec.storage import open_storage
from tests.cf.conftest import ragged

CONFIG = TeacherConfig(dim=8, max_history=10)


@pytest.fixture
def teacher() -> SASRec:
    torch.manual_seed(3)
    teacher = build_teacher(CONFIG, num_items=20)
    for weight in teacher.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    with torch.no_grad():
        teacher.item_embeddings[0] = 0
    return teacher.eval()


def test_a_later_item_does_not_change_earlier_states(teacher):
    history = torch.tensor([[0, 0, 3, 7, 1, 9, 4]])
    changed = history.clone()
    changed[0, 5] = 12
    before, after = teacher(history), teacher(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(-1).min() > 1e-3


def test_padding_changes_nothing(teacher):
    bare = torch.tensor([[3, 7, 1]])
    padded = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 3, 7, 1]])
    torch.testing.assert_close(teacher.user_representations(bare), teacher.user_representations(padded))
    assert teacher(padded)[0, :7].eq(0).all()
    assert torch.isfinite(teacher(padded)).all()


def test_an_empty_history_is_represented_by_zeros(teacher):
    x = teacher.user_representations(torch.zeros(2, 4, dtype=torch.int64))
    assert x.eq(0).all() and x.shape == (2, 8)


def test_the_order_of_the_history_matters(teacher):
    one, other = teacher.user_representations(torch.tensor([[1, 2, 3], [2, 1, 3]]))
    assert (one - other).abs().max() > 1e-3


def test_represent_equals_one_history_at_a_time(teacher):
    rng = np.random.default_rng(0)
    histories = [rng.integers(1, 21, length).tolist() for length in (0, 1, 25, 4, 10, 3, 3)]
    together = teacher.represent(ragged(histories), block=3)
    for row, history in enumerate(histories):
        alone = teacher.user_representations(torch.tensor([history[-10:] or [0]]))[0]
        torch.testing.assert_close(together[row], alone)


def test_scores_are_dot_products(teacher):
    x = torch.randn(2, 8)
    items = torch.tensor([[1, 5, 0], [2, 2, 20]])
    scores = teacher.scores(x, items)
    assert scores[0, 2] == 0
    torch.testing.assert_close(scores[1, 2], x[1] @ teacher.item_embeddings[20])


def test_a_stored_teacher_comes_back_frozen_and_a_damaged_one_is_refused(teacher, tmp_path):
    storage = open_storage(str(tmp_path))
    config = {"seed": 0, "teacher": CONFIG.model_dump(mode="json")}
    seal(storage, "teacher", "id", save_teacher(storage, teacher), config=config, facts={"num_items": 20})
    loaded = load_teacher(storage)
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())
    history = torch.tensor([[4, 5, 6]])
    assert torch.equal(loaded.user_representations(history), teacher.user_representations(history))
    data = bytearray(storage.read(WEIGHTS))
    data[-1] ^= 1
    storage.write(WEIGHTS, bytes(data))
    with pytest.raises(ValueError, match=WEIGHTS):
        load_teacher(storage)
