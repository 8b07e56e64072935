"""CTRL's first stage: the same for any workers and passes, it aligns, it resumes, and without it nothing changes."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from allmrec.cf import pretraining
from allmrec.cf.contrastive import max_sim
from allmrec.cf.pretraining import HistoryVectors
from allmrec.cf.teacher import TeacherConfig
from allmrec.cf.training import TeacherTraining, ValidationCases
from allmrec.core.training_state import load_state, save_state
from tests.cf.conftest import ragged

NUM_ITEMS, USERS = 30, 90
CONFIG = TeacherConfig(
    dim=8,
    max_history=5,
    epochs=2,
    eval_every=1,
    batch_size=16,
    num_negatives=8,
    dropout=0.2,
    pretraining={"epochs": 2, "batch_size": 24, "dim": 6, "learning_rate": 0.005},
)


def encode(histories) -> np.ndarray:
    """As texts say it: which items are in the history, by a random vector each."""
    vectors_NS = np.random.default_rng(0).normal(size=(NUM_ITEMS + 1, 12)).astype(np.float32)
    vectors_NS[0] = 0
    return vectors_NS[histories.padded(5)].sum(axis=1)


def training(config: TeacherConfig = CONFIG, parts: int = 1, texts_NS=None, **keys) -> TeacherTraining:
    histories = np.random.default_rng(1).integers(1, NUM_ITEMS + 1, (USERS, 7)).tolist()
    sequences, none = ragged(histories), ValidationCases(ragged([]), np.zeros((0, 2), np.int32))
    if keys:
        stage = config.pretraining.model_copy(update=keys)
        config = config.model_copy(update={"pretraining": stage})
    pieces = [sequences.take(np.arange(part, USERS, parts)) for part in range(parts)]
    parts = [partial(lambda piece: piece, piece) for piece in pieces]
    return TeacherTraining(config, parts, NUM_ITEMS, none, 0, texts_NS=texts_NS, encode=encode)


def started(run: TeacherTraining) -> pretraining.Pretraining:
    stage = run.pretraining
    stage.start(HistoryVectors(stage.users, stage.encode, stage.device))
    run.teacher.train()
    return stage


def gradients_of_a_batch(run: TeacherTraining) -> tuple[float, dict[str, torch.Tensor]]:
    stage = started(run)
    stage.users.hold(0)
    loss = stage.gradients(np.arange(24))
    named = [*run.teacher.named_parameters(), *stage.heads.named_parameters()]
    return loss, {name: weight.grad.clone() for name, weight in named}


@pytest.mark.parametrize("model", ["sasrec", "gru4rec", "nextitnet"])
def test_three_passes_give_the_loss_and_gradients_of_one(model, monkeypatch):
    config = CONFIG.model_copy(update={"model": model, "dropout": 0.0})
    one, alone = gradients_of_a_batch(training(config))
    monkeypatch.setattr(pretraining, "_PASS", 10)
    three, several = gradients_of_a_batch(training(config))
    assert three == pytest.approx(one, rel=1e-6)
    assert alone["items.weight"].any()
    for name, gradient in alone.items():
        torch.testing.assert_close(several[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda text, at=name: at + text)


def test_passes_repeat_their_dropout(monkeypatch):
    """What is differentiated is what was made first."""
    monkeypatch.setattr(pretraining, "_PASS", 10)
    run = training()
    stage = started(run)
    stage.users.hold(0)
    first, again = (stage._users(np.arange(10), 1) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, stage._users(np.arange(10), 2))


def test_gradients_are_those_of_everything_in_one_graph():
    run = training(CONFIG.model_copy(update={"dropout": 0.0}))
    loss, found = gradients_of_a_batch(run)
    stage = run.pretraining
    batch = stage.users.sequences.take(np.arange(24))
    run.teacher.zero_grad(), stage.heads.zero_grad()
    users = stage.heads.users(run.teacher.user_representations(torch.from_numpy(batch.padded(5)).long()))
    texts = stage.heads.texts(torch.from_numpy(encode(batch)))
    expected = pretraining.contrastive_loss(users, texts, stage.config.temperature)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, weight in [*run.teacher.named_parameters(), *stage.heads.named_parameters()]:
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def found_share(run: TeacherTraining) -> float:
    """How many users' texts are the most similar of 30."""
    stage = run.pretraining
    some = stage.users.sequences.take(np.arange(30))
    run.teacher.eval()
    users = stage.heads.users(run.teacher.user_representations(torch.from_numpy(some.padded(5)).long()))
    scores_BB = max_sim(users, stage.heads.texts(torch.from_numpy(encode(some))))
    return (scores_BB >= scores_BB.diagonal()[:, None]).sum(1).eq(1).float().mean().item()


