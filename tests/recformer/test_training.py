"""Two stages of training: the loss, what each stage leaves as it is, workers, passes, resuming, learning."""

import numpy as np
import pytest
import torch

from allmrec.cf.training import ValidationCases
from allmrec.core.training_state import load_state, save_state
from allmrec.data.sequences import Sequences
from allmrec.recformer import training as module
from allmrec.recformer.build import build_recformer
from allmrec.recformer.config import RecformerConfig
from allmrec.recformer.training import RecformerTraining
from tests.cf.conftest import cycles, ragged, training_part
from tests.recformer.conftest import NUM_ITEMS, catalogue, save_encoder

LENGTH = 6


def cases_of(sequences: Sequences) -> ValidationCases:
    """The last item but one of everyone."""
    known = sequences.shortened(sequences.lengths - 2)
    target = sequences.items[sequences.offsets[1:] - 2]
    return ValidationCases(known, target[:, None].astype(np.int32))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> str:
    return save_encoder(tmp_path_factory.mktemp("small"), "bert", max_position_embeddings=64)


def training(folder: str | None, users: int = 24, validated: bool = True, unseen: int = 0, **settings):
    """Without the users of one item, which then is not drawable."""
    settings = {"max_items": 4, "max_attribute_tokens": 2, "learning_rate": 3e-3, "epochs": 3} | settings
    config = RecformerConfig(encoder=folder, **settings)
    network, sentences, _ = build_recformer(config, catalogue, seed=0)
    sequences = cycles(users, NUM_ITEMS, LENGTH)
    sequences = sequences.take(np.flatnonzero(~(sequences.padded(LENGTH) == unseen).any(1)))
    drawable = np.setdiff1d(np.arange(1, NUM_ITEMS + 1), unseen)
    cases = cases_of(sequences if validated else ragged([]))
    return RecformerTraining(config, network, sentences, training_part(sequences), cases, 0, drawable=drawable)


def gradients(run: RecformerTraining, users: np.ndarray) -> torch.Tensor:
    run.optimiser.zero_grad()
    run.gradients(users)
    return torch.cat([weight.grad.flatten() for weight in run.network.parameters() if weight.grad is not None])


def test_the_loss_is_the_softmax_of_cosines_over_all_items_that_compete(folder):
    run, users = training(folder, unseen=1), np.arange(5)
    run.vectors_ND = run.item_vectors()
    loss, tokens = run.gradients(users)
    histories, targets = run.examples(users)
    assert (targets > 1).all() and tokens == run.sentences.lengths(histories).sum()
    with torch.no_grad():
        x_BD = run.network(run.sentences.texts(histories))
    expected = 0.0
    for x_D, target in zip(x_BD, targets, strict=True):
        cosines = [torch.cosine_similarity(x_D, run.vectors_ND[item], dim=0) / 0.05 for item in range(2, NUM_ITEMS + 1)]
        expected -= float(torch.stack(cosines).log_softmax(0)[target - 2])
    assert loss == pytest.approx(expected, rel=1e-4)


def test_targets_are_drawn_from_the_whole_sequence_behind_what_is_known(folder):
    run = training(folder)
    users, seen = np.arange(len(run)), set()
    for run.epoch in range(12):
        histories, targets = run.examples(users)
        assert (histories.lengths >= 1).all()
        newest = histories.items[histories.offsets[1:] - 1]
        assert (newest % NUM_ITEMS + 1 == targets).all()
        seen |= {*histories.lengths.tolist()}
    assert seen == {1, 2, 3}


def test_neither_passes_nor_workers_change_a_step(folder, monkeypatch):
    run, users = training(folder), np.arange(7)
    run.vectors_ND = run.item_vectors()
    whole, items_ND = gradients(run, users), run.item_vectors()
    run.config = run.config.model_copy(update={"tokens_per_pass": 1})
    torch.testing.assert_close(gradients(run, users), whole, atol=1e-5, rtol=1e-4)
    total, vectors_ND = torch.zeros_like(whole), torch.zeros_like(items_ND)
    for rank in range(2):
        monkeypatch.setattr(module, "local_shard", lambda rows, rank=rank: rows[rank::2])
        total += gradients(run, users)
        vectors_ND += run.item_vectors()
    torch.testing.assert_close(total, whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vectors_ND, items_ND, atol=1e-5, rtol=1e-4)


def test_the_first_stage_makes_the_items_again_and_the_second_one_leaves_them(folder):
    run, vectors = training(folder), []
    for numbers in run.rounds():
        vectors.append((numbers["stage"], run.vectors_ND))
        assert run.best["valid_ndcg@10"] >= numbers["valid_ndcg@10"]
    stages = [stage for stage, _ in vectors]
    assert stages == [1, 1, 1, 2, 2, 2] and run.epoch == 6
    assert not torch.equal(vectors[0][1], vectors[1][1]) and not torch.equal(vectors[1][1], vectors[2][1])
    best = [found for _, found in vectors[:3]]
    assert all(torch.equal(found, vectors[3][1]) for _, found in vectors[3:])
    assert any(torch.equal(found, vectors[3][1]) for found in best), "those of the first one's best epoch"
    run.network.load_state_dict(run.best_items)
    torch.testing.assert_close(run.item_vectors(), run.best_vectors_ND, atol=1e-5, rtol=1e-4)


def test_without_cases_the_last_epoch_is_kept_and_patience_ends_a_stage(folder):
    run = training(folder, validated=False, epochs=2)
    assert [numbers["stage"] for numbers in run.rounds()] == [1, 1, 2, 2] and run.best["epoch"] == 4
    for name, weight in run.network.state_dict().items():
        assert torch.equal(weight, run.best_users[name])
    run = training(folder, epochs=9, patience=1, learning_rate=1e-9)  # nothing becomes better
    assert [numbers["stage"] for numbers in run.rounds()][:2] == [1, 1] and run.epoch == 3


@pytest.mark.parametrize("done", [2, 4])
def test_a_resumed_training_ends_as_an_undisturbed_one(folder, done, tmp_path):
    calm, killed = training(folder, epochs=3), training(folder, epochs=3)
    losses = [numbers["loss"] for numbers in calm.rounds()]
    rounds = killed.rounds()
    for _ in range(done):
        next(rounds)
    save_state(tmp_path, killed.state_dict())
    resumed = training(folder, epochs=3)
    resumed.load_state_dict(load_state(tmp_path))
    assert [numbers["loss"] for numbers in resumed.rounds()] == losses[done:]
    assert resumed.best == calm.best and torch.equal(resumed.best_vectors_ND, calm.best_vectors_ND)
    for name, weight in calm.best_users.items():
        assert torch.equal(weight, resumed.best_users[name])
        assert torch.equal(calm.best_items[name], resumed.best_items[name])


def test_it_learns_what_follows_what():
    run = training(None, users=96, epochs=8, patience=99, learning_rate=1e-3)
    found = [numbers["valid_ndcg@10"] for numbers in run.rounds()]
    assert run.best["valid_hit@1"] > 0.5 and max(found) == run.best["valid_ndcg@10"]


def test_what_cannot_be_trained_is_said(folder):
    run = training(folder)
    with torch.no_grad():
        run.network.recency.weight[1] = torch.nan
    with pytest.raises(ValueError, match=r"loss is nan in epoch 1 .*lower baselines.recformer.learning_rate"):
        next(run.rounds())
    run = training(folder, users=0)
    with pytest.raises(ValueError, match="no user has two training interactions"):
        next(run.rounds())
