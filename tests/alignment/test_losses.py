"""Equations 2 to 6 against numbers worked out by hand. `test_training` has them over users and batches."""

import math

import numpy as np
import pytest
import torch

from allmrec.alignment.losses import Losses, stage1_losses
from allmrec.alignment.network import AlignmentConfig, AlignmentNetwork

ONE = torch.ones(1)


def linear(layer: torch.nn.Linear, weight: list[list[float]], bias: list[float]) -> None:
    layer.weight.data = torch.tensor(weight)
    layer.bias.data = torch.tensor(bias)


@pytest.fixture
def network() -> AlignmentNetwork:
    """d = 1, text dimension 1, d' = 2, and no sigmoids, so that a hand can work it out."""
    network = AlignmentNetwork(1, 1, 2)
    network.item_encoder[1] = network.text_encoder[1] = torch.nn.Identity()
    linear(network.item_encoder[0], [[1.0], [2.0]], [10.0, 10.0])
    linear(network.item_decoder, [[0.5, 0.25]], [-7.0])
    linear(network.text_encoder[0], [[2.0], [1.0]], [10.0, 10.0])
    linear(network.text_decoder, [[1.0, -1.0]], [0.5])
    return network


def test_the_losses_are_those_worked_out_by_hand(network):
    items, texts = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [0.0]])
    x, positive = torch.tensor([[0.3], [0.3]]), torch.tensor([True, False])
    losses = stage1_losses(network, items, texts, x, positive, torch.tensor([1, 0.25]))
    # Row 1: e = (11, 12), q = (16, 13), E' = 1.5, Q' = 3.5. Row 2: e = (12, 14), q = (10, 10), E' = 2.5, Q' = 0.5.
    assert losses.matching.item() == pytest.approx((25 + 1) / 2 + 0.25 * (4 + 16) / 2)
    assert losses.item_recon.item() == pytest.approx(1.25 * 0.5**2)
    assert losses.text_recon.item() == pytest.approx(1.25 * 0.5**2)
    sigmoid = [1 / (1 + math.exp(-0.3 * back)) for back in (1.5, 2.5)]
    assert losses.rec.item() == pytest.approx(-(math.log(sigmoid[0]) + math.log(1 - sigmoid[1])), rel=1e-5)


def test_texts_of_rows_without_weight_are_not_asked_for(network):
    items, x, positive = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.3], [0.3]]), torch.tensor([True, False])
    losses = stage1_losses(network, items, torch.tensor([[3.0]]), x, positive, torch.tensor([1.0, 0]))
    assert losses.matching.item() == pytest.approx((25 + 1) / 2)
    assert losses.item_recon.item() == losses.text_recon.item() == pytest.approx(0.5**2)


def test_no_gradient_reaches_a_text_as_what_is_to_be_reconstructed(network):
    """Q = 3 gives Q' = 3.5: d MSE / dQ is 2 * 0.5 * dQ'/dQ through the encoder alone, where dQ'/dQ = 2 - 1."""
    texts = torch.tensor([[3.0]], requires_grad=True)
    losses = stage1_losses(network, torch.ones(1, 1), texts, torch.ones(1, 1), torch.tensor([True]), ONE)
    (gradient,) = torch.autograd.grad(losses.text_recon, texts)
    assert gradient.item() == pytest.approx(1.0)


def test_the_recommendation_loss_is_in_the_teachers_units(network):
    """Standardised inputs, but s(x, E') takes E' as the teacher scales it."""
    network.item_mean, network.item_scale = torch.tensor([5.0]), torch.tensor(4.0)
    losses = stage1_losses(
        network, torch.tensor([[9.0]]), torch.tensor([[3.0]]), torch.tensor([[0.1]]), torch.tensor([True]), ONE
    )
    # (9 - 5) / 4 = 1, back to 1.5, in the teacher's units 1.5 * 4 + 5 = 11
    assert losses.item_recon.item() == pytest.approx(0.25)
    assert losses.rec.item() == pytest.approx(math.log(1 + math.exp(-1.1)), rel=1e-5)


def test_each_loss_is_its_equation_in_numpy():
    """Users with 1, 2 and 5 targets, each target with an unseen item; to 1e-6."""
    torch.manual_seed(0)
    dims = {"item": 6, "text": 9, "joint": 4}
    network = AlignmentNetwork(*dims.values(), "sigmoid").double()
    network.standardise(torch.randn(30, 6).double() * 2 + 1, torch.randn(30, 9).double() * 0.1)
    targets = np.array([1, 2, 5])
    user = np.repeat(np.arange(3), 2 * targets)
    items, texts, x = (torch.randn(16, size).double() for size in (6, 9, 6))
    positive = torch.arange(16) % 2 == 0
    weight = torch.from_numpy(1 / targets[user])
    losses = stage1_losses(network, items, texts, x, positive, weight / 2)

    w = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    layer = lambda name, rows: rows @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    sigmoid = lambda rows: 1 / (1 + np.exp(-rows))  # noqa: E731
    item = (items.numpy() - w["item_mean"]) / w["item_scale"]
    text = (texts.numpy() - w["text_mean"]) / w["text_scale"]
    e, q = sigmoid(layer("item_encoder.0", item)), sigmoid(layer("text_encoder.0", text))
    item_back, text_back = layer("item_decoder", e), layer("text_decoder", q)
    over_users = lambda rows: np.mean([rows[user == one].mean() for one in range(3)])  # noqa: E731
    expected = {
        "matching": over_users(((e - q) ** 2).mean(1)),
        "item_recon": over_users(((item - item_back) ** 2).mean(1)),
        "text_recon": over_users(((text - text_back) ** 2).mean(1)),
    }
    score = sigmoid((x.numpy() * (item_back * w["item_scale"] + w["item_mean"])).sum(1))
    per_target = -np.log(score[::2]) - np.log(1 - score[1::2])
    expected["rec"] = per_target.sum() / 3
    for name, value in expected.items():
        assert getattr(losses, name).item() / 3 == pytest.approx(value, abs=1e-6), name


def test_the_total_is_equation_6_of_the_losses_that_are_on():
    losses = Losses(*(torch.tensor(value) for value in (1.0, 10.0, 100.0, 1000.0)))
    assert losses.total(AlignmentConfig(alpha=0.5, beta=0.2), 4).item() == (1 + 5 + 20) / 4 + 1000
    assert losses.total(AlignmentConfig(losses=("item_recon", "rec")), 4).item() == 5 / 4 + 1000
    assert losses.total(AlignmentConfig(preset="paper"), 4).item() == (1 + 5 + 50) / 4 + 1000
    with pytest.raises(ValueError, match="losses"):
        AlignmentConfig(losses=())


def test_gradients_reach_every_weight_and_nothing_else(network):
    items, texts, x = torch.randn(6, 1), torch.randn(6, 1), torch.randn(6, 1)
    losses = stage1_losses(network, items, texts, x, torch.arange(6) < 3, torch.ones(6))
    losses.total(AlignmentConfig(), 3).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in network.parameters())
    assert items.grad is None and x.grad is None
