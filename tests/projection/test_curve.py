"""The learning curve, the schedule, and training on a sample of the users."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.core.hashing import Draw, key64
from allmrec.data.sequences import Sequences
from allmrec.data.training_users import Sample, TrainingUsers
from allmrec.projection.engine import weights
from allmrec.projection.examples import Examples
from tests.projection.conftest import NUM_USERS
from tests.projection.test_training import CONFIG, training


@pytest.fixture(scope="module")
def examples(sequences, builder) -> Examples:
    return Examples(sequences, builder, CONFIG.num_candidates, seed=0)


def test_the_curve_has_a_point_at_each_interval_and_resumes(alone, llm_folder, teacher, joint, examples, cases):
    """Ten steps of at most seven prompts, a validation after every two and a checkpoint after every three."""
    config = CONFIG.model_copy(update={"validate_every_prompts": 14})
    run = training(llm_folder, "replicated", teacher, joint, examples, config, cases)
    numbers, states = [], []
    for row in run.rounds():
        numbers.append(row)
        states.append(run.state_dict())
    assert [point["prompts"] for point in run.curve] == [0, 14, 28, 30, 37, 51, 60], "and at the end of each epoch"
    assert numbers[0]["valid_prompts"] == 14 and numbers[0]["valid_hit@1"] == run.curve[1]["hit@1"]
    assert run.best["hit@1"] == max(point["hit@1"] for point in run.curve[1:])
    assert run.curve[-1] == {"prompts": 60, **run.validate()}

    again = training(llm_folder, "replicated", teacher, joint, examples, config, cases, state=states[2])
    list(again.rounds())
    assert again.curve == run.curve
    for name, weight in weights(run.projectors).items():
        assert torch.equal(weights(again.projectors)[name], weight), name

    plain = training(llm_folder, "replicated", teacher, joint, examples, CONFIG, cases)
    list(plain.rounds())
    assert [point["prompts"] for point in plain.curve] == [30, 60], "after every epoch alone"
    assert plain.curve == [run.curve[3], run.curve[6]], "looking changes nothing"


def test_the_rate_warms_up_and_falls(alone, llm_folder, teacher, joint, examples):
    config = CONFIG.model_copy(update={"learning_rate_schedule": "linear", "warmup_steps": 4})
    run = training(llm_folder, "replicated", teacher, joint, examples, config)
    found = [run.learning_rate(step) for step in range(10)]
    assert found == pytest.approx([1e-2 * min(1, (step + 1) / 4) * (1 - step / 10) for step in range(10)])


def sample(sequences: Sequences, max_users: int, seed: int = 7) -> TrainingUsers:
    return TrainingUsers.of(sequences, Sample(max_users, key64(seed, Draw.PROJECTION_USERS)))


def users_of(users: TrainingUsers) -> list[str]:
    return [user for part in users.parts for user in part().user_ids.to_pylist()]


def test_a_sample_of_users_is_drawn_by_their_ids(sequences, builder):
    def users(rows, **settings):
        made = Examples(sample(sequences.take(rows), 11), builder, 4, seed=7, **settings)
        return sorted(made.sequences.user_ids.to_pylist()), len(made)

    order = np.arange(len(sequences))
    some, count = users(order)
    assert len(some) == count == 11 and users(order[::-1]) == (some, 11), "in whatever order they come"
    everyone = Examples(sequences, builder, 4, seed=7).sequences
    lengths = dict(zip(everyone.user_ids.to_pylist(), everyone.lengths.tolist(), strict=True))
    assert users(order, targets="all") == (some, sum(lengths[user] - 1 for user in some))
    assert len(sample(sequences, NUM_USERS + 1)) == NUM_USERS
    assert sorted(users_of(sample(sequences, 11, seed=8))) != some, "by the seed"


def test_each_user_is_as_likely_to_be_drawn():
    count = 2000
    many = Sequences(
        pa.array([f"u{number}" for number in range(count)]),
        np.arange(count + 1) * 2,
        np.tile(np.array([1, 2], np.int32), count),
    )
    drawn = users_of(sample(many, 500, seed=0))
    numbers = np.array([int(user[1:]) for user in drawn])
    counts = np.bincount(numbers // 500, minlength=4)
    assert counts.sum() == 500 and (np.abs(counts - 125) < 45).all()
