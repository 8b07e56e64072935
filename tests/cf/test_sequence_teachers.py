"""Every teacher that is trained here: padding is no item, no look ahead, it learns, its weights survive the disk."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from allmrec.cf.items import TextItems
from allmrec.cf.teacher import (
    WEIGHTS,
    SequenceTeacher,
    TeacherConfig,
    build_teacher,
    load_teacher,
    save_teacher,
)
from allmrec.cf.training import TeacherTraining, ValidationCases
from allmrec.core import machine_cache, rows
from allmrec.core.artifacts import writing
from allmrec.core.storage import open_storage
from allmrec.data.sequences import Sequences
from tests.cf.conftest import cycles, ragged

BY_IDS = ("sasrec", "gru4rec", "nextitnet")
BY_TEXT = tuple(f"{model} by text" for model in BY_IDS)  # MoRec
SEQUENTIAL = (*BY_IDS, *BY_TEXT)
MODELS = (*SEQUENTIAL, "ncf")
NUM_ITEMS, WIDTH, TEXT_DIM = 20, 10, 24

histories = st.lists(st.integers(1, NUM_ITEMS), min_size=1, max_size=WIDTH)
every_model = pytest.mark.parametrize("teacher", MODELS, indirect=True)
few_examples = settings(max_examples=25, deadline=None)


def config_of(model: str, **settings) -> TeacherConfig:
    """Of a model by its name, which may end in " by text"."""
    settings = {"dim": 8, "blocks": 2, "max_history": WIDTH} | settings
    return TeacherConfig(model=model.split()[0], **settings | ({"items": "text"} if model in BY_TEXT else {}))


def texts_of(num_items: int) -> torch.Tensor:
    """Q, drawn."""
    return torch.randn(num_items + 1, TEXT_DIM, generator=torch.Generator().manual_seed(9))


def drawn(model: str) -> SequenceTeacher:
    """With large weights, biases too, so that whatever leaks is seen."""
    torch.manual_seed(3)
    teacher = build_teacher(config_of(model), NUM_ITEMS, TEXT_DIM)
    for weight in teacher.parameters():
        nn.init.normal_(weight, std=0.5)
    if isinstance(teacher.items, TextItems):
        teacher.items.read(texts_of(NUM_ITEMS))
    for table in teacher.modules():
        if isinstance(table, nn.Embedding) and table.padding_idx == 0:
            nn.init.zeros_(table.weight[0].detach())
    return teacher.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def teacher(request) -> SequenceTeacher:
    return drawn(request.param)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@every_model
@few_examples
@given(history=histories, data=st.data())
def test_padding_changes_nothing(teacher, history, data):
    padding = data.draw(st.integers(0, WIDTH - len(history)))
    other = data.draw(st.lists(st.integers(1, NUM_ITEMS), min_size=len(history) + padding, max_size=WIDTH))
    other = other[: len(history) + padding]
    bare_BT, batch_BT = torch.tensor([history]), torch.tensor([[0] * padding + history, other])
    close(teacher(batch_BT)[:1, padding:], teacher(bare_BT))
    assert teacher(batch_BT)[0, :padding].eq(0).all()
    close(teacher.user_representations(batch_BT)[:1], teacher.user_representations(bare_BT))
    if len(history) > 1:
        close(teacher.contexts(batch_BT)[:1, padding:], teacher.contexts(bare_BT))


@every_model
@few_examples
@given(
    users=st.lists(st.lists(st.integers(1, NUM_ITEMS), max_size=2 * WIDTH), min_size=1, max_size=7),
    block=st.integers(1, 8),
)
def test_users_together_are_represented_as_one_by_one(teacher, users, block):
    together = teacher.represent(ragged(users), block)
    for x_D, history in zip(together, users, strict=True):
        close(x_D, teacher.user_representations(torch.tensor([history[-WIDTH:] or [0]]))[0])


@every_model
def test_an_empty_history_is_represented_by_zeros(teacher):
    assert teacher.user_representations(torch.zeros(2, 4, dtype=torch.int64)).eq(0).all()
    x = teacher.represent(ragged([[], [1, 2]]))
    assert x.shape == (2, 8) and x[0].eq(0).all() and x[1].ne(0).any()


@every_model
@few_examples
@given(history=histories, data=st.data())
def test_a_later_item_does_not_change_earlier_representations(teacher, history, data):
    place = data.draw(st.integers(0, len(history) - 1))
    changed = [*history]
    changed[place] = history[place] % NUM_ITEMS + 1
    before, after = teacher(torch.tensor([history])), teacher(torch.tensor([changed]))
    close(after[:, :place], before[:, :place])
    assert (after[:, place] - before[:, place]).abs().max() > 1e-3


@pytest.mark.parametrize("teacher", SEQUENTIAL, indirect=True)
def test_a_sequential_teacher_minds_the_order_and_predicts_from_the_past(teacher):
    one, other = teacher.user_representations(torch.tensor([[1, 2, 3], [2, 1, 3]]))
    assert (one - other).abs().max() > 1e-3
    items_BT = torch.tensor([[0, 4, 9, 2, 7]])
    close(teacher.contexts(items_BT), teacher(items_BT[:, :-1]))


@every_model
@few_examples
@given(items=st.lists(st.integers(1, NUM_ITEMS), min_size=1, max_size=30), seed=st.integers(0, 100))
def test_shared_scores_are_the_scores(teacher, items, seed):
    x_BD = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
    shared_BK = teacher.shared_scores(x_BD, torch.tensor(items))
    close(shared_BK, teacher.scores(x_BD, torch.tensor([items] * 3)))
    catalogue_BN = teacher.shared_scores(x_BD)
    assert catalogue_BN.shape == (3, NUM_ITEMS + 1)
    close(shared_BK, catalogue_BN[:, items])


def training(model: str, sequences: Sequences, num_items: int, seed: int = 0, **settings) -> TeacherTraining:
    config = config_of(model, dim=16, max_history=8, batch_size=32, learning_rate=0.02, dropout=0.1, **settings)
    none = ValidationCases(ragged([]), np.zeros((0, 2), np.int32))
    return TeacherTraining(config, [lambda: sequences], num_items, none, seed, texts_NS=texts_of(num_items))


@pytest.mark.parametrize("loss", ["softmax", "bce"])
@pytest.mark.parametrize("model", SEQUENTIAL)
def test_a_sequential_teacher_learns_what_follows_what(model, loss):
    sequences = cycles(200, NUM_ITEMS, 8)
    run = training(model, sequences, NUM_ITEMS, loss=loss, num_negatives=20)
    for _ in range(24 if model in BY_TEXT else 12):
        run.train_epoch()
    teacher = run.teacher.eval().requires_grad_(False)
    scores_BN = teacher.shared_scores(teacher.represent(sequences.shortened(sequences.lengths - 1)))
    seen_BT = torch.from_numpy(sequences.padded(8)[:, :-1]).long()
    best_B = scores_BN.scatter(1, seen_BT, -torch.inf)[:, 1:].argmax(1) + 1
    hits = (best_B == torch.from_numpy(sequences.items[sequences.offsets[1:] - 1])).float().mean()
    assert hits > 0.9


@pytest.mark.parametrize("model", MODELS)
def test_training_repeats_with_its_seed_and_leaves_padding_zero(model):
    runs = [training(model, cycles(60, 10, 6), 10, seed, num_negatives=8) for seed in (1, 1, 2)]
    losses = [run.train_epoch()[0] for run in runs]
    assert losses[0] == losses[1] != losses[2]
    for name, weight in runs[0].teacher.state_dict().items():
        assert torch.equal(weight, runs[1].teacher.state_dict()[name]), name
    assert runs[0].teacher.item_embeddings[0].eq(0).all()


@pytest.mark.parametrize("model", MODELS)
def test_a_stored_teacher_comes_back_frozen_and_a_damaged_one_is_refused(model, tmp_path):
    teacher, storage = drawn(model), open_storage(str(tmp_path))
    config = {"seed": 0, "teacher": config_of(model).model_dump(mode="json")}
    with writing(storage, "teacher", "id", config) as out:
        out.add(save_teacher(storage, teacher))
        out.stats["num_items"] = NUM_ITEMS
    loaded = load_teacher(storage)
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())
    users = ragged([[4, 5, 6], [1]])
    x_BD = teacher.represent(users)
    assert torch.equal(loaded.represent(users), x_BD)
    assert torch.equal(loaded.shared_scores(x_BD), teacher.shared_scores(x_BD))
    data = bytearray(storage.read(WEIGHTS))
    data[-1] ^= 1
    storage.write(WEIGHTS, bytes(data))
    with pytest.raises(ValueError, match=WEIGHTS):
        load_teacher(storage)


@pytest.mark.parametrize("model", MODELS)
def test_a_large_table_is_mapped_and_gives_what_it_gives(model, tmp_path, monkeypatch):
    teacher, storage = drawn(model), open_storage(str(tmp_path))
    config = {"seed": 0, "teacher": config_of(model).model_dump(mode="json")}
    with writing(storage, "teacher", "id", config) as out:
        out.add(save_teacher(storage, teacher))
        out.stats["num_items"] = NUM_ITEMS
    monkeypatch.setattr(rows, "MAPPED_BYTES", teacher.item_embeddings.nbytes)
    monkeypatch.setattr(machine_cache, "CACHE", tmp_path / "cache")
    loaded, stored = load_teacher(storage), teacher.state_dict()
    assert all(torch.equal(weight, stored[name]) for name, weight in loaded.state_dict().items())
    users, rows_N, new_ND = ragged([[4, 5, 6], [1]]), torch.tensor([0, 7, 0, 3] * 8), torch.randn(32, 8)
    torch.testing.assert_close(loaded.represent(users), teacher.represent(users))
    for one in (teacher, loaded):
        one.take_items(rows_N, new_ND.masked_fill(rows_N[:, None] > 0, torch.nan))
    assert torch.equal(loaded.item_embeddings[1:].nan_to_num(9), teacher.item_embeddings[1:].nan_to_num(9))
    assert torch.equal(loaded.item_embeddings[2], new_ND[2]) and [*(tmp_path / "cache").glob("tables/*/data")]
