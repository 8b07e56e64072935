"""The joint embeddings and their place on disk."""

import torch

from allmrec.alignment.network import AlignmentNetwork, load_joint, save_alignment
from allmrec.artifacts import seal
from allmrec.storage import open_storage


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


def test_joint_embeddings_come_back_from_disk_with_padding_zero(tmp_path):
    network = AlignmentNetwork(3, 5, 4)
    items, texts = torch.randn(7, 3), torch.randn(7, 5)
    e, q = network.joint(items, texts)
    assert e[0].eq(0).all() and q[0].eq(0).all()
    torch.testing.assert_close(e[1:], network.encode_items(items)[1:])
    torch.testing.assert_close(q[1:], network.encode_texts(texts)[1:])
    storage = open_storage(str(tmp_path))
    seal(storage, "alignment", "id", save_alignment(storage, network, e, q))
    loaded_e, loaded_q = load_joint(storage)
    assert torch.equal(e, loaded_e) and torch.equal(q, loaded_q)
