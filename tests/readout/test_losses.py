"""LLM-SRec's losses, by hand."""

import math

import pytest
import torch
from pydantic import ValidationError

from allmrec.readout.losses import readout_loss, uniformity
from allmrec.readout.network import ReadoutConfig

USERS, MAPPED = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
ITEMS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
TARGET, COMPETES = torch.tensor([1, 2]), torch.tensor([[True, True, False], [True, True, True]])
SCORES = torch.tensor([[0.0, 1.0, 9.0], [2.0, 0.0, 1.0]])


def loss(*names: str, **settings) -> float:
    config = ReadoutConfig(losses=("retrieval", *names), **settings)
    return readout_loss(config, USERS, MAPPED, ITEMS, TARGET, COMPETES, SCORES).item()


def entropy(logits: list[float], target: int) -> float:
    return math.log(sum(map(math.exp, logits))) - logits[target]


def test_retrieval_is_the_cross_entropy_among_what_competes():
    expected = (entropy([1, 2], 1) + entropy([0, 3, 3], 2)) / 2
    assert loss(temperature=None) == pytest.approx(expected)
    assert loss(temperature=0.5) == pytest.approx((entropy([2, 4], 1) + entropy([0, 6, 6], 2)) / 2)


def test_distil_is_the_distance_of_unit_vectors():
    """(1, 2) / sqrt(5) and (1, 0), and twice (0, 1); the mean over the dimensions in the paper's preset."""
    distance = ((1 / 5**0.5 - 1) ** 2 + 4 / 5) / 2
    assert loss("distil") - loss() == pytest.approx(distance, rel=1e-5)
    assert loss("distil", distil_weight=1 / 128) - loss() == pytest.approx(distance / 128, rel=1e-3)
    assert ReadoutConfig(preset="paper").distil_weight == 1 / 128


def test_uniformity_is_the_mean_over_pairs_of_both_sides():
    users = math.exp(-2 * ((1 / 5**0.5) ** 2 + (2 / 5**0.5 - 1) ** 2))
    assert loss("uniform") - loss() == pytest.approx(users + math.exp(-4), rel=1e-5)
    three = torch.nn.functional.normalize(torch.randn(3, 5), dim=1)
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum(math.exp(-2 * (three[a] - three[b]).square().sum()) for a, b in pairs) / 3
    assert uniformity(three).item() == pytest.approx(expected, rel=1e-5)
    assert uniformity(three[:1]).item() == 0


def test_the_teachers_map_retrieves_too_and_its_scores_are_a_target():
    expected = (entropy([2, 0], 1) + entropy([0, 1, 1], 2)) / 2
    assert loss("teacher-map", temperature=None) - loss(temperature=None) == pytest.approx(expected, rel=1e-5)
    total = 0.0
    for wanted, logits in (([0.0, 1.0], [1.0, 2.0]), ([2.0, 0.0, 1.0], [0.0, 3.0, 3.0])):
        p = torch.tensor(wanted).softmax(0)
        total += float((p * (p.log() - torch.tensor(logits).log_softmax(0))).sum()) / 2
    assert loss("teacher-scores", temperature=None) - loss(temperature=None) == pytest.approx(total, rel=1e-4)


def test_no_gradient_is_nan_where_items_do_not_compete():
    users = USERS.clone().requires_grad_()
    readout_loss(ReadoutConfig(), users, MAPPED, ITEMS, TARGET, COMPETES, SCORES).backward()
    assert users.grad is not None and users.grad.isfinite().all()


def test_losses_that_compare_nothing_are_refused():
    with pytest.raises(ValidationError, match="nothing of them compares users with items"):
        ReadoutConfig(losses=("uniform",))


def test_the_papers_preset_is_the_papers_and_gives_way_to_what_is_written():
    paper = ReadoutConfig(preset="paper")
    assert (paper.losses, paper.negatives) == (("retrieval", "distil", "uniform"), "own")
    assert (paper.temperature, paper.layer_norm, paper.soft_token_scale) == (None, False, None)
    assert (paper.dim, paper.num_negatives, paper.batch_size, paper.learning_rate) == (128, 3, 20, 1e-4)
    assert (paper.learning_rate_schedule, paper.warmup_steps, paper.max_gradient_norm) == ("constant", 0, 0)
    assert ReadoutConfig(preset="paper", dim=8) == paper.model_copy(update={"dim": 8})
