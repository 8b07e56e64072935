"""Where the projectors start from: drawn weights that know nothing, or by name the teacher's product."""

import numpy as np
import pytest
import torch

from allmrec.cf.teacher import TeacherConfig, build_teacher
from allmrec.projection import start as module
from allmrec.projection.examples import Examples
from allmrec.projection.projectors import ProjectionConfig, Projectors, fresh_projectors
from allmrec.projection.start import (
    spread_directions,
    start,
    start_among_tokens,
    start_as_teacher,
    start_ordinary,
    widest_directions,
)
from tests.projection.conftest import NUM_ITEMS, NUM_USERS

NOTHING_BY_TEXT = torch.zeros(NUM_ITEMS + 1, dtype=torch.bool)


@pytest.fixture(scope="module")
def examples(sequences, builder) -> Examples:
    return Examples(sequences, builder, num_candidates=4, seed=0)


def started(how, teacher, examples, e_NJ, uses_text_N=NOTHING_BY_TEXT) -> Projectors:
    return start(ProjectionConfig(start=how), teacher, examples, e_NJ, uses_text_N, token_dim=32, norm=2.5)


def test_the_ordinary_start_is_the_drawn_weights_at_the_norm_asked_for():
    generator = torch.Generator().manual_seed(0)
    x_BD = 0.01 * torch.randn(500, 8, generator=generator) + 3
    e_IJ = 20 * torch.randn(300, 6, generator=generator)
    drawn, projectors = (fresh_projectors(8, 6, 32, seed=0) for _ in range(2))
    start_ordinary(projectors, x_BD, e_IJ, norm=2.5)
    for name, rows in (("user", x_BD), ("item", e_IJ)):
        before_BH, after_BH = getattr(drawn, name)(rows), getattr(projectors, name)(rows)
        assert after_BH.square().sum(1).mean().sqrt().item() == pytest.approx(2.5, rel=1e-5)
        torch.testing.assert_close(after_BH / after_BH.norm(), before_BH / before_BH.norm(), msg="one factor, no shift")


def test_the_teachers_start_centres_the_soft_tokens_and_gives_them_the_norm_asked_for():
    generator = torch.Generator().manual_seed(0)
    x_BD = 0.01 * torch.randn(500, 8, generator=generator) + 3  # small differences on a large common part
    e_IJ = 20 * torch.randn(300, 6, generator=generator)
    projectors = fresh_projectors(8, 6, 32, seed=0)
    start_as_teacher(projectors, x_BD, e_IJ, torch.randn(300, 8, generator=generator), norm=2.5)
    for tokens_BH in (projectors.user(x_BD), projectors.item(e_IJ)):
        torch.testing.assert_close(tokens_BH.mean(0), torch.zeros(32), atol=1e-3, rtol=0)
        torch.testing.assert_close(tokens_BH.square().sum(1).mean().sqrt(), torch.tensor(2.5), atol=1e-3, rtol=0)


def test_only_the_teachers_start_has_its_products_in_any_stretch_of_the_dimensions():
    generator = torch.Generator().manual_seed(0)
    x_BD, items_ID = torch.randn(200, 8, generator=generator), torch.randn(300, 8, generator=generator)
    e_IJ = items_ID @ torch.randn(8, 12, generator=generator) + 1  # what a joint embedding may make of E
    projectors = fresh_projectors(8, 12, 64, seed=0)
    expected_BI = (x_BD - x_BD.mean(0)) @ (items_ID - items_ID.mean(0)).T

    @torch.no_grad()
    def correlation(dims: slice = slice(None)) -> float:
        found_BI = projectors.user(x_BD)[:, dims] @ projectors.item(e_IJ)[:, dims].T
        return float(torch.corrcoef(torch.stack([found_BI.flatten(), expected_BI.flatten()]))[0, 1])

    start_ordinary(projectors, x_BD, e_IJ, norm=2.5)
    assert abs(correlation()) < 0.3, "two networks drawn apart know nothing of each other"
    start_as_teacher(projectors, x_BD, e_IJ, items_ID, norm=2.5)
    assert correlation() > 0.999 and correlation(slice(21, 29)) > 0.999


def test_the_vocabularys_start_has_the_teachers_products_among_the_llms_tokens():
    generator = torch.Generator().manual_seed(0)
    x_BD, e_IJ = torch.randn(500, 8, generator=generator), torch.randn(300, 6, generator=generator)
    items_ID = e_IJ @ torch.randn(6, 8, generator=generator)
    spread_H = torch.linspace(0.1, 3, 32)
    embeddings_TH = 0.2 + spread_H * torch.randn(1000, 32, generator=generator)
    projectors = fresh_projectors(8, 6, 32, seed=0)
    norm = float(embeddings_TH.norm(dim=1).mean())
    basis_HD = widest_directions(embeddings_TH, 8)
    start_among_tokens(projectors, x_BD, e_IJ, items_ID, norm, embeddings_TH, basis_HD)
    with torch.no_grad():
        users_BH, tokens_IH = projectors.user(x_BD), projectors.item(e_IJ)
    for tokens in (users_BH, tokens_IH):
        assert tokens.square().sum(1).mean().sqrt().item() == pytest.approx(norm, rel=1e-2)
        torch.testing.assert_close(tokens.mean(0), embeddings_TH.mean(0), atol=1e-3, rtol=0)
        assert tokens.std(0)[-8:].mean() > 10 * tokens.std(0)[:16].mean(), "where the tokens differ"
    found_BI = (users_BH - users_BH.mean(0)) @ (tokens_IH - tokens_IH.mean(0)).T
    expected_BI = (x_BD - x_BD.mean(0)) @ (items_ID - items_ID.mean(0)).T
    assert torch.corrcoef(torch.stack([found_BI.flatten(), expected_BI.flatten()]))[0, 1] > 0.999


