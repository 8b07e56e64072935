"""Stage-1 training: it aligns what can be aligned, leaves the teacher alone, and can be taken up again."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.alignment.examples import Examples, held_out_items
from allmrec.alignment.network import AlignmentConfig
from allmrec.alignment.texts import TrainedTexts
from allmrec.alignment.training import AlignmentTraining, alignment_quality
from allmrec.cf.teacher import TeacherConfig, build_teacher
from allmrec.text.encoder import TextConfig, load_encoder
from tests.cf.conftest import cycles, ragged
from tests.text.tiny import DIM, build_tiny_sbert

NUM_ITEMS = 200
FAST = AlignmentConfig(joint_dim=16, learning_rate=0.005, epochs=10, held_out=0.25)


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


def training(teacher, texts, config=FAST, users=1000, sbert=None) -> AlignmentTraining:
    return AlignmentTraining(config, teacher, cycles(users, NUM_ITEMS, 6), texts, 0, trained_texts=sbert)


def test_text_forms_come_to_stand_in_for_items_never_trained_on(teacher, texts):
    run = training(teacher, texts)
    held_out = torch.from_numpy(np.flatnonzero(held_out_items(FAST, NUM_ITEMS + 1, 0)))
    before = alignment_quality(*run.network.joint(run.items_ND, texts), held_out)
    numbers = list(run.rounds())
    after = alignment_quality(*run.network.joint(run.items_ND, texts), held_out)
    assert len(held_out) > 40
    assert after["cosine"] > 0.9 and after["nearer"] < 0.03 and before["nearer"] > 0.3
    assert before["nearest"] < 0.1 and before["mse"] > 3 * after["mse"]
    for name in ("matching", "item_recon", "text_recon"):
        assert numbers[-1][name] < 0.5 * numbers[0][name], name


def test_a_loss_that_is_off_teaches_nothing(teacher, texts):
    weights = {}
    for losses in (("item_recon", "rec"), ("matching", "text_recon")):
        run = training(teacher, texts, FAST.model_copy(update={"losses": losses, "epochs": 1}))
        before = {name: weight.clone() for name, weight in run.network.named_parameters()}
        list(run.rounds())
        weights[losses] = {
            name for name, weight in run.network.named_parameters() if not torch.equal(weight, before[name])
        }
    assert {name.split(".")[0] for name in weights["item_recon", "rec"]} == {"item_encoder", "item_decoder"}
    assert not any(name.startswith("item_decoder") for name in weights["matching", "text_recon"])


def test_held_out_items_are_in_no_row(teacher, texts):
    run = training(teacher, texts)
    batches = list(run.examples.batches(0))
    items = np.concatenate([rows.item_R for rows in batches])
    assert len(items) > 1000 and not held_out_items(FAST, NUM_ITEMS + 1, 0)[items].any() and items.min() > 0
    users = sum(rows.weight_R.sum() for rows in batches)
    assert 900 < users <= 1000, "the rows of a user weigh one together"


def test_negatives_are_unseen_items_and_new_in_each_epoch(teacher, texts):
    examples = training(teacher, texts, FAST.model_copy(update={"held_out": 0})).examples
    users = np.arange(len(examples))
    drawn = [examples.rows(users, epoch).item_R.reshape(-1, 2)[:, 1] for epoch in (0, 1)]
    assert not (drawn[0][:, None] == examples.sequences.padded(6)).any() and (drawn[0] != drawn[1]).mean() > 0.8


def test_unseen_items_may_be_drawn(teacher, texts):
    drawable = np.array([3, 50, 77, 120, 150, 180, 199], np.int32)
    users = cycles(1000, NUM_ITEMS, 6)
    run = AlignmentTraining(FAST.model_copy(update={"held_out": 0}), teacher, users, texts, 0, drawable=drawable)
    rows = next(run.examples.batches(0))
    assert set(rows.item_R[~rows.positive_R].tolist()) <= set(drawable.tolist())


@pytest.mark.parametrize("targets", ["last", "all"])
def test_targets_come_with_the_history_before_them(teacher, targets):
    histories = [[1, 2, 3], [9], [4, 5], [6, 7, 8, 9]]
    config = AlignmentConfig(held_out=0, targets=targets)
    examples = Examples(config, teacher, ragged(histories), 0)
    rows = examples.rows(np.array([2, 0, 1]), epoch=3)  # among the three users who have a target
    expected = {
        "last": [([6, 7, 8], 9), ([1, 2], 3), ([4], 5)],
        "all": [([6], 7), ([6, 7], 8), ([6, 7, 8], 9), ([1], 2), ([1, 2], 3), ([4], 5)],
    }[targets]
    assert rows.item_R[rows.positive_R].tolist() == [item for _, item in expected]
    x = teacher.represent(ragged([history for history, _ in expected]))
    torch.testing.assert_close(examples.x_PD[rows.target_R[rows.positive_R]], x)
    assert np.array_equal(rows.target_R[rows.positive_R], rows.target_R[~rows.positive_R])
    assert np.bincount(rows.user_R, rows.weight_R) == pytest.approx([1, 1, 1])
    seen = [set(histories[user]) for user in np.array([3, 0, 2])[rows.user_R[~rows.positive_R]]]
    assert all(item not in own for item, own in zip(rows.item_R[~rows.positive_R], seen, strict=True))


def test_the_teacher_is_left_alone(teacher, texts):
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    training(teacher, texts).train_epoch()
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


@pytest.fixture
def sbert(tmp_path):
    """A fresh tiny SBERT each time, the items' names its texts."""
    names = pa.array([f"number {row} of {row % 7}" for row in range(NUM_ITEMS + 1)])
    build_tiny_sbert(names.to_pylist(), tmp_path / "sbert")

    def fresh() -> TrainedTexts:
        return TrainedTexts(FAST, load_encoder(TextConfig(model=str(tmp_path / "sbert"))), names, 4000)

    return fresh


