"""SASRec scores by dot products; what holds for every teacher is in `test_sequence_teachers`."""

import torch

from allmrec.cf.sasrec import SASRec
from allmrec.cf.teacher import TeacherConfig


def test_scores_are_dot_products():
    torch.manual_seed(3)
    teacher = SASRec(TeacherConfig(dim=8, max_history=10), 20).requires_grad_(False)
    x = torch.randn(2, 8)
    items = torch.tensor([[1, 5, 0], [2, 2, 20]])
    scores = teacher.scores(x, items)
    assert scores[0, 2] == 0
    torch.testing.assert_close(scores[1, 2], x[1] @ teacher.item_embeddings[20])