def test_a_sure_choice_starts_as_the_token_of_its_item(teacher, examples):
    config = ProjectionConfig(start="teacher", loss="candidates", user_input="choice")
    items_ND = teacher.item_embeddings.detach()
    projectors = start(config, teacher, examples, items_ND, NOTHING_BY_TEXT, token_dim=32, norm=2.5)
    torch.testing.assert_close(projectors.user(items_ND[1:]), projectors.item(items_ND[1:]), atol=1e-4, rtol=1e-4)


def test_spread_items_are_as_far_apart_as_tokens_and_choices_between_them():
    generator = torch.Generator().manual_seed(0)
    items_ID = torch.randn(300, 8, generator=generator) * torch.logspace(0, -2, 8)
    items_ID[1] = items_ID[0] + 0.01 * items_ID.std(0)
    tokens_TH = 0.2 + torch.linspace(0.1, 3, 64) * torch.randn(1000, 64, generator=generator)
    projectors = fresh_projectors(8, 8, 64, seed=0)
    norm = float(tokens_TH.norm(dim=1).mean())
    basis_HD = spread_directions(tokens_TH, items_ID, seed=0)
    start_among_tokens(projectors, items_ID, items_ID, items_ID, norm, tokens_TH, basis_HD)
    with torch.no_grad():
        found_IH = projectors.item(items_ID)
        mixed_H = projectors.user(0.3 * items_ID[2] + 0.7 * items_ID[5])
    assert found_IH.square().sum(1).mean().sqrt().item() == pytest.approx(norm, rel=1e-2)
    torch.testing.assert_close(found_IH.mean(0), tokens_TH.mean(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(mixed_H, 0.3 * found_IH[2] + 0.7 * found_IH[5], atol=1e-2, rtol=1e-2)
    deviation_IH = torch.nn.functional.normalize(found_IH - found_IH.mean(0))
    cosines = deviation_IH @ deviation_IH.T
    assert cosines[0, 1] > 0.99, "the same item nearly"
    before_ID = torch.nn.functional.normalize(items_ID - items_ID.mean(0))
    assert cosines[2:, 2:].square().mean() < 0.5 * (before_ID @ before_ID.T)[2:, 2:].square().mean()


def test_the_sample_is_drawn_over_all_users_and_items(teacher, joint, examples, monkeypatch):
    """Not the first ids, which are the oldest or the best known."""
    seen = {}

    def spy(projectors, x_BD, e_IJ, *_):
        seen["users"], seen["items"] = x_BD, e_IJ

    monkeypatch.setattr(module, "_SAMPLE", 5)
    monkeypatch.setattr(module, "start_as_teacher", spy)
    uses_text_N = torch.arange(NUM_ITEMS + 1) % 3 == 0
    started("teacher", teacher, examples, joint, uses_text_N)
    items = [int((joint == row).all(1).nonzero()[0]) for row in seen["items"]]
    x_UD = teacher.represent(examples.histories(np.arange(NUM_USERS)))
    users = [int((x_UD == row).all(1).nonzero()[0]) for row in seen["users"]]
    for positions, first, end in ((items, 1, NUM_ITEMS), (users, 0, NUM_USERS - 1)):
        assert (
            len(set(positions)) == 5 and sorted(positions) != list(range(first, first + 5)) and max(positions) > end / 2
        )
    assert not uses_text_N[items].any(), "what E_i is for an item that is known by its text is no matter"


def test_what_cannot_start_as_a_teacher_is_refused(teacher, joint, examples):
    torch.manual_seed(0)
    ncf = build_teacher(TeacherConfig(model="ncf", dim=8), NUM_ITEMS).eval().requires_grad_(False)
    torch.nn.init.normal_(ncf.get_parameter("items.weight"))[0] = 0
    started("ordinary", ncf, examples, joint)
    with pytest.raises(ValueError, match=r"NCF does not score by it; set start: ordinary$"):
        started("teacher", ncf, examples, joint)
    config = ProjectionConfig(loss="candidates", user_input="choice")
    with pytest.raises(
        ValueError, match=r"NCF does not score by the product with these; set user_input: representation$"
    ):
        start(config, ncf, examples, joint, NOTHING_BY_TEXT, token_dim=32, norm=2.5)
    with pytest.raises(ValueError, match=r"SASRec has none for any item; set start: ordinary$"):
        started("teacher", teacher, examples, joint, ~NOTHING_BY_TEXT)


def test_no_start_depends_on_other_users(teacher, joint, examples, builder):
    """The sample is drawn by the users' own hashes: the order of the shards changes nothing."""
    sequences = examples.sequences
    back = sequences.take(np.arange(len(sequences))[::-1].copy())
    one, other = (started("ordinary", teacher, some, joint) for some in (examples, Examples(back, builder, 4, seed=0)))
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(weight, other.state_dict()[name])
