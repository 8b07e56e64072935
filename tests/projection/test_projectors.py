"""The projectors' start and their file."""

import torch

from allmrec.artifacts import seal
from allmrec.projection.projectors import fresh_projectors, load_projectors, save_projectors
from allmrec.storage import open_storage


def test_calibration_centres_the_soft_tokens_and_gives_them_the_norm_asked_for():
    generator = torch.Generator().manual_seed(0)
    x_BD = 0.01 * torch.randn(500, 8, generator=generator) + 3  # small differences on a large common part
    e_IJ = 20 * torch.randn(300, 6, generator=generator)
    projectors = fresh_projectors(8, 6, 32, seed=0)
    projectors.calibrate(x_BD, e_IJ, torch.randn(300, 8, generator=generator), norm=2.5)
    for tokens_BH in (projectors.user(x_BD), projectors.item(e_IJ)):
        torch.testing.assert_close(tokens_BH.mean(0), torch.zeros(32), atol=1e-3, rtol=0)
        torch.testing.assert_close(tokens_BH.square().sum(1).mean().sqrt(), torch.tensor(2.5), atol=1e-3, rtol=0)


def test_soft_tokens_start_with_the_teachers_products_in_any_stretch_of_their_dimensions():
    generator = torch.Generator().manual_seed(0)
    x_BD, items_ID = torch.randn(200, 8, generator=generator), torch.randn(300, 8, generator=generator)
    e_IJ = items_ID @ torch.randn(8, 12, generator=generator) + 1  # what a joint embedding may make of E
    projectors = fresh_projectors(8, 12, 64, seed=0)
    expected_BI = (x_BD - x_BD.mean(0)) @ (items_ID - items_ID.mean(0)).T

    @torch.no_grad()
    def correlation(dims: slice = slice(None)) -> float:
        found_BI = projectors.user(x_BD)[:, dims] @ projectors.item(e_IJ)[:, dims].T
        return float(torch.corrcoef(torch.stack([found_BI.flatten(), expected_BI.flatten()]))[0, 1])

    assert abs(correlation()) < 0.3, "two networks drawn apart know nothing of each other"
    projectors.calibrate(x_BD, e_IJ, items_ID, norm=2.5)
    assert correlation() > 0.999 and correlation(slice(21, 29)) > 0.999


def test_two_layers_each_into_the_token_space():
    projectors = fresh_projectors(8, 6, 32, seed=0)
    shapes = {name: tuple(weight.shape) for name, weight in projectors.state_dict().items() if "weight" in name}
    assert shapes == {
        "user.0.weight": (32, 8),
        "user.2.weight": (32, 32),
        "item.0.weight": (32, 6),
        "item.2.weight": (32, 32),
    }


def test_the_start_depends_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, other = fresh_projectors(8, 6, 32, seed=0), fresh_projectors(8, 6, 32, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.user[0].weight, fresh_projectors(8, 6, 32, seed=0).user[0].weight)
    assert not torch.equal(one.user[0].weight, other.user[0].weight)


def test_saved_projectors_come_back_equal_and_frozen(tmp_path):
    storage, projectors = open_storage(str(tmp_path)), fresh_projectors(8, 6, 32, seed=0)
    seal(storage, "projectors", "test", save_projectors(storage, projectors.state_dict()))
    loaded = load_projectors(storage)
    x_BD, e_IJ = torch.randn(5, 8), torch.randn(5, 6)
    assert torch.equal(loaded.user(x_BD), projectors.user(x_BD))
    assert torch.equal(loaded.item(e_IJ), projectors.item(e_IJ))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
