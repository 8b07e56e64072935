"""Models on another catalogue: items keep what their texts say, and the teacher reads them as its own."""

import pytest
import torch

from allmrec.alignment.network import AlignmentConfig, AlignmentNetwork, load_network, save_alignment
from allmrec.alignment.transfer import decoded_items, drawn_items, read_items, with_items
from allmrec.cf.teacher import TeacherConfig, build_teacher
from allmrec.core.artifacts import writing
from allmrec.core.storage import open_storage
from tests.cf.conftest import ragged

CONFIG = TeacherConfig(dim=8, max_history=5)


@pytest.fixture
def network() -> AlignmentNetwork:
    torch.manual_seed(0)
    network = AlignmentNetwork(8, 6, 4)
    network.standardise(torch.randn(20, 8) * 3 + 1, torch.randn(20, 6))
    return network


def test_a_stored_network_is_the_same(network, tmp_path):
    storage, texts_NS = open_storage(str(tmp_path)), torch.randn(7, 6)
    e_NJ, q_NJ = network.joint(torch.randn(7, 8), texts_NS)
    settings = {"alignment": AlignmentConfig().model_dump(mode="json")}
    with writing(storage, "alignment", "test", settings) as out:
        out.add(save_alignment(storage, network, e_NJ, q_NJ))
    items_ND = decoded_items(load_network(storage), texts_NS)
    assert not items_ND[0].any()
    expected = network.item_decoder(q_NJ[1:]) * network.item_scale + network.item_mean
    assert torch.allclose(items_ND[1:], expected)


def test_drawn_items_are_trained_ones_whatever_their_texts(network):
    teacher = build_teacher(CONFIG, 20)
    items_ND = drawn_items(teacher, 501, seed=3)
    rows = [torch.nonzero((teacher.item_embeddings[1:] == row).all(1)).item() for row in items_ND[1:]]
    assert not items_ND[0].any() and set(rows) == set(range(20))
    assert torch.equal(items_ND, drawn_items(teacher, 501, seed=3))
    assert not torch.equal(items_ND, drawn_items(teacher, 501, seed=4))


@pytest.mark.parametrize("model", ["sasrec", "gru4rec", "nextitnet"])
def test_a_teacher_scores_other_items_by_their_embeddings(model):
    config = CONFIG.model_copy(update={"model": model})
    teacher = build_teacher(config, 20).eval().requires_grad_(False)
    order = torch.cat([torch.zeros(1, dtype=torch.long), torch.randperm(20)[:9] + 1])
    moved = with_items(teacher, teacher.item_embeddings[order])
    histories = [[1, 2, 3], [9, 4]]
    x_BD = moved.represent(ragged(histories))
    assert torch.allclose(x_BD, teacher.represent(ragged([order[one].tolist() for one in histories])), atol=1e-6)
    assert torch.allclose(moved.shared_scores(x_BD), teacher.shared_scores(x_BD, order), atol=1e-6)


def test_a_teacher_that_reads_texts_knows_other_items_by_theirs():
    config = CONFIG.model_copy(update={"items": "text"})
    teacher = build_teacher(config, 20, text_dim=6).eval().requires_grad_(False)
    texts_NS = torch.randn(9, 6)
    items_ND = read_items(teacher, texts_NS)
    assert not items_ND[0].any() and torch.equal(items_ND[1:], teacher.embed_texts(texts_NS)[1:])
    moved = with_items(teacher, items_ND)
    assert torch.equal(moved.item_embeddings, items_ND) and len(teacher.item_embeddings) == 21
    assert read_items(build_teacher(CONFIG, 20), texts_NS) is None


def test_ncf_knows_items_by_more():
    config = TeacherConfig(model="ncf", dim=16)
    with pytest.raises(ValueError, match="NCF cannot be given other items"):
        with_items(build_teacher(config, 20), torch.zeros(5, 16))