@pytest.mark.parametrize("fine_tuned", [False, True])
def test_a_stopped_run_ends_as_an_undisturbed_one(teacher, texts, sbert, fine_tuned):
    config = FAST.model_copy(update={"epochs": 2})
    if fine_tuned:
        texts = sbert()(np.arange(NUM_ITEMS + 1)).detach()
    start = lambda: training(teacher, texts, config, 100, sbert() if fine_tuned else None)  # noqa: E731
    calm, first, second = start(), start(), start()
    list(calm.rounds())
    next(first.rounds())
    second.load_state_dict(first.state_dict())
    list(second.rounds())
    for part in ("network", "texts"):
        for name, weight in calm.state_dict()[part].items():
            assert torch.equal(weight, second.state_dict()[part][name]), name
    assert second.epoch == 2 and second.numbers.keys() == calm.numbers.keys()


def test_sbert_learns_along(teacher, sbert):
    texts = sbert()
    before = texts(np.arange(NUM_ITEMS + 1)).detach()
    assert before.shape == (NUM_ITEMS + 1, DIM)
    losses = {}
    for name, encoder in (("frozen", None), ("fine-tuned", texts)):
        config = FAST.model_copy(update={"epochs": 6})
        losses[name] = list(training(teacher, before, config, 300, encoder).rounds())[-1]
    assert losses["fine-tuned"]["matching"] < 0.9 * losses["frozen"]["matching"], "it tells items apart by their E_i"
    assert losses["fine-tuned"]["tokens_per_s"] > 0 and not texts.encoder.training
    assert not torch.allclose(texts(np.arange(NUM_ITEMS + 1)), before, atol=1e-2)


def test_losses_that_are_not_finite_are_an_error(teacher, texts):
    texts[3] = torch.nan
    with pytest.raises(ValueError, match=r"in epoch 1; lower alignment\.learning_rate"):
        training(teacher, texts).train_epoch()


def test_quality_of_equal_and_of_swapped_embeddings():
    e = torch.eye(5)
    assert alignment_quality(e, e, torch.arange(1, 5)) == {"mse": 0, "cosine": 1, "nearest": 1, "nearer": 0}
    swapped = e[[0, 2, 1, 4, 3]]
    assert alignment_quality(e, swapped, torch.arange(1, 5))["nearest"] == 0
    assert alignment_quality(e, e, torch.arange(0)) == {}


def test_nothing_to_align_is_an_error(teacher, texts):
    with pytest.raises(ValueError, match="two training interactions"):
        AlignmentTraining(FAST, teacher, ragged([[1], [2]]), texts, seed=0)
