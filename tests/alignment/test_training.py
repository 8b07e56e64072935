"""Stage-1 training: it aligns what can be aligned, leaves the teacher alone, and can be taken up again."""

import numpy as np
import pytest
import torch

from allmrec.alignment.network import AlignmentConfig
from allmrec.alignment.training import AlignmentTraining, alignment_quality
from allmrec.cf.teacher import TeacherConfig, build_teacher
from tests.cf.conftest import cycles, ragged

NUM_ITEMS = 60
FAST = AlignmentConfig(joint_dim=16, learning_rate=0.005, epochs=12, held_out=0.25)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    teacher = build_teacher(TeacherConfig(dim=6, max_history=5), NUM_ITEMS)
    with torch.no_grad():
        teacher.item_embeddings[1:] = torch.randn(NUM_ITEMS, 6) * 0.3
    return teacher.eval().requires_grad_(False)


@pytest.fixture
def texts(teacher):
    """Text embeddings that tell the items' embeddings, in another basis and at another scale."""
    basis = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    return teacher.item_embeddings @ basis * 0.05


def training(teacher, texts, config=FAST) -> AlignmentTraining:
    return AlignmentTraining(config, teacher, cycles(300, NUM_ITEMS, 6), texts, seed=0)


def test_text_forms_come_to_stand_in_for_items_never_trained_on(teacher, texts):
    run = training(teacher, texts)
    held_out = torch.from_numpy(np.flatnonzero(run.held_out))
    before = alignment_quality(*run.joint(), held_out)
    numbers = list(run.rounds())
    after = alignment_quality(*run.joint(), held_out)
    assert len(held_out) > 3
    assert after["cosine"] > 0.9 and after["nearest"] > 0.4 and after["nearer"] < 0.02
    assert before["nearest"] < 0.2 and before["mse"] > 3 * after["mse"]
    for name in ("matching", "item_recon", "text_recon"):
        assert numbers[-1][name] < 0.5 * numbers[0][name], name


def test_held_out_items_are_in_no_row(teacher, texts, monkeypatch):
    run, seen = training(teacher, texts), []
    original = AlignmentTraining._losses

    def watched(self, users, items, usable):
        seen.append(items[users][usable[users]])
        return original(self, users, items, usable)

    monkeypatch.setattr(AlignmentTraining, "_losses", watched)
    run.train_epoch()
    rows = np.concatenate(seen)
    assert len(rows) > 300 and not run.held_out[rows].any() and rows.min() > 0


def test_negatives_are_unseen_items_and_new_in_each_epoch(teacher, texts, monkeypatch):
    from allmrec.alignment import training as module

    run, drawn = training(teacher, texts), []
    original = module.draw_negatives
    monkeypatch.setattr(module, "draw_negatives", lambda *args: drawn.append(original(*args)) or drawn[-1])
    run.train_epoch()
    run.train_epoch()
    history = run.sequences.padded(6)
    assert not (drawn[0] == history).any() and (drawn[0] != drawn[1]).mean() > 0.8


def test_the_teacher_is_left_alone_and_represents_the_history_before_the_last_item(teacher, texts):
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    run = training(teacher, texts)
    run.train_epoch()
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())
    history = run.sequences.items[run.sequences.offsets[7] : run.sequences.offsets[8]]
    x = teacher.user_representations(torch.from_numpy(history[:-1]).long()[None, -5:])[0]
    torch.testing.assert_close(run.x_UD[7], x)
    assert run.targets[7] == history[-1]


def test_a_stopped_run_ends_as_an_undisturbed_one(teacher, texts):
    calm = training(teacher, texts)
    list(calm.rounds())
    first = training(teacher, texts)
    next(first.rounds())
    second = training(teacher, texts)
    second.load_state_dict(first.state_dict())
    list(second.rounds())
    for name, weight in calm.network.state_dict().items():
        assert torch.equal(weight, second.network.state_dict()[name]), name


def test_quality_of_equal_and_of_swapped_embeddings():
    e = torch.eye(5)
    assert alignment_quality(e, e, torch.arange(1, 5)) == {"mse": 0, "cosine": 1, "nearest": 1, "nearer": 0}
    swapped = e[[0, 2, 1, 4, 3]]
    assert alignment_quality(e, swapped, torch.arange(1, 5))["nearest"] == 0
    assert alignment_quality(e, e, torch.arange(0)) == {}


def test_nothing_to_align_is_an_error(teacher, texts):
    with pytest.raises(ValueError, match="two training interactions"):
        AlignmentTraining(FAST, teacher, ragged([[1], [2]]), texts, seed=0)
