"""The projectors: their shapes, their file, and what a config may ask of them."""

import pytest
import torch
from pydantic import ValidationError

from allmrec.core.artifacts import writing
from allmrec.core.settings import one_line
from allmrec.core.storage import open_storage
from allmrec.projection.examples import Examples
from allmrec.projection.projectors import ProjectionConfig, fresh_projectors, load_projectors, save_projectors
from allmrec.projection.start import start


def test_two_layers_each_into_the_token_space():
    projectors = fresh_projectors(8, 6, 32, seed=0)
    shapes = {name: tuple(weight.shape) for name, weight in projectors.state_dict().items() if "weight" in name}
    assert shapes == {
        "user.0.weight": (32, 8),
        "user.2.weight": (32, 32),
        "item.0.weight": (32, 6),
        "item.2.weight": (32, 32),
    }


def test_fresh_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, other = fresh_projectors(8, 6, 32, seed=0), fresh_projectors(8, 6, 32, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.user[0].weight, fresh_projectors(8, 6, 32, seed=0).user[0].weight)
    assert not torch.equal(one.user[0].weight, other.user[0].weight)


def test_saved_projectors_come_back_equal_and_frozen(tmp_path):
    storage, (projectors, before) = open_storage(str(tmp_path)), (fresh_projectors(8, 6, 32, seed) for seed in (0, 1))
    with writing(storage, "projectors", "test") as out:
        out.add(save_projectors(storage, projectors.state_dict(), untrained=before.state_dict()))
    loaded, untrained = load_projectors(storage), load_projectors(storage, untrained=True)
    x_BD, e_IJ = torch.randn(5, 8), torch.randn(5, 6)
    assert torch.equal(loaded.user(x_BD), projectors.user(x_BD))
    assert torch.equal(loaded.item(e_IJ), projectors.item(e_IJ))
    assert torch.equal(untrained.user(x_BD), before.user(x_BD)) and torch.equal(untrained.item(e_IJ), before.item(e_IJ))
    assert not any(parameter.requires_grad for part in (loaded, untrained) for parameter in part.parameters())


@pytest.mark.parametrize("how", ["ordinary", "teacher"])
def test_a_norm_layer_gives_every_soft_token_the_starts_norm_and_is_stored(
    how, teacher, joint, sequences, builder, tmp_path
):
    config = ProjectionConfig(norm_layer=True, start=how)
    examples = Examples(sequences, builder, 4, seed=0)
    by_text = torch.zeros(len(joint), dtype=torch.bool)
    projectors = start(config, teacher, examples, joint, by_text, token_dim=32, norm=2.5)
    x_BD = teacher.represent(examples.histories(torch.arange(9).numpy())).clone()
    for tokens in (projectors.user(x_BD), projectors.item(joint[1:])):
        torch.testing.assert_close(tokens.norm(dim=1), torch.full((len(tokens),), 2.5), rtol=1e-3, atol=0)
    storage = open_storage(str(tmp_path))
    with writing(storage, "projectors", "test") as out:
        out.add(save_projectors(storage, projectors.state_dict(), projectors.state_dict()))
    assert torch.equal(load_projectors(storage).user(x_BD), projectors.user(x_BD))


def test_the_papers_preset_is_the_papers_and_gives_way_to_what_is_written():
    """Table 3 and section 5.1; the paper clips no gradient and chooses no epoch."""
    paper = ProjectionConfig(preset="paper")
    assert (paper.learning_rate, paper.learning_rate_schedule) == (1e-4, "constant")
    assert (paper.batch_size, paper.epochs) == (4, 5)
    assert (paper.max_gradient_norm, paper.validation_users, paper.patience) == (0, 0, None)
    assert (paper.start, paper.targets, paper.item_input) == ("ordinary", "last", "joint")
    assert paper.user_input == "representation"
    assert ProjectionConfig(preset="paper", epochs=2) == paper.model_copy(update={"epochs": 2})
    assert ProjectionConfig().start == "ordinary", "nor is the teacher's start anybody's default"


def test_random_item_inputs_hold_no_collaborative_knowledge():
    with pytest.raises(ValidationError) as refused:
        ProjectionConfig(item_input="random", start="teacher")
    assert "set start: ordinary" in one_line(refused.value) and "\n" not in one_line(refused.value)
    ProjectionConfig(item_input="teacher", start="teacher")
