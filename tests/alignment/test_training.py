"""Stage-1 training: it aligns what can be aligned, leaves the teacher alone, and can be taken up again."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.alignment import training as alignment_training
from allmrec.alignment.examples import Examples, held_out_items
from allmrec.alignment.network import AlignmentConfig
from allmrec.alignment.texts import DistinctTexts, TrainedTexts
from allmrec.alignment.training import AlignmentTraining, alignment_quality, spread_kept
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


def test_text_embeddings_replace_items_never_trained_on(teacher, texts):
    run = training(teacher, texts)
    held_out = torch.from_numpy(np.flatnonzero(held_out_items(FAST, NUM_ITEMS + 1, 0)))
    before = alignment_quality(*run.network.joint(run.items_ND, texts), held_out)
    numbers = list(run.rounds())
    after = alignment_quality(*run.network.joint(run.items_ND, texts), held_out)
    assert len(held_out) > 40
    assert after["cosine"] > 0.85 and after["mean_rank_fraction"] < 0.03 and before["mean_rank_fraction"] > 0.3
    assert before["recall_at_1"] < 0.1 and before["mse"] > 3 * after["mse"]
    for name, left in (("matching", 0.5), ("item_recon", 0.7), ("text_recon", 0.5)):
        assert numbers[-1][name] < left * numbers[0][name], name


def test_of_many_items_some_are_ranked(monkeypatch):
    e_NJ, q_NJ = torch.randn(2, 101, 4, generator=torch.Generator().manual_seed(0))
    items_R = torch.arange(1, 91, 2)
    every, some = alignment_quality(e_NJ, q_NJ, items_R), alignment_quality(e_NJ, q_NJ, items_R[::5])
    monkeypatch.setattr(alignment_training, "MOST_RANKED", 9)
    ranks = {"recall_at_1", "mean_rank_fraction"}
    for name, value in alignment_quality(e_NJ, q_NJ, items_R).items():
        assert value == (some if name in ranks else every)[name]


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
    own, weight = (np.concatenate([getattr(rows, name) for rows in batches]) for name in ("positive_R", "weight_R"))
    users = sum(rows.num_users for rows in batches)
    assert 700 < users < 800 and weight[own].sum() == pytest.approx(users), "users whose last item is held out are none"
    assert 0.7 < weight[~own].sum() / users < 0.8, "and so are their unseen items"


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
    for own in (True, False):
        chosen = rows.positive_R == own
        assert np.bincount(rows.user_R[chosen], rows.weight_R[chosen]) == pytest.approx([1, 1, 1])
    seen = [set(histories[user]) for user in np.array([3, 0, 2])[rows.user_R[~rows.positive_R]]]
    assert all(item not in own for item, own in zip(rows.item_R[~rows.positive_R], seen, strict=True))


@torch.no_grad()
def equation_6(run: AlignmentTraining, teacher, histories, unseen, texts, paper: bool) -> float:
    """Section 4.1 as loops over users and their items, and as the default departs from it."""
    f_I, f_T = run.network.item_encoder, run.network.text_encoder
    E, Q = teacher.item_embeddings, texts
    mean, scale = E[1:].mean(0), (E[1:] - E[1:].mean(0)).square().mean().sqrt()
    if paper:
        mean, scale = torch.zeros(E.shape[1]), 1.0
    else:
        E, Q = (E - mean) / scale, (Q - Q[1:].mean(0)) / (Q[1:] - Q[1:].mean(0)).square().mean().sqrt()
    users = []
    for history in histories:
        terms = []
        for place in range(1, len(history)) if run.config.targets == "all" else [len(history) - 1]:
            x, own = teacher.represent(ragged([history[:place]]))[0], history[place]
            matched = [own] if paper else [own, unseen[own]]
            logits = {item: x @ (run.network.item_decoder(f_I(E[item])) * scale + mean) for item in (own, unseen[own])}
            terms.append(
                [
                    sum((f_I(E[item]) - f_T(Q[item])).square().mean() for item in matched),  # eq. 2
                    sum((E[item] - run.network.item_decoder(f_I(E[item]))).square().mean() for item in matched),
                    sum((Q[item] - run.network.text_decoder(f_T(Q[item]))).square().mean() for item in matched),
                    -logits[own].sigmoid().log() - (1 - logits[unseen[own]].sigmoid()).log(),  # eq. 5
                ]
            )
        of_user = torch.tensor(terms)
        users.append([*of_user[:, :3].mean(0), of_user[:, 3].sum()])
    of_users = torch.tensor(users)
    matching, item_recon, text_recon = of_users[:, :3].mean(0)
    return (matching + 0.5 * item_recon + 0.2 * text_recon + of_users[:, 3].sum()).item()


@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize("preset", ["paper", "default"])
def test_the_loss_of_a_batch_is_equation_6(teacher, preset, targets):
    texts = torch.randn(NUM_ITEMS + 1, 10)
    sizes = {"joint_dim": 16, "batch_size": 5, "beta": 0.2, "targets": targets}
    config = AlignmentConfig(preset=preset, text_encoder="frozen", held_out=0, **sizes)
    histories = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16, 17]]
    run = AlignmentTraining(config, teacher, ragged(histories), texts, 0)
    (rows,) = run.examples.batches(0)
    unseen = dict(zip(rows.item_R[rows.positive_R].tolist(), rows.item_R[~rows.positive_R].tolist(), strict=True))
    total = run.losses(rows).total(config, rows.num_users).item()
    assert total == pytest.approx(equation_6(run, teacher, histories, unseen, texts, preset == "paper"), rel=1e-5)


def test_an_own_item_without_an_embedding_leaves_its_target_out(teacher):
    teacher.item_embeddings[5] = 0
    config = AlignmentConfig(held_out=0, targets="all", unseen_weight=0.5)
    examples = Examples(config, teacher, ragged([[1, 5], [2, 5, 3]]), 0)
    rows = examples.rows(np.arange(2), epoch=0)
    assert rows.num_users == 1 and rows.item_R[rows.positive_R].tolist() == [3]
    assert rows.weight_R.tolist() == [1, 0.5]


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
        return TrainedTexts(
            FAST, load_encoder(TextConfig(model=str(tmp_path / "sbert"))), DistinctTexts.of(names), 4000
        )

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
    rank_fraction = {}
    for name, encoder in (("frozen", None), ("fine-tuned", texts)):
        run = training(teacher, before, FAST.model_copy(update={"epochs": 12, "learning_rate": 0.01}), 200, encoder)
        numbers = list(run.rounds())[-1]
        texts_NS = texts(np.arange(NUM_ITEMS + 1)).detach() if encoder else before
        learnt = torch.from_numpy(np.flatnonzero(run.examples.usable))
        rank_fraction[name] = alignment_quality(*run.network.joint(run.items_ND, texts_NS), learnt)[
            "mean_rank_fraction"
        ]
    assert rank_fraction["fine-tuned"] < 0.7 * rank_fraction["frozen"], "it tells items apart by their E_i"
    assert numbers["tokens_per_s"] > 0 and not texts.encoder.training
    assert not torch.allclose(texts(np.arange(NUM_ITEMS + 1)), before, atol=1e-2)


def test_fine_tuning_keeps_the_spread_of_the_texts(teacher, sbert):
    """In equation 4 the gradient into the texts themselves would leave two hundredths of their variance."""
    texts = sbert()
    before = texts(np.arange(NUM_ITEMS + 1)).detach()
    config = FAST.model_copy(update={"learning_rate": 0.001, "held_out": 0})
    list(training(teacher, before, config, 600, texts).rounds())
    kept = spread_kept(before, texts(np.arange(NUM_ITEMS + 1)))
    assert kept["text_variance_kept"] > 0.3 and kept["text_dimensions_kept"] > 0.5, kept


def test_the_spread_that_is_left():
    rows = torch.tensor([[9.0, 9], [1, 0], [-1, 0], [0, 1], [0, -1]])
    flat = rows * torch.tensor([2.0, 0])
    assert spread_kept(rows, rows / 2 + 3) == {"text_variance_kept": 0.25, "text_dimensions_kept": 1}
    assert spread_kept(rows, flat) == {"text_variance_kept": 2, "text_dimensions_kept": 0.5}


def test_losses_that_are_not_finite_are_an_error(teacher, texts):
    texts[3] = torch.nan
    with pytest.raises(ValueError, match=r"in epoch 1; lower alignment\.learning_rate"):
        training(teacher, texts).train_epoch()


def test_quality_of_equal_and_of_swapped_embeddings():
    e = torch.eye(5)
    assert alignment_quality(e, e, torch.arange(1, 5)) == {
        "mse": 0,
        "cosine": 1,
        "recall_at_1": 1,
        "mean_rank_fraction": 0,
    }
    swapped = e[[0, 2, 1, 4, 3]]
    assert alignment_quality(e, swapped, torch.arange(1, 5))["recall_at_1"] == 0
    assert alignment_quality(e, e, torch.arange(0)) == {}


def test_nothing_to_align_is_an_error(teacher, texts):
    with pytest.raises(ValueError, match="two training interactions"):
        AlignmentTraining(FAST, teacher, ragged([[1], [2]]), texts, seed=0)