def test_after_the_first_stage_texts_of_a_batch_are_found():
    run = training(epochs=50, learning_rate=0.01)
    before = found_share_of_a_start(run)
    losses = [numbers["contrastive_loss"] for numbers in run.pretraining.rounds()]
    assert losses[-1] < 0.7 * losses[0]
    assert before < 0.25 < found_share(run)


def found_share_of_a_start(run: TeacherTraining) -> float:
    started(run).users.hold(0)
    return found_share(run)


def test_items_by_their_texts_take_part():
    texts_NS = torch.randn(NUM_ITEMS + 1, 7, generator=torch.Generator().manual_seed(0))
    run = training(CONFIG.model_copy(update={"items": "text"}), texts_NS=texts_NS)
    before = run.teacher.items.text[0].weight.detach().clone()
    next(run.rounds())
    assert (run.teacher.items.text[0].weight - before).abs().max() > 1e-4


def test_no_epochs_are_no_first_stage():
    plain, none = training(CONFIG.model_copy(update={"pretraining": None})), training(epochs=0)
    assert list(plain.rounds())[-1]["loss"] == list(none.rounds())[-1]["loss"]
    for name, weight in plain.best_teacher().state_dict().items():
        assert torch.equal(weight, none.best_teacher().state_dict()[name]), name


def test_the_second_stage_starts_from_the_first_and_keeps_nothing_else():
    run, plain = training(), training(CONFIG.model_copy(update={"pretraining": None}))
    rounds = run.rounds()
    assert [set(next(rounds)) for _ in range(2)] == [{"contrastive_loss", "pretraining_users_per_s"}] * 2
    assert run.epoch == 0 and (run.teacher.item_embeddings - plain.teacher.item_embeddings).abs().max() > 1e-4
    assert not run.teacher.item_embeddings[0].any(), "padding stays zero"
    assert [set(numbers) for numbers in rounds] == [{"loss", "interactions_per_s"}] * 2
    assert run.best_teacher().state_dict().keys() == plain.best_teacher().state_dict().keys()


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_stopped_run_ends_as_an_undisturbed_one(rounds, tmp_path):
    """Stopped within the first stage, between the two, and within the second; users come in three parts."""
    calm, first, second = training(parts=3), training(parts=3), training(parts=3)
    list(calm.rounds())
    for _, _ in zip(range(rounds), first.rounds(), strict=False):
        pass
    save_state(tmp_path, first.state_dict())
    second.load_state_dict(load_state(tmp_path))
    list(second.rounds())
    for name, weight in calm.best_teacher().state_dict().items():
        assert torch.equal(weight, second.best_teacher().state_dict()[name]), name


def test_two_workers_train_what_one_does(tmp_path):
    """With dropout, and unequal shares of the last batch."""
    alone = training()
    numbers = [one.get("contrastive_loss", one.get("loss")) for one in alone.rounds()]
    command = [sys.executable, "-m", "tests.cf.workers", str(tmp_path)]
    workers = [subprocess.Popen([*command, str(rank)], cwd=Path(__file__).parents[2]) for rank in range(2)]
    assert [worker.wait(timeout=240) for worker in workers] == [0, 0]
    found = load_state(tmp_path)
    assert found["numbers"] == pytest.approx(numbers, rel=1e-4)
    for name, weight in alone.teacher.state_dict().items():
        torch.testing.assert_close(found["teacher"][name], weight, rtol=1e-2, atol=1e-3)


def test_a_loss_that_is_no_number_names_the_key():
    run = training()
    run.pretraining.encode = lambda histories: np.full((len(histories), 12), np.nan, np.float32)
    with pytest.raises(ValueError, match=r"contrastive loss is nan in epoch 1 .* teacher.pretraining.learning_rate"):
        next(run.rounds())
