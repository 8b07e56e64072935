"""Stage-1 on users in parts, one of which is in memory at a time."""

from functools import partial

import numpy as np
import pytest
import torch

from allmrec.alignment.examples import Examples
from allmrec.alignment.network import AlignmentConfig
from allmrec.alignment.training import AlignmentTraining
from allmrec.core.storage import open_storage
from allmrec.data.training_users import TrainingUsers
from tests.alignment.test_training import FAST, NUM_ITEMS, teacher, texts
from tests.cf.conftest import cycles
from tests.data.stored_sequences import generated, in_parts, write_sequences

__all__ = ["teacher", "texts"]  # fixtures


@pytest.mark.parametrize("targets", ["last", "all"])
def test_each_target_has_its_rows_once_an_epoch(teacher, targets):
    config = AlignmentConfig(held_out=0, targets=targets, batch_size=7)
    users = generated(100)
    whole, parts = (Examples(config, teacher, some, 0) for some in (users, in_parts(users, 3)))
    assert len(parts) == len(whole) and parts.num_targets == whole.num_targets == len(whole.targets)

    def rows(examples: Examples, epoch: int) -> list[tuple[str, list[float], int]]:
        """Of which user, with which x^u and item, batch by batch."""
        found = []
        for batch in examples.batches(epoch):
            assert batch.num_users <= 7
            rows_of_user = np.searchsorted(examples.offsets, batch.target_R, side="right") - 1
            ids = examples.sequences.user_ids.take(rows_of_user).to_pylist()
            x_RD = examples.x_PD[batch.target_R].round(decimals=4).tolist()
            found += list(zip(ids, x_RD, batch.item_R.tolist(), strict=True))
        return found

    first = rows(parts, 0)
    assert sorted(first) == sorted(rows(whole, 0)), "the same rows, in another order"
    assert first != rows(whole, 0) and first == rows(Examples(config, teacher, in_parts(users, 3), 0), 0)


def test_it_holds_a_part_at_a_time_and_learns(teacher, texts, tmp_path):
    storage, users = open_storage(str(tmp_path)), cycles(4000, NUM_ITEMS, 6)
    write_sequences(storage, users, 8)
    found = TrainingUsers.read(storage, 1, example_bytes=600)
    run = AlignmentTraining(FAST.model_copy(update={"epochs": 2, "batch_size": 16}), teacher, found, texts, 0)
    hold, held = run.examples.hold, []
    run.examples.hold = lambda part: (hold(part), held.append((part, len(run.examples.x_PD))))[0]
    numbers = list(run.rounds())
    assert len(found.parts) >= 3 and max(count for _, count in held) * (64 + 24 + 600) < 2**20
    parts = [part for part, _ in held]
    assert sorted(parts[: len(found.parts)]) == sorted(parts[len(found.parts) :]) == list(range(len(found.parts)))
    assert numbers[-1]["matching"] < 0.7 * numbers[0]["matching"]


def test_a_stopped_run_ends_as_an_undisturbed_one(teacher, texts):
    make = partial(AlignmentTraining, FAST.model_copy(update={"epochs": 3}), teacher, texts_NS=texts, seed=0)
    calm, stopped, resumed = (make(users=in_parts(cycles(300, NUM_ITEMS, 6), 3)) for _ in range(3))
    list(calm.rounds())
    next(stopped.rounds())
    resumed.load_state_dict(stopped.state_dict())
    list(resumed.rounds())
    for name, weight in calm.network.state_dict().items():
        assert torch.equal(weight, resumed.network.state_dict()[name]), name
