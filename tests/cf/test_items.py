"""MoRec: items by their texts. One-hot texts are a table of vectors; what is baked is the map, and loads without Q."""

import numpy as np
import pytest
import torch
from torch import nn

from allmrec.cf.items import TextItems
from allmrec.cf.teacher import TeacherConfig, build_teacher, load_teacher, save_teacher
from allmrec.cf.training import TeacherTraining, ValidationCases
from allmrec.core.artifacts import writing
from allmrec.core.storage import open_storage
from tests.cf.conftest import cycles, ragged

NUM_ITEMS, DIM, TEXT_DIM = 12, 8, 20
CONFIG = TeacherConfig(
    items="text", dim=DIM, max_history=6, batch_size=16, num_negatives=8, learning_rate=0.01, epochs=4, eval_every=1
)
NONE = ValidationCases(ragged([]), np.zeros((0, 2), np.int32))


def texts_of(num_items: int = NUM_ITEMS, seed: int = 0) -> torch.Tensor:
    texts_NS = torch.randn(num_items + 1, TEXT_DIM, generator=torch.Generator().manual_seed(seed))
    texts_NS[0] = 0
    return texts_NS


def training(config: TeacherConfig = CONFIG, texts_NS: torch.Tensor | None = None, sequences=None) -> TeacherTraining:
    sequences = cycles(70, NUM_ITEMS, 6) if sequences is None else sequences
    texts_NS = texts_of() if texts_NS is None else texts_NS
    return TeacherTraining(config, [lambda: sequences], NUM_ITEMS, NONE, 0, texts_NS=texts_NS)


@pytest.mark.parametrize("loss", ["softmax", "bce"])
@pytest.mark.parametrize("model", ["sasrec", "gru4rec", "nextitnet"])
def test_one_hot_texts_train_as_a_table_of_vectors(model, loss):
    """Without bias, centring and scale, f(one-hot) is a row of f's matrix: the same losses and the same weights."""
    config = CONFIG.model_copy(update={"model": model, "loss": loss})
    table = training(config.model_copy(update={"items": "ids"}))
    by_text = training(config, torch.cat([torch.zeros(1, NUM_ITEMS), torch.eye(NUM_ITEMS)]))
    items = by_text.teacher.items
    items.mean, items.scale = torch.zeros(NUM_ITEMS), torch.ones(())
    items.texts_NS = torch.cat([torch.zeros(1, NUM_ITEMS), torch.eye(NUM_ITEMS)])
    items.text[0].bias.requires_grad_(False)
    items.text[0].weight.data = table.teacher.item_embeddings[1:].detach().T.clone()
    for _ in range(3):
        assert by_text.train_epoch()[0] == pytest.approx(table.train_epoch()[0], rel=1e-5)
    found, expected = by_text.teacher.eval().state_dict(), table.teacher.state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4, msg=lambda text, at=name: at + text)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_table_is_the_map_of_the_texts(layers):
    run = training(CONFIG.model_copy(update={"text_layers": layers}))
    list(run.rounds())
    teacher = run.best_teacher()
    linear = [part for part in teacher.items.text if isinstance(part, nn.Linear)]
    assert len(linear) == layers and len(teacher.items.text) == 2 * layers - 1
    e_ND = teacher.embed_texts(texts_of())
    torch.testing.assert_close(teacher.item_embeddings[1:], e_ND[1:], rtol=0, atol=1e-6)
    assert not teacher.item_embeddings[0].any()
    scale = (texts_of()[1:] - texts_of()[1:].mean(0)).norm(dim=1).square().mean().sqrt()
    assert teacher.items.scale.item() == pytest.approx(scale.item())


def test_in_training_the_map_is_live_and_in_eval_the_table_is():
    teacher = training().teacher.train()
    items = torch.tensor([[0, 3, 3], [5, 0, 1]])
    teacher.begin_step(torch.tensor([5, 0, 7, 3, 1]))
    live = teacher.items(items)
    live.sum().backward()
    assert not live[items == 0].any() and torch.equal(live[0, 1], live[0, 2])
    assert teacher.items.text[0].weight.grad.any() and teacher.items.weight.grad is None
    torch.testing.assert_close(teacher.eval().items(items), live)


