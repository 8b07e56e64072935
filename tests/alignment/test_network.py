"""The joint embeddings and their place on disk."""

import pytest
import torch
from pydantic import ValidationError

from allmrec.alignment.network import AlignmentConfig, AlignmentNetwork, load_joint, load_network, save_alignment
from allmrec.core.artifacts import writing
from allmrec.core.rows import whole
from allmrec.core.storage import open_storage

_NAMES = {"gelu": "GELU", "sigmoid": "Sigmoid"}


def test_the_scale_of_the_inputs_does_not_matter():
    torch.manual_seed(0)
    items, texts = torch.randn(20, 3), torch.randn(20, 5)
    plain, scaled = AlignmentNetwork(3, 5, 4), AlignmentNetwork(3, 5, 4)
    scaled.load_state_dict(plain.state_dict())
    plain.standardise(items, texts)
    scaled.standardise(items * 0.01 + 3, texts * 7 - 1)
    torch.testing.assert_close(plain.encode_items(items), scaled.encode_items(items * 0.01 + 3), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(plain.encode_texts(texts), scaled.encode_texts(texts * 7 - 1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(scaled.original_items(scaled.standard_items(items)), items)
    assert abs(plain.standard_items(items[1:]).square().mean().item() - 1) < 1e-5


def test_the_papers_preset_sets_what_the_config_leaves_out():
    paper = AlignmentConfig(preset="paper")
    assert paper == AlignmentConfig(
        preset="paper",
        joint_dim=128,
        alpha=0.5,
        beta=0.5,
        losses=("matching", "item_recon", "text_recon", "rec"),
        targets="last",
        unseen_weight=0,
        standardise=False,
        activation="sigmoid",
        text_encoder="fine-tuned",
        learning_rate=0.0001,
        batch_size=32,
        epochs=10,
        held_out=0,
    )
    beauty = AlignmentConfig(preset="paper", beta=0.2, text_encoder="frozen", held_out=0.1)
    assert (beauty.beta, beauty.text_encoder, beauty.held_out, beauty.activation) == (0.2, "frozen", 0.1, "sigmoid")
    assert AlignmentConfig(**paper.model_dump()) == paper, "as it comes back from a manifest"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "papers"}, "'default' or 'paper'"),
        ({"text_encoder": "fine-tuned", "losses": ["item_recon", "rec"]}, "losses has neither"),
        ({"preset": "paper", "losses": ["rec"]}, "set text_encoder: frozen"),
        ({"activation": "relu"}, "'gelu' or 'sigmoid'"),
        ({"unseen_weight": -1}, "greater than or equal to 0"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        AlignmentConfig(**settings)


@pytest.mark.parametrize("activation", ["gelu", "sigmoid"])
def test_a_stored_network_keeps_its_activation(activation, tmp_path):
    config = AlignmentConfig(activation=activation)
    network, items, texts = AlignmentNetwork(3, 5, 4, activation), torch.randn(7, 3), torch.randn(7, 5)
    before = network.item_encoder[0](items)
    torch.testing.assert_close(network.encode_items(items), getattr(torch.nn, _NAMES[activation])()(before))
    storage = open_storage(str(tmp_path))
    with writing(storage, "alignment", "id", {"alignment": config.model_dump(mode="json")}) as out:
        out.add(save_alignment(storage, network, *network.joint(items, texts)))
    assert torch.equal(load_network(storage).encode_texts(texts), network.encode_texts(texts))


def test_joint_embeddings_come_back_from_disk_with_padding_zero(tmp_path):
    network = AlignmentNetwork(3, 5, 4)
    items, texts = torch.randn(7, 3), torch.randn(7, 5)
    e, q = network.joint(items, texts)
    assert e[0].eq(0).all() and q[0].eq(0).all()
    torch.testing.assert_close(e[1:], network.encode_items(items)[1:])
    torch.testing.assert_close(q[1:], network.encode_texts(texts)[1:])
    storage = open_storage(str(tmp_path))
    with writing(storage, "alignment", "id") as out:
        out.add(save_alignment(storage, network, e, q))
    loaded_e, loaded_q = map(whole, load_joint(storage))
    assert torch.equal(e, loaded_e) and torch.equal(q, loaded_q)
