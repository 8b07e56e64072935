"""Dropout: the rate, the scale, and masks that any number of workers shares."""

import pytest
import torch

from allmrec.cf import dropout
from allmrec.cf.dropout import Dropout, Masks


def dropped(rows: int, total: int, rate: float = 0.5, seed: int = 0) -> torch.Tensor:
    masks = Masks()
    masks.rows = total
    torch.manual_seed(seed)
    return Dropout(rate, masks).train()(torch.ones(rows, 40, 25))


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_it_drops_at_the_rate_and_keeps_the_mean(rate):
    x = dropped(100, 100, rate)
    assert (x == 0).float().mean().item() == pytest.approx(rate, abs=0.005)
    assert x.mean().item() == pytest.approx(1, abs=0.03)
    assert len(x.unique()) == 2


def test_workers_share_the_masks_of_the_global_batch(monkeypatch):
    whole = dropped(7, 7)
    for rank, rows in enumerate((3, 2, 2)):
        monkeypatch.setattr(dropout, "rank_and_world_size", lambda rank=rank: (rank, 3))
        assert torch.equal(dropped(rows, 7), whole[rank::3])


def test_it_does_nothing_outside_training_or_at_rate_zero():
    x = torch.randn(3, 4)
    assert Dropout(0.5, Masks()).eval()(x) is x
    assert Dropout(0.0, Masks()).train()(x) is x