def test_items_of_equal_texts_are_one_item_to_it():
    texts_NS = texts_of()
    texts_NS[7] = texts_NS[3]
    run = training(texts_NS=texts_NS)
    list(run.rounds())
    e_ND = run.best_teacher().item_embeddings
    torch.testing.assert_close(e_ND[7], e_ND[3])
    assert (e_ND[7] - e_ND[4]).abs().max() > 1e-3


def test_other_numbers_for_the_items_relabel_the_scores():
    order = torch.cat([torch.zeros(1, dtype=torch.long), torch.randperm(NUM_ITEMS) + 1])  # the old number of each new
    new = order.argsort().numpy()  # the new number of each old one
    sequences = cycles(70, NUM_ITEMS, 6)
    renumbered = ragged([new[history].tolist() for history in sequences.padded(6)])
    drawable = np.arange(1, NUM_ITEMS + 1)
    runs = [training(), training(texts_NS=texts_of()[order], sequences=renumbered)]
    runs[1].drawable = new[drawable]  # the same negatives
    losses = [[run.train_epoch()[0] for _ in range(3)] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    histories = [[1, 2, 3], [9, 4]]
    one, other = (run.teacher.eval().requires_grad_(False) for run in runs)
    scores = one.shared_scores(one.represent(ragged(histories)))
    x_BD = other.represent(ragged([new[history].tolist() for history in histories]))
    torch.testing.assert_close(other.shared_scores(x_BD)[:, new], scores, rtol=1e-3, atol=1e-3)


def test_a_stored_teacher_loads_without_texts_and_reads_new_ones(tmp_path):
    run, storage = training(), open_storage(str(tmp_path))
    list(run.rounds())
    teacher = run.best_teacher()
    with writing(storage, "teacher", "id", {"teacher": CONFIG.model_dump(mode="json")}) as out:
        out.add(save_teacher(storage, teacher))
        out.stats["num_items"] = NUM_ITEMS
    loaded = load_teacher(storage)
    assert loaded.items.texts_NS is None and torch.equal(loaded.item_embeddings, teacher.item_embeddings)
    new = texts_of(2, seed=5)
    expected = teacher.embed_texts(new).detach()
    assert torch.equal(loaded.embed_texts(new), expected)
    rows_N = torch.tensor([0, 5, 0, 2])
    loaded.take_items(rows_N, torch.stack([torch.zeros(DIM), torch.zeros(DIM), expected[1], torch.zeros(DIM)]))
    kept = teacher.item_embeddings.detach()
    torch.testing.assert_close(loaded.item_embeddings, torch.stack([kept[0], kept[5], expected[1], kept[2]]))
    assert loaded.eval().represent(ragged([[2, 3]])).any(), "it stays what it has taken"


def test_a_stopped_run_ends_as_an_undisturbed_one():
    calm, first, second = training(), training(), training()
    list(calm.rounds())
    next(first.rounds())
    second.load_state_dict(first.state_dict())
    list(second.rounds())
    for name, weight in calm.best_teacher().state_dict().items():
        assert torch.equal(weight, second.best_teacher().state_dict()[name]), name


def test_models_that_know_items_otherwise_are_refused():
    for model in ("ncf", "external"):
        for settings in ({"items": "text"}, {"pretraining": {}}):
            with pytest.raises(ValueError, match="is for the models sasrec, gru4rec, nextitnet; set one of them"):
                TeacherConfig(model=model, **settings)


def test_a_config_without_the_new_keys_is_written_as_before():
    written = TeacherConfig().model_dump(mode="json")
    assert not {"items", "text_layers", "pretraining"} & written.keys()
    assert {"items", "pretraining"} <= TeacherConfig(items="text", pretraining={}).model_dump(mode="json").keys()


def test_by_ids_there_is_no_map():
    teacher = build_teacher(TeacherConfig(dim=DIM), NUM_ITEMS)
    assert not isinstance(teacher.items, TextItems) and teacher.embed_texts(texts_of()) is None
