"""The classic recipe: what its samplers draw, that its model sees no future, and that it learns a rule."""

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from allmrec.cf.training import validate
from benchmarks.sasrec_reference import Recipe, ReferenceTraining, SASRecReference, sample_batch
from tests.cf.conftest import cycles, training_part
from tests.cf.test_training import NUM_ITEMS, cases_of

ITEMS = np.arange(1, NUM_ITEMS + 1)
SMALL = Recipe(dim=16, max_length=8, dropout=0.1, batch_size=32, learning_rate=0.01, samplers=1, threads=1)


@given(
    histories=st.lists(st.lists(st.integers(1, 25), min_size=2, max_size=12), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_a_batch_is_sequences_shifted_by_one_with_unseen_items(histories, seed):
    inputs, targets, negatives = sample_batch(histories, ITEMS.tolist(), SMALL, random.Random(seed))
    assert inputs.shape == targets.shape == negatives.shape == (SMALL.batch_size, SMALL.max_length)
    newest = [(history[-SMALL.max_length - 1 :], set(history)) for history in histories]
    for row in range(SMALL.batch_size):
        length = np.count_nonzero(inputs[row])
        assert (inputs[row, :-length] == 0).all() and (targets[row, :-length] == 0).all()
        sequence = [*inputs[row, -length:].tolist(), int(targets[row, -1])]
        assert targets[row, -length:].tolist() == sequence[1:]
        drawn = negatives[row, -length:].tolist()
        assert min(drawn) >= 1 and max(drawn) <= NUM_ITEMS and not any(negatives[row, :-length])
        # Users may share their newest items and differ in older ones.
        assert any(recent == sequence and seen.isdisjoint(drawn) for recent, seen in newest)


def test_a_later_item_does_not_change_earlier_states_and_padding_is_nothing():
    torch.manual_seed(0)
    model = SASRecReference(SMALL, NUM_ITEMS).eval()
    history = torch.tensor([[0, 0, 3, 7, 1, 9, 4, 2]])
    changed = history.clone()
    changed[0, 6] = 12
    before, after = model(history), model(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert (before[:, 6:] - after[:, 6:]).abs().amax(-1).min() > 1e-5
    assert model.item_embeddings[0].eq(0).all()


def test_the_loss_knows_real_positions_alone():
    torch.manual_seed(0)
    model = SASRecReference(SMALL, NUM_ITEMS).eval()
    inputs, targets, negatives = torch.zeros(3, 2, 8, dtype=torch.int64)
    inputs[0, -1], targets[0, -1], negatives[0, -1] = 1, 2, 3
    x = model(inputs)[0, -1]
    expected = -torch.sigmoid(x @ model.items.weight[2]).log() - torch.sigmoid(-x @ model.items.weight[3]).log()
    torch.testing.assert_close(model.loss(inputs, targets, negatives), expected)


def test_it_learns_what_follows_what():
    sequences = cycles(200, NUM_ITEMS, 9)
    training, cases = ReferenceTraining(SMALL, training_part(sequences), NUM_ITEMS, ITEMS, seed=0), cases_of(sequences)
    assert validate(training.model, cases)["valid_hit@1"] < 0.35
    losses = list(training.epochs(25))
    assert losses[-1] < losses[0] and training.seconds > 0
    assert training.positions == 25 * (200 // 32) * 32 * 6, "seven training items predict six"
    assert validate(training.model, cases)["valid_hit@1"] > 0.9


def test_users_with_one_item_teach_nothing():
    sequences = cycles(5, NUM_ITEMS, 4).shortened(np.array([1, 2, 4, 1, 3]))
    assert [len(history) for history in ReferenceTraining(SMALL, sequences, NUM_ITEMS, ITEMS, 0).histories] == [2, 4, 3]
